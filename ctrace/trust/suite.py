"""Every method of the book as one kind of function: from a model, images and classes to signed maps
``(b, height, width)``.

The scoreboard, the falsification chapter and your own comparison use this one list, so that a name
means the same map everywhere. Settings are the ones the chapters chose on other images.
"""

from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrace.carrot.attribution import centrality, region_contributions, remove_nodes
from ctrace.carrot.pipeline import Carrot
from ctrace.cut.kway import kway_ncut
from ctrace.cut.ncut import Ncut
from ctrace.look import saliency
from ctrace.look.channel_statistics import ChannelStatistics
from ctrace.look.gradcam import GradCAM
from ctrace.look.hooks import capture
from ctrace.look.parchgrad import ParchGrad
from ctrace.trust.controls import guided_backpropagation
from ctrace.trust.shapley import shap, superpixels

__all__ = ["CarrotClassifier", "Maps", "cnn_methods", "token_methods"]

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
        "|gradient|": partial(_unsigned, saliency.gradient),
        "input x gradient": partial(_signed, saliency.input_x_gradient),
        "SmoothGrad": partial(_unsigned, saliency.smoothgrad),
        "integrated gradients": partial(_signed, saliency.integrated_gradients),
        "guided backpropagation": partial(_unsigned, guided_backpropagation),
        "Grad-CAM": partial(_cam, deep, "gradcam"),
        f"Grad-CAM, {middle}": partial(_cam, middle, "gradcam"),
        f"Grad-CAM++, {middle}": partial(_cam, middle, "gradcam++"),
        f"LayerCAM, {middle}": partial(_cam, middle, "layercam"),
        f"HiResCAM, {middle}": partial(_cam, middle, "hirescam"),
        "channel tracing, segment": partial(_segment, middle),
        "SHAP, superpixels": _shap,
    }
    if train is not None:
        parch = _Parch(*train)
        for base, fold, name in (
            ("grad", _unsigned, "|gradient|"),
            ("inputgrad", _signed, "input x gradient"),
        ):
            for kind, word in (("cls", "class"), ("ins", "instance")):
                methods[f"ParchGrad {word}, {name}"] = partial(fold, partial(parch, base, kind))
    return methods


def token_methods() -> dict[str, Maps]:
    """Methods for a `CarrotClassifier`: no gradient anywhere."""
    return {
        "CARROT region split": partial(_carrot, True),
        "CARROT region removal": partial(_carrot, False),
    }


def _signed(attribution, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return attribution(model, images, targets).sum(1)


def _unsigned(attribution, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return attribution(model, images, targets).abs().mean(1)


def _cam(layer: str, method: str, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return torch.from_numpy(
        GradCAM(model, layer, method=method)
        .explain(images, targets)
        .heatmap(relu=False, normalize=False)
    )


def _segment(layer: str, model: nn.Module, images: Tensor, targets: Tensor, k: int = 3) -> Tensor:
    """How much each place belongs to the segment at the centre of the image. It is asked about no
    class.
    """
    with capture(model, layer) as seen:
        model(images)
    maps = torch.zeros(len(images), *seen[layer].activation.shape[2:])
    for i, features in enumerate(seen[layer].activation):  # (c, h, w)
        try:
            soft = kway_ncut(Ncut(n_eig=k).fit_transform(features.flatten(1).T.double()))  # (n, k)
        except ArithmeticError:  # no gap behind the k-th eigenvalue, so there are no k segments
            continue
        soft = soft.unflatten(0, features.shape[1:])
        h, w = (side // 2 for side in features.shape[1:])
        maps[i] = soft[..., soft[h - 1 : h + 1, w - 1 : w + 1].mean((0, 1)).argmax()]
    return enlarge(maps, images.shape[2:])


def _shap(model: nn.Module, images: Tensor, targets: Tensor, samples: int = 128) -> Tensor:
    return torch.stack(
        [
            shap(model, x, int(k), superpixels(x), samples=samples).map.float()
            for x, k in zip(images, targets)
        ]
    )


class _Parch:
    """ParchGrad with statistics of whatever model it meets, collected once for each."""

    def __init__(self, images: Tensor, labels: Tensor, quantile: float = 0.1):
        self.images, self.labels, self.quantile, self.known = (
            images,
            labels,
            quantile,
            WeakKeyDictionary(),
        )

    def __call__(
        self, base: str, kind: str, model: nn.Module, images: Tensor, targets: Tensor
    ) -> Tensor:
        if model not in self.known:
            batches = zip(self.images.split(64), self.labels.split(64))
            self.known[model] = ChannelStatistics.collect(model, batches, progress=False)
        return ParchGrad(model, self.known[model]).attribute(
            base, images, targets, method=kind, quantile=self.quantile
        )


class CarrotClassifier(nn.Module):
    """A fitted `Carrot` as an ordinary classifier of prepared images, so that everything that tests
    classifiers can test it.

    Args:
        carrot: fitted, with a linear readout.
    """

    def __init__(self, carrot: Carrot):
        super().__init__()
        self.carrot, self.vit = carrot, carrot.backbone.model
        self.fc = nn.Linear(*carrot.head.theta.shape).double()
        with torch.no_grad():
            self.fc.weight.copy_(carrot.head.theta.T)
            self.fc.bias.copy_(carrot.head.bias)
        self.info = self.vit.info
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(b, k)``, differentiable in the images."""
        H, graph = self.regions(images)
        omega = centrality(
            graph, self.carrot.operator, self.carrot.readout
        )  # (b, m): one diffusion instead of one per channel
        return self.fc(torch.einsum("bm,bmc->bc", omega, H)).float()

    def regions(self, images: Tensor):
        """Tokens ``(b, m, c)`` and their graph."""
        regions = self.carrot.regions(self.carrot.backbone(images))
        return regions.H.double(), self.carrot.graph.build(regions)


@torch.no_grad()
def _carrot(split: bool, model: CarrotClassifier, images: Tensor, targets: Tensor) -> Tensor:
    H, graph = model.regions(images)
    carrot, weights, rows = model.carrot, model.fc.weight.T, torch.arange(len(images))
    if split:
        shares = region_contributions(
            centrality(graph, carrot.operator, carrot.readout), H, weights
        )  # (b, m, k)
    else:
        whole = carrot.readout(carrot.operator(H, graph), H, graph) @ weights  # (b, k)
        shares = whole[:, None] - remove_nodes(H, graph, carrot.operator, carrot.readout, weights)
    shares = shares - shares.mean(2, keepdim=True)  # about the centred logit
    side = round(H.shape[1] ** 0.5)
    return enlarge(shares[rows, :, targets].unflatten(1, (side, side)).float(), images.shape[2:])


def enlarge(maps: Tensor, size) -> Tensor:
    """Maps ``(b, h, w)`` to the image's size, bilinearly."""
    return F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]
