"""Grad-CAM: by hand, against literal formulas, against captum and grad-cam; and what it says
instead of a silent zero.
"""

import copy
import re
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from ctrace.check import fingerprint
from ctrace.look.gradcam import WEIGHTS, GradCAM
from ctrace.look.hooks import capture
from ctrace.world.models import load_model
from ctrace.world.tokens import tokens_to_map
from tests import reference_gradcam as reference
from tests.reference_gradcam import Embedder, Residual, make_vit

TARGETS = [1, 5, 9]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def batch(b=3, size=(64, 64), dtype=torch.float32):
    return torch.randn(b, 3, *size, generator=seeded(0)).to(dtype)


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return timm.create_model("resnet18", num_classes=10, zero_init_last=False).eval()


def test_one_conv_layer_by_hand():
    """Score 2 * mean(A_0) - 3 * mean(A_1) with A_0 = red, A_1 = green on a 2 x 3 image: alpha is
    (2, -3) / 6.
    """
    conv, head = nn.Conv2d(3, 2, 1, bias=False), nn.Linear(2, 1, bias=False)
    conv.weight.data = torch.tensor([[1.0, 0, 0], [0, 1, 0]])[:, :, None, None]
    head.weight.data = torch.tensor([[2.0, -3]])
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    image = torch.tensor([[[1.0, 0, 0], [0, 0, 4]], [[0, 1, 0], [0, 0, 2]], [[9, 9, 9], [9, 9, 9]]])
    result = GradCAM(model).explain(image, target=0)
    torch.testing.assert_close(result.weights, torch.tensor([[2.0, -3]]) / 6)
    torch.testing.assert_close(result.raw[0], torch.tensor([[2.0, -3, 0], [0, 0, 2]]) / 6)
    torch.testing.assert_close(result.score, torch.tensor([2 * 5 / 6 - 3 * 3 / 6]))
    np.testing.assert_allclose(
        GradCAM(model).compute_attribution(image, target=0), [[1, 0, 0], [0, 0, 1]], atol=1e-7
    )
    np.testing.assert_allclose(
        GradCAM(model).compute_attribution(image, target=0, relu=False),
        [[2 / 3, -1, 0], [0, 0, 2 / 3]],
        atol=1e-7,
    )


@pytest.mark.parametrize("method", WEIGHTS)
def test_every_method_equals_its_literal_formula(method):
    model = Residual().double()
    # activations >= 0, as Grad-CAM++ assumes, under gradients that differ from place to place
    model.stem.bias.data += 3
    image = batch(2, (6, 7), torch.float64)
    with capture(model, "stem") as seen:
        seen.backward(
            model(image)[:, 2].sum() * 20
        )  # gradients of about 1, so that powers of g matter
    acts, grads = seen["stem"].activation, seen["stem"].gradient
    assert (acts >= 0).all() and grads.std((2, 3)).min() > 0.01 and grads.min() < 0 < grads.max()
    result = GradCAM(model, "stem", method=method).explain(image, target=lambda out: out[:, 2] * 20)
    for i in range(2):
        expected = reference.METHODS[method](acts[i], grads[i])
        torch.testing.assert_close(
            result.raw[i], expected, rtol=0, atol=1e-12 * expected.abs().max().item()
        )


def test_methods_differ_from_each_other(resnet):
    maps = [GradCAM(resnet, "layer3", method=m).explain(batch(1), target=3).raw for m in WEIGHTS]
    assert all(not torch.allclose(a, b, rtol=0.05) for i, a in enumerate(maps) for b in maps[:i])


def test_gradcam_plus_plus_refuses_a_denominator_its_derivation_excludes():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(8, 1))
    model[0].weight.data.fill_(-1)
    model[2].weight.data.fill_(1)
    with pytest.raises(ArithmeticError, match="assuming activations >= 0.*behind a ReLU"):
        GradCAM(model, method="gradcam++").explain(torch.ones(3, 2, 2), target=0)


@pytest.mark.parametrize("layer", ["last conv", "layer4", "layer2.0.bn1"])
def test_raw_maps_equal_captum(resnet, layer):
    attr = pytest.importorskip("captum.attr")
    cam = GradCAM(resnet, layer)
    module = dict(resnet.named_modules())[cam.target_layer_name]
    theirs = attr.LayerGradCam(resnet, module).attribute(batch(), target=TARGETS)[:, 0]
    ours = cam.explain(batch(), target=TARGETS).raw
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-6 * theirs.abs().max().item())
    assert theirs.abs().max() > 0


def peer_maps(name, model, layer, image, targets, **settings):
    """grad-cam's own maps before its ReLU and scaling."""
    cam = pytest.importorskip("pytorch_grad_cam")
    pick = pytest.importorskip("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    kind = getattr(cam, name)
    with kind(model, [layer], **settings) as peer:
        peer(image, [pick(k) for k in targets])
        kept = peer.activations_and_grads
        maps = peer.get_cam_image(
            image, layer, None, kept.activations[0].numpy(), kept.gradients[0].numpy(), False
        )
    model.zero_grad(set_to_none=True)
    return maps


PEERS = {
    "gradcam": "GradCAM",
    "layercam": "LayerCAM",
    "hirescam": "HiResCAM",
    "gradcam++": "GradCAMPlusPlus",
}


@pytest.mark.parametrize("method", PEERS)
def test_raw_maps_equal_the_grad_cam_package(resnet, method):
    image = batch(dtype=torch.float64)
    model = copy.deepcopy(resnet).double()
    sharp = nn.Sequential(
        model, Scale(1e5)
    )  # its constant 1e-6 in GradCAM++ is small only beside large gradients
    theirs = peer_maps(PEERS[method], sharp, model.layer3, image, TARGETS)
    ours = GradCAM(sharp, model.layer3, method=method).explain(image, target=TARGETS).raw
    np.testing.assert_allclose(
        ours, theirs, rtol=0, atol=(1e-4 if method == "gradcam++" else 1e-6) * abs(theirs).max()
    )


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def test_the_display_map_equals_the_grad_cam_package_up_to_its_subtracted_minimum(resnet):
    cam = pytest.importorskip("pytorch_grad_cam")
    pick = pytest.importorskip("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    targets = [1, 3, 0]  # with these every image has evidence
    with cam.GradCAM(resnet, [resnet.layer2]) as peer:
        theirs = peer(batch(), [pick(k) for k in targets])
    resnet.zero_grad(set_to_none=True)
    ours = GradCAM(resnet, "layer2").compute_attribution(batch(), target=targets)
    low, high = ours.min((1, 2), keepdims=True), ours.max((1, 2), keepdims=True)
    np.testing.assert_allclose((ours - low) / (high - low), theirs, atol=1e-5)


@pytest.mark.parametrize(
    "prefix", [dict(), dict(reg_tokens=4), dict(class_token=True, reg_tokens=1)]
)
def test_a_vit_block_equals_the_literal_formula(prefix):
    vit = make_vit(**prefix).double()
    image = batch(1, (48, 48), torch.float64)
    for block in (1, 2):
        expected = reference.gradcam(*reference.vit_block(vit, image, 4, block))
        result = GradCAM(vit, f"blocks.{block}.norm1").explain(image, target=4)
        torch.testing.assert_close(result.raw[0], expected, rtol=1e-9, atol=1e-12)


def test_a_vit_equals_the_grad_cam_package():
    vit = make_vit()
    image = batch(3, (48, 48))
    turn = lambda t: t[:, 1:].reshape(len(t), 6, 6, -1).permute(0, 3, 1, 2)
    theirs = peer_maps("GradCAM", vit, vit.blocks[2].norm1, image, TARGETS, reshape_transform=turn)
    ours = GradCAM(vit).explain(image, target=TARGETS)
    assert ours.target_layer == "blocks.2.norm1"
    np.testing.assert_allclose(ours.raw, theirs, rtol=0, atol=1e-6 * abs(theirs).max())


@pytest.mark.parametrize("layer", ["blocks.2", "norm", "blocks.2.norm2"])
def test_a_dead_layer_of_a_class_token_vit_is_said_and_the_layer_it_names_works(layer):
    vit, image = make_vit(), batch(2, (48, 48))
    result = GradCAM(vit, layer).explain(image, target=1)
    assert (
        result.status == ["dead_layer"] * 2 and not result.raw.any() and not result.heatmap().any()
    )
    with pytest.raises(ValueError, match="image 0: dead_layer.*class token only"):
        GradCAM(vit, layer).compute_attribution(image, target=1)
    named = re.search("target_layer='(.+)'", result.explanation[0]).group(1)
    assert GradCAM(vit, named).explain(image, target=1).raw.flatten(1).any(1).all()


def test_an_early_layer_that_is_cut_off_is_not_blamed_on_the_pooling():
    vit = make_vit()
    vit.blocks[1].register_forward_hook(lambda module, inputs, output: output.detach())
    result = GradCAM(vit, "blocks.0").explain(batch(1, (48, 48)), target=1)
    assert (
        result.status == ["dead_layer"]
        and "detached" in result.explanation[0]
        and "class token" not in result.explanation[0]
    )


def test_the_same_layer_of_a_mean_pooled_vit_is_alive():
    vit = make_vit(class_token=False, global_pool="avg")
    assert "dead_layer" not in GradCAM(vit, "blocks.2").explain(batch(2, (48, 48)), target=1).status


def test_a_padded_input_is_cropped_back_to_the_image():
    vit = make_vit(dynamic_img_size=True, dynamic_img_pad=True)
    result = GradCAM(vit).explain(batch(1, (43, 61)), target=0)
    assert result.raw.shape == (1, 6, 8) and result.heatmap().shape == (1, 43, 61)
    whole = F.interpolate(result.raw.relu()[:, None], (48, 64), mode="bilinear")[0, 0, :43, :61]
    np.testing.assert_allclose(result.heatmap(normalize=False)[0], whole, atol=1e-7)


def test_a_model_that_does_not_say_its_grid_takes_a_function_and_a_wrong_axis_is_refused():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make_vit()

        def forward(self, x):
            return self.net(x)

    model, image = Wrapped(), batch(1, (48, 48))
    with pytest.raises(ValueError, match="to_map=lambda"):
        GradCAM(model, "net.blocks.2.norm1").explain(image, target=0)
    turned = GradCAM(
        model, "net.blocks.2.norm1", to_map=lambda t: tokens_to_map(t, model.net, (48, 48))
    ).explain(image, target=0)
    assert torch.equal(turned.raw, GradCAM(model.net).explain(image, target=0).raw)
    with pytest.raises(ValueError, match="on axis 2"):
        GradCAM(
            model.net, to_map=lambda t: tokens_to_map(t.transpose(1, 2), model.net, (48, 48))
        ).explain(image, target=0)


def test_a_swin_and_a_convnext_are_read_channels_first():
    for name, layer in [
        ("swin_tiny_patch4_window7_224", "layers.1.blocks.0"),
        ("convnext_atto", "stages.1.blocks.0.mlp.fc1"),
    ]:
        sizes = (
            dict(img_size=56, window_size=7, depths=(1, 1), num_heads=(2, 2), embed_dim=12)
            if "swin" in name
            else {}
        )
        model = timm.create_model(name, num_classes=4, **sizes).eval()
        result = GradCAM(model, layer).explain(batch(1, (56, 56)), target=0)
        assert result.raw.shape == (1, 7, 7)


@pytest.mark.parametrize(
    "make",
    [lambda: timm.create_model("resnet18", num_classes=10, zero_init_last=False).eval(), make_vit],
)
def test_a_batch_equals_one_by_one(make):
    torch.manual_seed(0)
    model = make().double()
    image = batch(4, (48, 48), torch.float64)
    references = torch.randn(4, 10, generator=torch.Generator().manual_seed(2))
    one_each = dict(target_embedding=references)
    for questions in (
        dict(target=[1, 5, 9, 0]),
        one_each,
        dict(one_each, baseline_embedding=references.flip(0)),
    ):
        together = GradCAM(model).explain(image, **questions)
        for i in range(4):
            alone = GradCAM(model).explain(image[i], **{k: v[i] for k, v in questions.items()})
            torch.testing.assert_close(
                together.raw[i], alone.raw[0], rtol=0, atol=1e-6 * alone.raw.abs().max().item()
            )
            assert together.status[i] == alone.status[0] and together.raw[i].any()


@pytest.mark.parametrize("switch", ["frozen", "inplace off"])
def test_frozen_and_in_place_models_give_the_same_numbers(switch):
    model = Residual(inplace=True)
    expected = GradCAM(model, "norm").explain(batch(), target=2).raw
    other = Residual(inplace=switch == "frozen").requires_grad_(switch != "frozen")
    assert torch.equal(GradCAM(other, "norm").explain(batch(), target=2).raw, expected)


def test_the_model_is_left_exactly_as_found_also_after_a_refusal(resnet):
    resnet.fc.weight.grad = torch.ones_like(resnet.fc.weight)
    before = fingerprint(resnet)
    with GradCAM(resnet) as cam:
        cam.compute_attribution(batch(), target=TARGETS, relu=False)
        with pytest.raises(ValueError):
            cam.explain(batch(), target=[1])
        assert fingerprint(resnet) == before
    with pytest.raises(IndexError), GradCAM(resnet):
        [][0]
    resnet.fc.weight.grad = None


def test_embedding_maps_equal_captum_on_a_wrapped_similarity():
    attr = pytest.importorskip("captum.attr")
    model, image = Embedder(True), batch()
    reference_embedding = model(image[:1]).detach()[0]
    theirs = attr.LayerGradCam(
        lambda x: F.cosine_similarity(model(x), reference_embedding[None]), model.deep
    ).attribute(image[1:])[:, 0]
    ours = GradCAM(model).explain(image[1:], target_embedding=reference_embedding)
    torch.testing.assert_close(
        ours.raw, theirs.detach(), rtol=0, atol=1e-6 * theirs.abs().max().item()
    )


@pytest.mark.parametrize(
    "ask",
    [
        dict(target="norm"),
        dict(target_embedding="self"),
        dict(target_embedding="self", target="euclidean"),
    ],
)
def test_saturated_targets_are_refused_in_words(ask):
    model, image = Embedder(True), batch()
    ask = {k: model(image).detach() if v == "self" else v for k, v in ask.items()}
    result = GradCAM(model).explain(image, **ask)
    assert (
        result.status == ["saturated_target"] * 3
        and not result.raw.any()
        and not result.weights.any()
    )
    with pytest.raises(
        ValueError, match="image 2: saturated_target: .*(normalises|same embedding)"
    ):
        GradCAM(model).compute_attribution(image, **ask)


def test_the_norm_of_an_embedding_that_is_not_normalised_is_explained():
    assert GradCAM(Embedder(False)).explain(batch(), target="norm").raw.flatten(1).any(1).all()


def test_both_images_of_a_pair_are_explained_by_the_other_in_one_pass():
    model, (first, second) = Embedder(True), batch(2)
    pair = GradCAM(model).explain_pair(first, second)
    embeddings = model(torch.stack([first, second])).detach()
    for i, (image, other) in enumerate([(first, embeddings[1]), (second, embeddings[0])]):
        torch.testing.assert_close(
            pair.raw[i], GradCAM(model).explain(image, target_embedding=other).raw[0]
        )
    torch.testing.assert_close(pair.score[0], pair.score[1])
    assert GradCAM(model).explain_pair(first, first).status == ["saturated_target"] * 2
    with pytest.raises(ValueError, match="two single images of one size"):
        GradCAM(model).explain_pair(first, batch(2))


def test_another_reference_gives_another_map():
    model, image = Embedder(True), batch()
    references = model(batch(5)).detach()
    a, b = (
        GradCAM(model).explain(image[:1], target_embedding=references[k]).weights[0] for k in (3, 4)
    )
    assert F.cosine_similarity(a, b, dim=0) < 0.99


def test_a_contrast_is_the_difference_of_two_similarity_maps():
    model, image = Embedder(True), batch()
    a, b = model(batch(5)).detach()[3:]
    cam = GradCAM(model)
    both = cam.explain(image, target_embedding=a, baseline_embedding=b).raw
    each = [cam.explain(image, target_embedding=r).raw for r in (a, b)]
    torch.testing.assert_close(both, each[0] - each[1], rtol=1e-4, atol=1e-7)
    assert (
        cam.explain(image, target_embedding=a, baseline_embedding=a).status
        == ["saturated_target"] * 3
    )


def test_no_evidence_is_zero_with_a_warning_never_rescaled():
    model = nn.Sequential(
        nn.Conv2d(3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1)
    )
    model[4].weight.data = -model[4].weight.data.abs()
    image = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    model[0].bias.data.fill_(1)
    result = GradCAM(model, "1").explain(image, target=0)
    assert (
        result.status == ["no_evidence"]
        and "negative everywhere" in result.explanation[0]
        and (result.raw < 0).all()
    )
    with pytest.warns(UserWarning, match="image 0: no_evidence: .*relu=False"):
        assert not GradCAM(model, "1").compute_attribution(image, target=0).any()
    signed = GradCAM(model, "1").compute_attribution(
        image, target=0, relu=False
    )  # any warning is an error here
    assert signed.min() == -1 and signed.max() < 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_weights_that_cancel_to_rounding_are_no_evidence(dtype):
    """In front of an instance normalisation the gradients of each channel sum to zero, so every
    Grad-CAM weight is rounding noise.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.GELU(), nn.Flatten(), nn.Linear(8 * 36, 2)
    ).to(dtype)
    image = batch(3, (8, 8), dtype)
    result = GradCAM(model, "0").explain(image, target=1)
    assert (
        result.status == ["no_evidence"] * 3
        and not result.raw.any()
        and "cancel" in result.explanation[0]
    )
    with pytest.raises(ValueError, match="all weights of image 1 are zero"):
        result.ranking(image=1)
    assert GradCAM(model, "1").explain(image, target=1).raw.flatten(1).any(1).all()
    assert (
        GradCAM(model, "0", method="hirescam").explain(image, target=1).raw.flatten(1).any(1).all()
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["aviary-vit-0", "aviary-vit-1", "aviary-vit-2"])
def test_products_that_cancel_in_front_of_a_layer_norm_are_no_evidence(name, dtype):
    """LayerNorm forgets how long a token is, so behind the last block the slope is at right angles
    to every token: HiResCAM sums products that cancel. Grad-CAM, and HiResCAM behind the norm, do
    not.
    """
    vit = load_model(name, device="cpu").to(dtype)
    images = vit.info.preprocess(torch.rand(4, 3, 96, 96, generator=seeded(1))).to(dtype)

    def explained(layer, method):
        return GradCAM(vit, layer, method=method).explain(images, target=2)

    with capture(vit, "blocks.3") as seen:
        seen.backward(vit(images)[:, 2].sum())
    products = (seen["blocks.3"].gradient * seen["blocks.3"].activation)[:, 1:].float()
    assert products.sum(2).any()  # nothing exact: the status has to see it
    blind = explained("blocks.3", "hirescam")
    assert blind.status == ["no_evidence"] * 4 and not blind.raw.any()
    assert "sums cancel" in blind.explanation[0] and "behind it" in blind.explanation[0]
    for layer, method in [("blocks.3", "gradcam"), ("norm", "hirescam"), ("blocks.2", "hirescam")]:
        assert explained(layer, method).raw.flatten(1).any(1).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_products_of_random_signs_are_evidence_however_many(method, dtype):
    model = nn.Sequential(nn.Conv2d(3, 4096, 1), nn.Flatten(), nn.Linear(4096 * 4, 1))
    model[2].weight.data = torch.randn(1, 4096 * 4, generator=seeded(2))
    model[0].bias.data = torch.randn(4096, generator=seeded(3))
    image = batch(3, (2, 2), dtype)
    result = GradCAM(model.to(dtype), "0", method=method).explain(image, target=lambda o: o[:, 0])
    assert result.raw.flatten(1).any(1).all()


def test_a_shut_network_is_a_dead_layer():
    model = nn.Sequential(
        nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(32, 4), nn.ReLU(), nn.Linear(4, 1)
    )
    model[2].bias.data.fill_(-100)
    result = GradCAM(model).explain(torch.rand(3, 4, 4), target=0)
    assert result.status == ["dead_layer"] and "every path to it is shut" in result.explanation[0]


def test_a_weak_image_keeps_its_scale_in_the_raw_map_and_its_shape_in_the_display():
    model = Residual()
    result = GradCAM(model, "relu").explain(
        batch(), target=lambda out: out[:, 0] * torch.tensor([1.0, 1e-3, 1])
    )
    strong = GradCAM(model, "relu").explain(batch(), target=0)
    torch.testing.assert_close(result.raw[1], strong.raw[1] * 1e-3)
    np.testing.assert_allclose(
        result.heatmap(relu=False)[1], strong.heatmap(relu=False)[1], atol=1e-5
    )


def test_shapes_range_and_repeatability(resnet):
    cam = GradCAM(resnet, "layer2", device="cpu")
    ask = dict(target_embedding=torch.ones(10))
    for image, shape in [
        (batch()[0], (64, 64)),
        (batch(1, (64, 40)), (1, 64, 40)),
        (batch(), (3, 64, 64)),
    ]:
        map_ = cam.compute_attribution(image, **ask)
        assert (
            isinstance(map_, np.ndarray)
            and map_.shape == shape
            and map_.min() >= 0
            and map_.max() == 1
        )
        assert np.array_equal(map_, cam.compute_attribution(image, **ask))


def test_what_is_asked_is_named():
    for call in (GradCAM(Residual()).explain, GradCAM(Residual()).compute_attribution):
        with pytest.raises(TypeError, match="positional"):
            call(batch(), 0)


def test_the_sanity_checks_of_a_hand_written_class_find_what_they_print():
    image, embedding = batch(1), torch.ones(5)
    cam = GradCAM(Residual(), target_layer=None, device="cpu")
    assert cam.activations is None and cam.gradients is None
    first = cam.compute_attribution(image, target_embedding=embedding)
    assert cam.target_layer_name == "conv"
    assert cam.activations.shape == cam.gradients.shape == (1, 4, 64, 64)
    explained = cam.explain(image, target_embedding=embedding)
    literal = (cam.gradients.mean((2, 3), keepdim=True) * cam.activations).sum(1)
    torch.testing.assert_close(explained.raw, literal)
    cam.remove_hooks()
    assert np.array_equal(first, cam.compute_attribution(image, target_embedding=embedding))
    assert first.shape == (1, 64, 64) and first.min() == 0 and first.max() == 1


def test_threads_that_share_a_model_get_their_own_maps(resnet):
    model, images = copy.deepcopy(resnet), batch(8)
    cam = GradCAM(model, "layer3")
    alone = [cam.explain(image, target=i).raw for i, image in enumerate(images)]
    with ThreadPoolExecutor(4) as pool:
        asked = [i % 8 for i in range(40)]
        together = pool.map(
            lambda i: GradCAM(model, "layer3").explain(images[i], target=i).raw, asked
        )
        assert all(torch.equal(found, alone[i]) for i, found in zip(asked, together))
    assert not any(module._forward_hooks for module in model.modules())


def test_rankings_order_channels_by_support_inhibition_and_magnitude(resnet):
    result = GradCAM(resnet).explain(batch(), target=TARGETS)
    weights = result.weights[1]
    support, inhibit, strongest = (
        result.ranking(kind, image=1) for kind in ("support", "inhibit", "abs")
    )
    assert (
        support[0] == weights.argmax()
        and support[-1] == weights.argmin()
        and sorted(support.tolist()) == list(range(512))
    )
    assert inhibit[0] == weights.argmin() and strongest[0] == weights.abs().argmax()
    assert torch.equal(result.ranking()[1], support)
    assert result.table(1, "inhibit", top=1) == [
        (int(inhibit[0]), f"channel {inhibit[0]}", float(weights.min()))
    ]
    assert result.table(1, top=2, names=[f"n{i}" for i in range(512)])[1][1] == f"n{support[1]}"
    with pytest.raises(ValueError, match="support, inhibit, abs"):
        result.ranking("best")


def test_the_weight_of_a_channel_is_the_slope_of_the_score_when_it_is_raised_everywhere():
    model = Residual().double()
    image = batch(1, (6, 6), torch.float64)
    result = GradCAM(model, "norm").explain(image, target=3)

    def raised(channel, step):
        shift = lambda module, inputs, output: output.index_add(
            1, torch.tensor([channel]), torch.full_like(output[:, :1], step)
        )
        handle = model.norm.register_forward_hook(shift)
        with torch.no_grad():
            score = model(image)[0, 3]
        handle.remove()
        return score

    slopes = [(raised(c, 1e-6) - raised(c, -1e-6)) / 2e-6 / 36 for c in range(4)]
    torch.testing.assert_close(result.weights[0], torch.stack(slopes), rtol=1e-6, atol=1e-9)


WRONG = {
    "batch norm in training": (
        lambda: GradCAM(Residual().train()).explain(batch(), target=0),
        "BatchNorm2d 'norm' is in training mode",
    ),
    "one target for three": (
        lambda: GradCAM(Residual()).explain(batch(), target=[0]),
        "one class for each of the 3 images",
    ),
    "unknown method": (
        lambda: GradCAM(Residual(), method="cam"),
        "expected one of gradcam, gradcam\\+\\+",
    ),
    "a pooled layer": (
        lambda: GradCAM(timm.create_model("mobilenetv3_small_050").eval()).explain(
            batch(), target=0
        ),
        "1 x 1",
    ),
    "a linear layer": (
        lambda: GradCAM(Residual(), "head").explain(batch(), target=0),
        "no image axes",
    ),
    "another device": (
        lambda: GradCAM(Residual(), device="meta"),
        "asked for meta, the model is on cpu",
    ),
    "no such layer": (lambda: GradCAM(Residual(), "nrom"), "Nearest names: norm"),
    "a bad to_map": (
        lambda: GradCAM(Residual(), to_map=lambda x: x[0]).explain(batch(), target=0),
        "expected \\(b, c, h, w\\)",
    ),
    "unknown similarity": (
        lambda: GradCAM(Residual()).explain_pair(*batch(2), "l2"),
        "one of cosine, dot, euclidean",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_is_said(case):
    call, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this message is for machines without CUDA")
def test_cuda_without_cuda_is_said():
    with pytest.raises(ValueError, match="sees no CUDA device"):
        GradCAM(Residual(), device="cuda")


def test_no_grad_gets_a_plain_message():
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match="gradients are off: this runs under torch.no_grad"),
    ):
        GradCAM(Residual()).compute_attribution(batch(), target=0)


def test_a_model_that_leaves_torch_on_the_way_is_said():
    class Numpy(Residual):
        def forward(self, x):
            return torch.from_numpy(super().forward(x).detach().numpy())

    with pytest.raises(RuntimeError, match="passes through numpy \\(an ONNX session\\)"):
        GradCAM(Numpy()).explain(batch(), target=0)
    with pytest.raises(ValueError, match="does not come from the output"):
        GradCAM(Residual()).explain(batch(), target=lambda out: out.detach()[:, 0])


def test_a_model_that_returns_a_dictionary_is_said():
    class Dict(Residual):
        def forward(self, x):
            return {"logits": super().forward(x)}

    with pytest.raises(ValueError, match="returned dict.*Wrap the model"):
        GradCAM(Dict()).explain(batch(), target=0)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_agrees_with_double(resnet, device, dtype):
    image = batch(3, (64, 64))
    model = copy.deepcopy(resnet)
    exact = GradCAM(model.double(), "layer3").explain(image, target=TARGETS).raw
    half = GradCAM(model.to(device, dtype), "layer3").explain(image, target=TARGETS)
    assert half.raw.dtype == torch.float32 and half.heatmap().dtype == np.float32
    alike = F.cosine_similarity(half.raw.cpu().flatten(1), exact.float().flatten(1))
    assert (alike > (0.999 if dtype == torch.float16 else 0.98)).all(), alike


def test_overflow_in_half_precision_is_said():
    model = Residual().half()
    with pytest.raises(ArithmeticError, match="try bfloat16 or float32"), warnings.catch_warnings():
        GradCAM(model, "norm").explain(batch(), target=lambda out: (out[:, 0] * 6e4) * 6e4)
