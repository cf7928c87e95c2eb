"""Claims about features that know their names."""

import numpy as np
import pytest
import torch

from ctrace.world.features import GridFeatures


def small_grid() -> GridFeatures:
    return GridFeatures(torch.arange(2 * 2 * 3 * 2.0).reshape(12, 2), ("a", "b"), (2, 3), 2)


def test_rows_are_ordered_image_then_y_then_x():
    grid = small_grid()
    for image, y, x in [(0, 0, 0), (0, 1, 2), (1, 0, 1)]:
        assert torch.equal(grid.maps()[image, y, x], grid.features[(image * 2 + y) * 3 + x])


def test_zscores_have_mean_zero_deviation_one_and_leave_a_constant_channel_at_zero():
    grid = small_grid().with_features(torch.stack([torch.randn(12), torch.full((12,), 0.3)], 1))
    z = grid.zscores().flatten(0, 2)
    assert torch.allclose(z[:, 0].mean(), torch.tensor(0.0), atol=1e-6)
    assert torch.allclose(z[:, 0].pow(2).mean(), torch.tensor(1.0), atol=1e-5)
    assert (z[:, 1] == 0).all()


def test_gradients_flow_back_through_select_and_maps():
    grid = small_grid().requires_grad_()
    grid.select(["b"]).maps().sum().backward()
    assert grid.features.grad.tolist() == [[0.0, 1.0]] * 12


def test_selecting_keeps_names_with_their_columns():
    assert torch.equal(small_grid().select(["b", "a"]).features, small_grid().features.flip(1))
    assert small_grid().select("b").names == ("b",)


def test_an_unknown_channel_lists_close_names():
    with pytest.raises(ValueError, match="Did you mean 'b\\* blue-yellow'"):
        GridFeatures(torch.zeros(1, 2), ("b* blue-yellow", "L*"), (1, 1)).index("b* blue-yelow")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((torch.zeros(12, 2), ("a", "b"), (3, 3), 2), "n = 12"),
        ((torch.zeros(0, 2), ("a", "b"), (0, 3), 2), "n = 0"),
        ((torch.zeros(12, 2), ("a",), (2, 3), 2), "expected 2 channel names"),
        ((torch.zeros(12, 2), ("a", "a"), (2, 3), 2), "more than once"),
        ((torch.zeros(12, 2).long(), ("a", "b"), (2, 3), 2), "floating-point"),
        ((torch.zeros(2, 2, 3, 2), ("a", "b"), (2, 3), 2), r"\(n, c\)"),
        ((np.zeros((12, 2)), ("a", "b"), (2, 3), 2), "ndarray"),
    ],
)
def test_contradictory_shapes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GridFeatures(*arguments)
