"""The code of the original texts, call by call, with only the import lines changed.

What the texts take from a network, or from a camera, is a small local stand-in here: random or
bundled weights, photographs out of wheels, tables of random numbers. What ours does otherwise on
purpose is a claim of its own, told in the book under "The calls of the original texts".
"""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision import transforms

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# ---- channel tracing ----


@pytest.mark.parametrize("switch", ["track_grad", "exact_gradient"])
def test_quick_start_of_channel_tracing_ranks_the_channels(switch):
    from ctrace import Ncut

    features = torch.randn(30, 30, 300)
    features.requires_grad = True
    features_2d = features.view(-1, features.shape[-1])
    n_eig = 20
    eigvecs = Ncut(n_eig=n_eig, **{switch: True}, device=DEVICE).fit_transform(features_2d)
    loss = eigvecs.sum()
    loss.backward()
    grad = features.grad
    k = 10
    topk_vals, topk_idx = grad.abs().mean(dim=(0, 1)).topk(k)
    assert grad.shape == (30, 30, 300) and bool(torch.isfinite(grad).all())
    assert topk_idx.shape == (10,) and bool((topk_vals > 0).all())


def dino(size=48):
    """A small transformer with random weights in place of DINO: a transform, and its tokens."""
    vit = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, img_size=size, depth=2, num_classes=0
    ).eval()
    dino_img_transform = transforms.Compose(
        [transforms.Resize((size, size)), transforms.ToTensor()]
    )

    @torch.no_grad()
    def extract_dino_image_embeds(batch):
        return vit.forward_features(batch)

    return dino_img_transform, extract_dino_image_embeds


@pytest.fixture
def photos(tmp_path):
    from ctrace import load_photo

    paths = [str(tmp_path / f"{name}.png") for name in ("coffee", "chelsea")]
    for name, path in zip(("coffee", "chelsea"), paths):
        load_photo(name, 96).save(path)
    return paths


def test_channel_tracing_runs_from_photographs_to_the_maps_of_the_leading_channels(photos):
    from ctrace import (
        channel_gradient_from_cluster,
        differentiable_kway_ncut,
        extract_topk_maps,
        load_images_helper,
        prepare_grid_features,
        rank_channels,
        reshape_for_view,
    )

    images = load_images_helper(photos)
    assert all(im.mode == "RGB" for im in load_images_helper([Image.open(p) for p in photos]))
    features, b, h, w = prepare_grid_features(images, *dino())
    assert features.shape == (2 * 3 * 3, 192) and (b, h, w) == (2, 3, 3)

    features = features.clone().requires_grad_(True)
    eigvec, kway_eigvec = differentiable_kway_ncut(features, n_segment=4)

    cluster_assign = kway_eigvec.argmax(1)
    all_cluster_grads = []
    for k in range(kway_eigvec.shape[1]):
        mask_k = (cluster_assign == k).detach().cpu()
        if mask_k.sum() == 0:
            continue
        grad_k = channel_gradient_from_cluster(features, mask_k, kway_eigvec, k)
        all_cluster_grads.append(grad_k)

    order = rank_channels(all_cluster_grads[0], descending=True)
    feature_grid = reshape_for_view(features, b, h, w)
    chs, maps = extract_topk_maps(feature_grid, order, image_index=0, topk=5)
    assert eigvec.shape == kway_eigvec.shape == (18, 4) and len(all_cluster_grads) >= 2
    assert len(chs) == len(maps) == 5 and np.array_equal(maps[0], feature_grid[0, :, :, chs[0]])


def test_gradient_of_a_segment_has_the_opposite_sign_and_literal_gives_that_of_the_text():
    from ctrace import channel_gradient_from_cluster, differentiable_kway_ncut

    blobs = 3 * torch.eye(3, 12).repeat_interleave(20, 0) + torch.randn(60, 12)
    features = blobs.requires_grad_(True)
    _, kway_eigvec = differentiable_kway_ncut(features, n_segment=3)
    cluster_mask = kway_eigvec.argmax(1) == 0
    ours = channel_gradient_from_cluster(features, cluster_mask, kway_eigvec, 0)
    literal = channel_gradient_from_cluster(features, cluster_mask, kway_eigvec, 0, order="literal")
    assert features.grad is None  # the text adds to it

    loss = -kway_eigvec[cluster_mask, 0].abs().mean()
    loss.backward(retain_graph=True)
    grad = features.grad[cluster_mask].mean(0)
    torch.testing.assert_close(literal, grad)
    assert torch.equal(ours, -literal) and bool(ours.abs().max() > 0)


# ---- Grad-CAM ----


class Face(nn.Module):
    """In place of a face recognition network: pictures to embeddings ``(b, 512)``."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU()
        )
        self.dropout, self.embed = nn.Dropout(0.2), nn.Linear(16, 512)

    def forward(self, x):
        return self.embed(self.dropout(self.features(x).mean((2, 3))))


@pytest.fixture
def model():
    return Face().eval()


@pytest.fixture
def image_tensor(photos):
    transform = transforms.Compose(
        [
            transforms.Resize((112, 112)),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5]),
        ]
    )
    return transform(Image.open(photos[0]).convert("RGB")).unsqueeze(0)  # (1, 3, 112, 112)


def as_in_the_text(model, layer, image, score):
    """The map by the steps of the text: hooks, mean gradient, ReLU, resized, minimum to 0, maximum
    to 1.
    """
    seen = {}
    hooks = [
        layer.register_forward_hook(lambda m, i, out: seen.update(acts=out.detach())),
        layer.register_full_backward_hook(lambda m, i, grads: seen.update(grads=grads[0].detach())),
    ]
    score(model(image.clone().requires_grad_(True))).sum().backward()
    for hook in hooks:
        hook.remove()
    weights = seen["grads"].mean(dim=(2, 3), keepdim=True)
    cam = F.relu((weights * seen["acts"]).sum(dim=1, keepdim=True))
    cam = F.interpolate(cam, size=image.shape[2:], mode="bilinear", align_corners=False).squeeze()
    return cam, (cam - cam.min()) / (cam.max() - cam.min())


def test_gradcam_script_draws_the_map_of_a_picture(model, image_tensor):
    from ctrace import GradCAM

    embedding = torch.randn(512)
    gradcam = GradCAM(model, target_layer=None, device=DEVICE)
    attribution_map = gradcam.compute_attribution(
        image_tensor.to(DEVICE), target_embedding=embedding.to(DEVICE)
    )
    assert isinstance(attribution_map, np.ndarray) and attribution_map.shape == (1, 112, 112)
    fig, axes = plt.subplots(1, 3, figsize=(15, 5))
    im = axes[1].imshow(attribution_map[0], cmap="jet")
    plt.colorbar(im, ax=axes[1])
    plt.close(fig)


def test_sanity_checks_of_the_gradcam_text_hold(model, image_tensor):
    from ctrace import GradCAM

    gradcam = GradCAM(model, target_layer="features.2", device=DEVICE)
    target = dict(target_embedding=torch.randn(512))
    attribution_map = gradcam.compute_attribution(image_tensor, **target)
    assert gradcam.activations.shape[:2] == (1, 16) and max(gradcam.activations.shape[2:]) < 112
    assert gradcam.gradients.shape == gradcam.activations.shape
    assert attribution_map.min() >= 0 and attribution_map.max() == 1
    assert np.array_equal(attribution_map, gradcam.compute_attribution(image_tensor, **target))
    assert gradcam.target_layer_name == "features.2"
    gradcam.remove_hooks()
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


def test_map_for_a_reference_embedding_is_that_of_the_text(model, image_tensor):
    from ctrace import GradCAM

    reference = torch.randn(512)
    ours = GradCAM(model).compute_attribution(image_tensor, target_embedding=reference)[0]
    cam, stretched = as_in_the_text(
        model,
        model.features[2],
        image_tensor,
        lambda out: F.cosine_similarity(out, reference[None]),
    )
    assert cam.min() == 0
    np.testing.assert_allclose(ours, stretched, atol=1e-5)


def test_map_without_a_target_explains_the_norm_and_its_minimum_is_not_subtracted(
    model, image_tensor
):
    from ctrace import GradCAM

    with pytest.warns(UserWarning, match="norm of the output"):
        ours = GradCAM(model).compute_attribution(image_tensor)[0]
    layer = model.features[2]
    cam, stretched = as_in_the_text(model, layer, image_tensor, lambda out: out.norm(dim=-1))
    np.testing.assert_allclose(ours, cam / cam.max(), atol=1e-5)
    assert cam.min() > 0 and not np.allclose(ours, stretched, atol=1e-3)


def test_baseline_is_subtracted_where_the_text_takes_it_and_forgets_it(model, image_tensor):
    from ctrace import GradCAM

    gradcam, reference, baseline = GradCAM(model), torch.randn(512), torch.randn(512)
    asked = dict(target_embedding=reference)
    with_it = gradcam.compute_attribution(image_tensor, **asked, baseline_embedding=baseline)[0]

    def contrast(out):
        return F.cosine_similarity(out, reference[None]) - F.cosine_similarity(out, baseline[None])

    cam, _ = as_in_the_text(model, model.features[2], image_tensor, contrast)
    np.testing.assert_allclose(with_it, cam / cam.max(), atol=1e-5)
    assert not np.allclose(with_it, gradcam.compute_attribution(image_tensor, **asked)[0])


def test_default_layer_is_the_last_convolution_that_is_not_in_a_shortcut():
    from ctrace import GradCAM

    net = timm.create_model("resnet10t", pretrained=False).eval()
    convolutions = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    assert "downsample" in convolutions[-1]  # what the text takes
    assert GradCAM(net).target_layer_name == "layer4.0.conv2"


def test_train_mode_is_refused_where_the_text_switches_it_off(model, image_tensor):
    from ctrace import GradCAM

    model.train()
    with pytest.raises(ValueError, match="eval"):
        GradCAM(model).compute_attribution(image_tensor)
    assert model.training


def test_unknown_layer_and_a_network_without_convolution_are_refused_as_in_the_text(model):
    from ctrace import GradCAM

    with pytest.raises(ValueError, match="layer4.2.conv3"):
        GradCAM(model, target_layer="layer4.2.conv3")
    with pytest.raises(ValueError, match="Conv2d"):
        GradCAM(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval())


def test_wrapper_that_leaves_torch_for_numpy_is_refused_with_the_reason(model, image_tensor):
    from ctrace import GradCAM

    class InsightFaceWrapper(torch.nn.Module):
        def __init__(self, app):
            super().__init__()
            self.rec_model = app

        def forward(self, x):
            x_np = x.squeeze(0).permute(1, 2, 0).detach().cpu().numpy()
            x_np = ((x_np * 0.5 + 0.5) * 255).astype(np.uint8)
            emb = self.rec_model(torch.from_numpy(x_np).permute(2, 0, 1)[None] / 255)[0]
            return emb.detach().to(x.device)[None]

    with pytest.raises(RuntimeError, match="passes through numpy"):
        GradCAM(InsightFaceWrapper(model).eval()).compute_attribution(image_tensor)


def test_maps_of_an_experiment_vary_from_pair_to_pair(model, image_tensor):
    from ctrace import GradCAM

    gradcam = GradCAM(model, target_layer=None, device=DEVICE)
    maps = [
        gradcam.compute_attribution(image_tensor, target_embedding=ref_embedding)
        for ref_embedding in torch.randn(4, 512)
    ]
    assert all(not np.allclose(maps[0], other) for other in maps[1:])


# ---- ParchGrad ----


@pytest.fixture
def birds():
    from ctrace import load_model
    from ctrace.aviary import Aviary

    data = Aviary("test", 28)
    images, labels = zip(*(data[i] for i in range(28)))
    model = load_model("aviary-resnet-0", device="cpu")
    return model.info.preprocess(torch.stack(images)), torch.tensor(labels)


@pytest.mark.parametrize("method", ["cls", "ins", "normal"])
def test_code_of_parchgrad_runs_from_the_model_to_the_attribution(birds, tmp_path, method):
    from ctrace import ChannelStatistics
    from ctrace.published import (
        STATISTICS_FILE,
        get_hook_wrapper,
        get_input_attrib,
        get_pretrained_model,
    )

    x, y = birds[0][:4], birds[1][:4]
    flags = SimpleNamespace(
        method=method,
        alpha=0.2,
        p_value_threshold=1.0,
        variance_conservation=True,
        exact_variance=False,
        gamma_infinity=True,
    )
    encoder = "aviary-resnet-0"  # bundled; "resnet18" where its weights can be had
    device = "cpu"
    base_dir = tmp_path / encoder
    model = get_pretrained_model(encoder)
    model.to(device)
    model.eval()
    base_dir.mkdir()
    ChannelStatistics.collect(model, [birds], progress=False).save(base_dir / STATISTICS_FILE)

    wrapper = get_hook_wrapper(encoder, model, "ins" if method == "ins" else "cls")
    wrapper.prepare_parchgrad(base_directory=base_dir, device=device)
    layer_ratio = None
    selected_convolutions = wrapper.get_default_hook_convolutions(layer_ratio)
    wrapper.set_hook_modules(selected_convolutions)

    input_attrib = get_input_attrib("grad")
    attr = input_attrib(
        wrapper,
        x,
        y,
        cls=y,
        modify_gradient=False if flags.method == "normal" else True,
        quantile=None,
        alpha=flags.alpha,
        p_value_threshold=flags.p_value_threshold,
        variance_conservation=flags.variance_conservation,
        exact_variance=flags.exact_variance,
        gamma_infinity=flags.gamma_infinity,
        enable_forward_hook=True if flags.method == "ins" else False,
    )
    assert attr.shape == (4, *x.shape[2:]) and bool((attr >= 0).all()) and bool(attr.any())
    plain = input_attrib(wrapper, x, y, modify_gradient=False)
    assert torch.equal(attr, plain) == (method == "normal")


# ---- CARROT ----

TINY = ("vit_tiny_patch16_224", dict(pretrained=False, img_size=48))
BUNDLED = ("aviary-vit-0", dict(pretrained=True))


@pytest.mark.parametrize("name, options", [TINY, BUNDLED])
def test_backbone_is_a_frozen_module_that_gives_tokens_and_their_centres(name, options):
    from ctrace.world.tokens import TimmViTPatchBackbone

    backbone = TimmViTPatchBackbone(name, freeze=True, out_norm=True, **options)
    assert isinstance(backbone, nn.Module)
    assert not any(p.requires_grad for p in backbone.parameters())
    size = options.get("img_size", 96)
    images = torch.rand(2, 3, size, size)
    out = backbone(images)
    H = out.H  # (B, N, D)
    P = out.P  # (N, 2)
    gh, gw = out.grid_hw
    assert H.shape[:2] == (2, gh * gw) and P.shape == (gh * gw, 2)
    assert (gh * out.patch_hw[0], gw * out.patch_hw[1]) == (size, size)
    torch.testing.assert_close(P[0], torch.tensor([1 / gw - 1, 1 / gh - 1]).to(P))


@pytest.fixture
def tokens():
    from ctrace.world.tokens import TimmViTPatchBackbone

    backbone = TimmViTPatchBackbone(TINY[0], freeze=True, out_norm=True, **TINY[1])
    out = backbone(torch.rand(2, 3, 48, 48))
    return out.H.double(), out.P.double()


def test_pipeline_of_carrot_runs_as_written(tokens):
    from ctrace.carrot import DiffusionOperator, GraphReadout, RegionGraphBuilder, RegionSet

    H, P = tokens
    graph_builder, operator, readout = (
        RegionGraphBuilder(),
        DiffusionOperator(t=0.5),
        GraphReadout(),
    )
    regions = RegionSet(H, P)
    W, L = graph_builder.build(regions)
    H_ = operator(H, L)
    g = readout(H_)
    assert W.shape == L.shape == (2, 9, 9) and g.shape == (2, 192)
    torch.testing.assert_close(H_, torch.matrix_exp(-0.5 * L) @ H)
    torch.testing.assert_close(g, H_.mean(1))
    d = W.sum(-1)
    normalised = W / (d[:, :, None] * d[:, None, :]).sqrt()
    torch.testing.assert_close(L, torch.eye(9).to(L) - normalised)
    assert torch.equal(operator.forward(H, L), H_) and torch.equal(readout.forward(H_), g)


def test_region_set_has_the_fields_of_the_text_and_both_kernels_of_the_graph(tokens):
    from ctrace.carrot import RegionGraphBuilder, RegionSet

    H, P = tokens
    regions = RegionSet(features=H, positions=P)
    assert torch.equal(regions.features, H) and torch.equal(
        regions.positions.expand(2, -1, -1)[0], P
    )
    W, _ = RegionGraphBuilder(sigma_s=0.7, sigma_f=20.0).build(regions)
    spatial, feature = torch.cdist(P, P), torch.cdist(H, H)
    torch.testing.assert_close(
        W, torch.exp(-((spatial / 0.7) ** 2)) * torch.exp(-((feature / 20) ** 2))
    )


def test_ridge_head_of_the_text_is_solved_in_closed_form_and_named_by_its_training_images():
    from ctrace.carrot import RidgeHead, training_contribution

    G_train, Y_train = torch.randn(30, 8).double(), torch.eye(3).double().repeat(10, 1)
    g_test = torch.randn(8).double()
    head = RidgeHead()
    head.fit(G_train, Y_train)
    logits = head.predict(g_test)
    gram = G_train.T @ G_train + head.lam * torch.eye(8).double()
    theta = torch.linalg.solve(gram, G_train.T @ Y_train)
    torch.testing.assert_close(logits, g_test @ theta)
    alpha = torch.linalg.solve(G_train @ G_train.T + head.lam * torch.eye(30).double(), Y_train)
    contributions = training_contribution(g_test, G_train, alpha)
    assert contributions.shape == (30, 3)
    torch.testing.assert_close(contributions.sum(0), logits)
