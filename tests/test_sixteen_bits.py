"""Features of sixteen bits, and features under autocast, are cut in float32."""

import pytest
import torch

from ctrace import Graph, Ncut, kway_ncut, rbf_affinity, trace_channels
from ctrace.cut.affinity import bandwidth, cosine_affinity

SIXTEEN_BITS = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def blobs():
    torch.manual_seed(0)
    return torch.cat([torch.randn(60, 8) + 3 * torch.randn(8) for _ in range(3)])


WAYS = {
    "rbf": lambda x: rbf_affinity(x, sigma=3.0),
    "cosine": lambda x: cosine_affinity(x),
    "bandwidth": bandwidth,
    "graph": lambda x: Graph(x).matmul(torch.eye(len(x))),
    "ncut": lambda x: Ncut(3).fit_transform(x),
    "landmarks": lambda x: Ncut(3, max_exact=90, n_landmarks=90).fit_transform(x),
    "transform": lambda x: Ncut(3).fit(x).transform(x[:20]),
    "segments": lambda x: kway_ncut(Ncut(3).fit_transform(x)),
    "trace": lambda x: trace_channels(x, 3).attributions,
}


@SIXTEEN_BITS
@pytest.mark.parametrize("way", WAYS)
def test_sixteen_bits_are_computed_in_float32(way, dtype):
    x = blobs().to(dtype)
    found = WAYS[way](x)
    assert found.dtype == torch.float32
    assert torch.equal(found, WAYS[way](x.float()))


@SIXTEEN_BITS
@pytest.mark.parametrize("way", WAYS)
def test_autocast_changes_nothing(way, dtype):
    x = blobs()
    with torch.autocast("cpu", dtype):
        found = WAYS[way](x)
    assert torch.equal(found, WAYS[way](x))


@SIXTEEN_BITS
def test_a_gradient_returns_to_sixteen_bits_rounded_once(dtype):
    x = blobs().to(dtype).requires_grad_()
    wide = x.detach().float().requires_grad_()
    for points in (x, wide):
        with torch.autocast("cpu", torch.bfloat16):
            loss = kway_ncut(Ncut(3, track_grad=True).fit_transform(points))
        loss.pow(3).sum().backward()
    assert x.grad.dtype == dtype and torch.equal(x.grad, wide.grad.to(dtype))
