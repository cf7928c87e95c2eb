"""What goes in: what every room accepts, and words for what none of them can use."""

import numpy as np
import pytest
import torch
from timm.layers import DropPath
from torch import nn
from torchvision.ops import StochasticDepth

from ctrace.check import (
    check_classes,
    check_device,
    check_features,
    check_maps,
    check_names,
    check_number,
    check_ready,
    one_of,
    prepare_images,
)

IMAGES = torch.rand(2, 3, 4, 5)


@pytest.mark.parametrize(
    "module, words",
    [
        (nn.BatchNorm2d(3), "BatchNorm2d '0' is in training mode.*model.eval"),
        (nn.BatchNorm2d(3, track_running_stats=False).eval(), "keeps no running statistics"),
        (nn.InstanceNorm2d(3, track_running_stats=True), "InstanceNorm2d '0' is in training mode"),
        (nn.Dropout(0.1), "Dropout '0' is active"),
        (StochasticDepth(0.1, "row"), "StochasticDepth '0' is active"),
        (DropPath(0.1), "DropPath '0' is active"),
        (nn.MultiheadAttention(4, 2, dropout=0.1), "MultiheadAttention '0' is active"),
        (nn.RReLU(), "RReLU '0' is active"),
    ],
)
def test_a_model_whose_answer_depends_on_its_batch_or_on_chance_is_refused(module, words):
    model = nn.Sequential(module)
    with pytest.raises(ValueError, match=words):
        check_ready(model)
    if module.training:
        check_ready(model.eval())


def test_a_model_in_training_mode_that_leaves_nothing_to_chance_is_ready():
    check_ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.Dropout(0), nn.ReLU()))
    check_ready(nn.Sequential(nn.MultiheadAttention(4, 2), DropPath(0.0), nn.LayerNorm(4)))


def test_images_are_batched_in_the_precision_of_the_model_and_never_shared():
    model = nn.Conv2d(3, 1, 1).double()
    image = torch.rand(3, 4, 5).double()
    batch = prepare_images(model, image)
    assert (
        batch.shape == (1, 3, 4, 5)
        and batch.data_ptr() != image.data_ptr()
        and not batch.requires_grad
    )
    assert prepare_images(model, image.float()).dtype == torch.float64


@pytest.mark.parametrize(
    "image, words",
    [
        (torch.rand(3, 4, 5).numpy(), "received ndarray"),
        (torch.rand(4, 5), "received \\(4, 5\\)"),
        (torch.rand(0, 3, 4, 5), "received \\(0, 3, 4, 5\\)"),
        (torch.rand(4, 5, 3), "channels last"),
        (torch.ones(3, 4, 5, dtype=torch.uint8), "Divide 0..255"),
        (torch.full((3, 4, 5), torch.nan), "NaN"),
    ],
)
def test_a_wrong_image_is_said(image, words):
    with pytest.raises(ValueError, match=words):
        prepare_images(nn.Conv2d(3, 1, 1), image)


def test_an_image_or_model_made_under_inference_mode_is_said():
    with torch.inference_mode():
        image, model = torch.rand(3, 4, 5), nn.Conv2d(3, 1, 1)
    for m, x in ((nn.Conv2d(3, 1, 1), image), (model, torch.rand(3, 4, 5))):
        with pytest.raises(RuntimeError, match="made under torch.inference_mode"):
            prepare_images(m, x)


# --- names, numbers, maps and classes


def test_a_name_is_one_of_the_known_or_the_nearest_are_named():
    assert one_of("method", "cls", ("cls", "ins")) == "cls"
    with pytest.raises(
        ValueError, match="method: expected one of cls, ins, received 'clas'. Did you mean 'cls'"
    ):
        one_of("method", "clas", {"cls": 1, "ins": 2})
    for wrong in (None, 1, ["cls"], torch.ones(2)):
        with pytest.raises(ValueError, match="expected one of cls, ins, received"):
            one_of("method", wrong, ("cls", "ins"))
    with pytest.raises(ValueError, match=r"name23, \.\.\., received"):
        one_of("name", "?", [f"name{i}" for i in range(100)])


def test_names_are_as_many_as_columns_and_all_different():
    assert check_names(["a", "b"], 2) == ("a", "b")
    with pytest.raises(ValueError, match="expected 3 names.*received 2"):
        check_names(["a", "b"], 3)
    with pytest.raises(
        ValueError, match="channels: expected different names, but \\['a'\\] repeat"
    ):
        check_names(["a", "b", "a"], 3, "channels")


@pytest.mark.parametrize("value", [0, 1.5, True, torch.nan, torch.inf, "0.1", None])
def test_a_number_outside_its_bounds_is_said(value):
    with pytest.raises(
        ValueError, match="share: expected a finite number above 0 and at most 1, rec"
    ):
        check_number("share", value, above=0, at_most=1)


@pytest.mark.parametrize("value", [0, 2.0, True, "2", 11])
def test_a_whole_number_is_neither_a_fraction_nor_a_bool(value):
    with pytest.raises(ValueError, match="k: expected a whole number at least 1 and below 11"):
        check_number("k", value, whole=True, at_least=1, below=11)
    assert check_number("k", np.int64(10), whole=True, at_least=1, below=11) == 10


def test_classes_are_one_for_all_images_or_one_for_each():
    assert check_classes(2, 3, 4).tolist() == [2, 2, 2]
    assert check_classes([0, 3, 1], 3, 4).tolist() == [0, 3, 1]
    assert check_classes(np.array([0, 3, 1]), 3).dtype == torch.int64


@pytest.mark.parametrize(
    "target, words",
    [
        (-1, "run from 0 to 3, received -1 to -1"),
        (4, "run from 0 to 3, received 4 to 4"),
        (True, "whole class numbers, received torch.bool"),
        ([0.7, 1.2, 0.0], "whole class numbers, received torch.float32"),
        ([0], "one class for each of the 3 images, received shape \\(1,\\)"),
        ([[0, 1, 2]], "received shape \\(1, 3\\)"),
    ],
)
def test_a_class_that_does_not_exist_is_refused(target, words):
    with pytest.raises(ValueError, match=words):
        check_classes(target, 3, 4)
    with pytest.raises(ValueError, match="classes run from 0, received -2 to 1"):
        check_classes([1, -2, 0], 3)


def test_maps_fit_their_images_and_are_finite():
    maps = torch.rand(2, 4, 5, requires_grad=True)
    assert (
        torch.equal(check_maps(maps, IMAGES), maps) and not check_maps(maps, IMAGES).requires_grad
    )
    assert check_maps(np.zeros((2, 4, 5)), IMAGES).shape == (2, 4, 5)
    with pytest.raises(
        ValueError, match="masks: expected .* equal to \\(2, 4, 5\\), received \\(4, 5\\)"
    ):
        check_maps(maps[0], IMAGES, "masks")
    with pytest.raises(ValueError, match="maps: NaN or infinity"):
        check_maps(maps / 0, IMAGES)


@pytest.mark.parametrize(
    "x, words",
    [
        (np.ones((3, 2)), "received ndarray"),
        (torch.ones(3), "two axes \\(n, c\\), received \\(3,\\)"),
        (torch.ones(3, 2).int(), "float32 or float64, received torch.int32"),
        (torch.ones(1, 2), "at least 2 rows"),
        (torch.ones(3, 0), "1 channel"),
        (torch.tensor([[1.0], [torch.nan], [torch.inf]]), "2 of 3 rows hold NaN"),
    ],
)
def test_features_that_are_no_rows_of_numbers_are_said(x, words):
    with pytest.raises(ValueError, match=words):
        check_features(x)
    assert check_features(torch.full((2, 1), 3e38)).shape == (2, 1)  # their sum alone overflows


def test_a_device_is_where_the_model_is():
    cpu = torch.device("cpu")
    assert check_device(None) is None and check_device(None, cpu) == check_device("cpu", cpu) == cpu
    with pytest.raises(ValueError, match="asked for meta, the model is on cpu. Use model.to"):
        check_device("meta", cpu)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees no CUDA device"):
            check_device("cuda")
