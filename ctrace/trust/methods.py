"""Every method of the book as one kind of function: from a model, images and classes to signed maps
``(b, height, width)``.

The scoreboard, the falsification chapter and your own comparison use this one list, so that a name
means the same map everywhere. Settings are the ones the chapters chose on other images.
"""

from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from torch import Tensor, nn

from ctrace.carrot.attribution import centrality
from ctrace.carrot.pipeline import Carrot
from ctrace.cut.kway import kway_ncut
from ctrace.cut.ncut import Ncut
from ctrace.look import saliency
from ctrace.look.channel_statistics import ChannelStatistics
from ctrace.look.gradcam import GradCAM
from ctrace.look.hooks import capture, edit_gradient
from ctrace.look.parchgrad import ParchGrad
from ctrace.trust.shapley import shap, superpixels

Maps = Callable[[nn.Module, Tensor, Tensor], Tensor]


def cnn_methods(
    train: tuple[Tensor, Tensor] | None = None, deep: str = "layer4", middle: str = "layer3"
) -> dict[str, Maps]:
    """Methods for convolutional classifiers, by the name the scoreboard prints.

    Args:
        train: prepared training images and their classes, from which ParchGrad takes its statistics
            (again for each model); left out without them.
        deep, middle: the last layer with a grid and the one before it, whose output is not
            negative.
    """
    methods = {
        "|gradient|": _unsigned(saliency.gradient),
        "input x gradient": _signed(saliency.input_x_gradient),
        "SmoothGrad": _unsigned(saliency.smoothgrad),
        "integrated gradients": _signed(saliency.integrated_gradients),
        "guided backpropagation": _unsigned(guided_backpropagation),
        "Grad-CAM": partial(_cam, deep, "gradcam"),
    }
    for kind in ("Grad-CAM", "Grad-CAM++", "LayerCAM", "HiResCAM"):
        methods[f"{kind}, {middle}"] = partial(_cam, middle, kind.lower().replace("-", ""))
    methods["channel tracing, segment"] = partial(_segment, middle)
    methods["SHAP, superpixels"] = _shap
    if train is not None:
        parch = _parchgrad(train)
        for kind, word in (("cls", "class"), ("ins", "instance")):
            gradient, product = (partial(parch, base, kind) for base in ("grad", "inputgrad"))
            methods[f"ParchGrad {word}, |gradient|"] = _unsigned(gradient)
            methods[f"ParchGrad {word}, input x gradient"] = _signed(product)
    return methods


def token_methods() -> dict[str, Maps]:
    """Methods for a `CarrotClassifier`: no gradient anywhere."""
    return {
        "CARROT region split": partial(_carrot, True),
        "CARROT region removal": partial(_carrot, False),
    }


def guided_backpropagation(model: nn.Module, images: Tensor, target) -> Tensor:
    """The gradient with its negative part cut off at every ReLU ``(b, c, height, width)``
    (Springenberg et al. 2015).

    Sharp pictures that hardly depend on the model's later weights (Adebayo et al. 2018): kept as a
    method that must fail.

    Raises:
        ValueError: a model without `nn.ReLU` modules.
    """
    relus = [name for name, module in model.named_modules() if isinstance(module, nn.ReLU)]
    if not relus:
        raise ValueError("guided_backpropagation cuts at every nn.ReLU; the model has no nn.ReLU.")
    images = images.detach().clone().requires_grad_()  # frozen models need a gradient at the input
    with edit_gradient(model, relus, lambda gradient, activation, name: gradient.clamp_min(0)):
        return saliency.gradient(model, images, target)


def _signed(attribution: Callable) -> Maps:
    """The sum over colours."""
    return lambda *asked: reduce(attribution(*asked), "b c h w -> b h w", "sum")


def _unsigned(attribution: Callable) -> Maps:
    """The mean magnitude over colours."""
    return lambda *asked: reduce(attribution(*asked).abs(), "b c h w -> b h w", "mean")


def _cam(layer: str, method: str, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    explained = GradCAM(model, layer, method=method).explain(images, target=targets)
    return torch.from_numpy(explained.heatmap(relu=False, normalize=False))


def _segment(layer: str, model: nn.Module, images: Tensor, targets: Tensor, k: int = 3) -> Tensor:
    """How much each place belongs to the segment at the centre of the image. It is asked about no
    class.
    """
    with capture(model, layer) as seen:
        model(images)
    acts = seen[layer].activation  # (b, c, h, w)
    maps, h, w = torch.zeros_like(acts[:, 0]), acts.shape[2] // 2, acts.shape[3] // 2
    for i, features in enumerate(acts.double()):
        try:
            Z = kway_ncut(Ncut(n_eig=k).fit_transform(rearrange(features, "c h w -> (h w) c")))
        except ArithmeticError:  # no gap behind the k-th eigenvalue, so there are no k segments
            continue
        Z = rearrange(Z, "(h w) k -> k h w", h=acts.shape[2])
        maps[i] = Z[Z[:, h - 1 : h + 1, w - 1 : w + 1].mean((1, 2)).argmax()]
    return enlarge(maps, images.shape[2:])


def _shap(model: nn.Module, images: Tensor, targets: Tensor, samples: int = 128) -> Tensor:
    explained = [
        shap(model, x, int(k), superpixels(x), samples=samples) for x, k in zip(images, targets)
    ]
    return torch.stack([one.map.float() for one in explained])


def _parchgrad(train: tuple[Tensor, Tensor]) -> Callable:
    """ParchGrad with statistics of whatever model it meets, collected once for each."""

    @lru_cache(4)
    def statistics(model):
        batches = zip(*(part.split(64) for part in train))
        return ChannelStatistics.collect(model, batches, progress=False)

    def attribute(base, kind, model, images, targets):
        parch = ParchGrad(model, statistics(model))
        return parch.attribute(base, images, targets, method=kind, quantile=0.1)

    return attribute


class CarrotClassifier(nn.Module):
    """A fitted `Carrot` as an ordinary classifier of prepared images, so that everything that tests
    classifiers can test it.

    Args:
        carrot: fitted, with a linear readout.
    """

    def __init__(self, carrot: Carrot):
        super().__init__()
        self.carrot, self.vit, self.info = carrot, carrot.backbone.model, carrot.backbone.model.info
        theta = carrot.head.theta  # (c, k)
        self.fc = nn.Linear(*theta.shape).double().to(next(self.vit.parameters()).device)
        self.fc.load_state_dict({"weight": theta.T, "bias": carrot.head.bias})
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(b, k)``, differentiable in the images."""
        regions, graph = self.regions(images)
        # one diffusion of the readout's weights instead of one per channel
        omega = centrality(graph, self.carrot.operator, self.carrot.readout)  # (b, m)
        return self.fc(einsum(omega, regions.H.double(), "b m, b m c -> b c")).float()

    def regions(self, images: Tensor):
        """Regions and their graph."""
        regions = self.carrot.regions(self.carrot.backbone(images))
        return regions, self.carrot.graph.build(regions)


@torch.no_grad()
def _carrot(split: bool, model: CarrotClassifier, images: Tensor, targets: Tensor) -> Tensor:
    regions, graph = model.regions(images)
    ask = model.carrot.region_split if split else model.carrot.region_removal
    shares = ask(regions, graph, model.fc.weight.T)  # (b, m, k)
    shares = shares - shares.mean(2, keepdim=True)  # about the centred logit
    own = shares[torch.arange(len(images)), :, targets]  # (b, m)
    return enlarge(regions.on_grid(own).float(), images.shape[2:])


def enlarge(maps: Tensor, size) -> Tensor:
    """Maps ``(b, h, w)`` to the image's size, bilinearly."""
    return F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]
