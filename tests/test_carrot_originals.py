"""The calls of CARROT's guide as they are written there: only the import differs."""

import torch

from ctrace.carrot import (
    DiffusionOperator,
    GraphReadout,
    RegionGraphBuilder,
    RegionSet,
    RidgeHead,
    training_contribution,
)
from ctrace.world.tokens import TimmViTPatchBackbone


def test_the_main_of_the_guide_runs():
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    graph_builder, operator, readout = RegionGraphBuilder(), DiffusionOperator(1.0), GraphReadout()

    backbone = TimmViTPatchBackbone("vit_tiny_patch16_224", pretrained=False, freeze=True)
    out = backbone(images)
    H = out.H  # (B,N,D)
    P = out.P  # (N,2)
    assert isinstance(backbone, torch.nn.Module) and H.shape == (2, 196, 192)
    assert P.shape == (196, 2) and not any(p.requires_grad for p in backbone.parameters())

    x = images
    H, P = backbone(x)
    regions = RegionSet(H, P)
    W, L = graph_builder.build(regions)
    H_ = operator(H, L)
    g = readout(H_)
    assert W.shape == L.shape == (2, 196, 196) and g.shape == (2, 192)

    torch.testing.assert_close(H_, torch.linalg.matrix_exp(-operator.t * L) @ H.double())
    torch.testing.assert_close(g, H_.mean(1))
    named = RegionSet(features=H, positions=P)
    assert torch.equal(named.features, H) and torch.equal(graph_builder.build(named).W, W)
    assert torch.equal(operator.forward(H, L), H_) and torch.equal(readout.forward(H_), g)


def test_one_image_has_one_graph():
    """The guide speaks of ``(N, N)``: one image without a batch is a batch of one."""
    H, P = torch.randn(9, 4), torch.rand(9, 2)
    W, L = RegionGraphBuilder().build(RegionSet(H, P))
    assert W.shape == (1, 9, 9) and DiffusionOperator(t=1.0)(H, L[0]).shape == (9, 4)


def test_the_head_of_the_guide_fits_predicts_and_splits_its_logits():
    G_train, Y_train = torch.randn(30, 5), torch.arange(30) % 3
    g_test = torch.randn(5)
    head = RidgeHead()
    head.fit(G_train, Y_train)
    logits = head.predict(g_test)

    A = G_train.double().T @ G_train.double() + torch.eye(5)  # the default penalty is 1
    Y = torch.eye(3, dtype=torch.double)[Y_train]
    torch.testing.assert_close(
        logits, g_test.double() @ torch.linalg.inv(A) @ G_train.double().T @ Y
    )
    shares = training_contribution(g_test, G_train, head.alpha)
    assert shares.shape == (30, 3)
    torch.testing.assert_close(shares.sum(0), logits)
