import pytest
import torch
from reference import rbf_weights

from ctrace.cut.affinity import bandwidth, cosine_affinity, rbf_affinity

DOUBLE = torch.float64


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(30, 5, dtype=DOUBLE) * 2 + 7


@pytest.mark.parametrize("sigma", [1.7, "local"])
def test_rbf_weights_are_the_formula(x, sigma):
    sigma = bandwidth(x, sigma)
    assert torch.allclose(rbf_affinity(x, sigma=sigma), rbf_weights(x, sigma), rtol=1e-12, atol=0)


def test_local_scale_is_the_distance_to_the_seventh_neighbour(x):
    distances = torch.cdist(x, x).sort(1).values
    assert torch.allclose(bandwidth(x, "local"), distances[:, 7] / 2**0.5, rtol=1e-9)


def test_median_rule_is_the_median_pairwise_distance(x):
    assert torch.allclose(bandwidth(x, "median"), torch.pdist(x).median())


def test_copies_of_a_point_take_the_median_scale(x):
    x = torch.cat([x, x[:1].expand(9, -1)])
    scales = bandwidth(x, "local")
    others = scales[1:30]
    assert torch.allclose(scales[30:], others.median())


@pytest.mark.parametrize("offset", [0.0, 300.0, 1e4])
def test_local_scales_do_not_measure_rounding(offset):
    torch.manual_seed(0)
    x = torch.randn(300, 3)
    x[:60] = x[0] + 1e-4 * torch.randn(60, 3)  # near copies
    x = (x + offset).double().float()
    assert torch.allclose(bandwidth(x).double(), bandwidth(x.double()), rtol=1e-3)


def test_copies_far_from_the_origin_are_copies():
    for seed in range(10):
        torch.manual_seed(seed)
        x = torch.cat([torch.randn(40, 5), torch.randn(1, 5).expand(9, -1)]) * 3 + 7
        scales = bandwidth(x)
        assert torch.allclose(scales[40:], scales[:40].median())


def test_cosine_weights_do_not_depend_on_length(x):
    longer = x * torch.arange(1, 31, dtype=DOUBLE)[:, None]
    assert torch.allclose(cosine_affinity(x), cosine_affinity(longer))
    assert torch.allclose(cosine_affinity(x).diagonal(), torch.ones(30, dtype=DOUBLE))


def test_cosine_refuses_a_row_without_direction(x):
    with pytest.raises(ValueError, match="no direction"):
        cosine_affinity(x.index_fill(0, torch.tensor(0), 0.0))
