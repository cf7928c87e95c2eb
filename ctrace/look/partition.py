"""What ParchGrad does at one layer: which layers, which of their channels to keep, and how to weigh
the gradients of the two parts anew.

Kept are the channels that fire more for a class, or those that fire more than usual on this image.
"""

import math
import zlib

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from ctrace.arguments import checked, within
from ctrace.check import at_least_float32
from ctrace.look.activations import mean_activation
from ctrace.look.channel_statistics import ChannelStatistics
from ctrace.look.hooks import find_layers

Share = within(above=0, at_most=1)

# --- which layers


@checked
def default_convs(model: nn.Module, layer_ratio: Share | None = None) -> list[str]:
    """Names of the convolutions to edit, in order of definition.

    With ``layer_ratio`` the last share of all convolutions, one at least, for any model. Without it
    the published choice for the model's family (timm and torchvision): ResNet, the convolutions of
    the last two stages without their shortcuts; VGG, those in the upper half of ``features``;
    EfficientNet, the depthwise ones that open the last two stages and the final 1 x 1. SqueezeNet
    is none of the published families; the rule of VGG, a chain like it, serves it too.

    Raises:
        ValueError: no convolution, a share outside (0, 1], or no ``layer_ratio`` for a family
            without a default.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    >>> default_convs(net, layer_ratio=0.5)
    ['2']
    """
    convs = find_layers(model, kind=nn.Conv2d)
    if layer_ratio is not None:
        return list(convs)[-share_of(len(convs), layer_ratio) :]
    for family in type(model).__mro__:
        chosen = FAMILIES[family.__name__](model, convs) if family.__name__ in FAMILIES else []
        if chosen:
            return chosen
    family = type(model).__name__
    raise ValueError(f"no default layers are known for {family}. Pass layer_ratio=0.5, or layers.")


def share_of(n: int, share: float) -> int:
    """A share of n things, one at least; ``int(0.29 * 100)`` alone would be 28."""
    return max(1, int(share * n + 1e-9))


def _resnet(model: nn.Module, convs: dict) -> list[str]:
    late, inner = ("layer3.", "layer4."), ("conv1", "conv2", "conv3")
    return [name for name in convs if name.startswith(late) and name.split(".")[-1] in inner]


def _vgg(model: nn.Module, convs: dict) -> list[str]:
    inside = [name for name in convs if name.startswith("features.")]
    return [name for name in inside if int(name.split(".")[1]) >= len(model.features) // 2]


def _efficientnet(model: nn.Module, convs: dict) -> list[str]:
    if hasattr(model, "conv_head"):  # timm
        stages, head = [f"blocks.{len(model.blocks) + i}.0." for i in (-2, -1)], "conv_head"
    else:  # torchvision keeps the stem, seven stages and the head in one list
        last = len(model.features) - 1
        stages, head = [f"features.{last + i}.0." for i in (-2, -1)], f"features.{last}.0"
    depthwise = [name for name, conv in convs.items() if conv.groups == conv.in_channels > 1]
    return [name for name in depthwise if name.startswith(tuple(stages))] + [head]


FAMILIES = {"ResNet": _resnet, "VGG": _vgg, "SqueezeNet": _vgg, "EfficientNet": _efficientnet}


# --- which channels


class ClassTest:
    """Channels that fire more for the class than for all other images, by Welch's test.

    The order among p-values that are equal, or too small to tell from 0, is that of t.
    """

    def __init__(self, statistics: ChannelStatistics, layer: str, device):
        t, p = statistics.welch(layer)  # (classes, c)
        by_t = t.argsort(dim=1, descending=True, stable=True)
        self.order = by_t.gather(1, p.gather(1, by_t).argsort(dim=1, stable=True)).to(device)
        self.p = p.to(device)

    def __call__(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """p and order ``(b, c)`` for classes ``(b,)``."""
        return self.p[classes], self.order[classes]


class InstanceTest:
    """Channels that fire more on this image than they usually do: ``p = P(N > (activation - mean) /
    std)``, all classes together.

    A channel that never moved has no scale to be unusual on: p = 1.
    """

    def __init__(self, statistics: ChannelStatistics, layer: str, device):
        total = statistics.of_layer(layer).total()
        if total.count < 2:
            raise ValueError("the statistics hold one image, a standard deviation needs two.")
        self.mean, self.std = total.mean.to(device), total.variance().sqrt().to(device)  # (1, c)

    def __call__(self, activation: Tensor) -> tuple[Tensor, Tensor]:
        """p and order ``(b, c)`` from the convolution's output ``(b, c, h, w)``."""
        z = (mean_activation(activation) - self.mean) / self.std
        z = torch.where(self.std > 0, z, -torch.inf)
        return torch.special.ndtr(-z), z.argsort(dim=1, descending=True, stable=True)


METHODS = {"cls": ClassTest, "ins": InstanceTest}


def keep_channels(p: Tensor, order: Tensor, quantile, alpha, shuffle=None, layer="") -> Tensor:
    """The kept channels of a layer ``(b, c)``, from their p-values and their order ``(b, c)``.

    Args:
        quantile: keep this share of the channels, one at least; wins over ``alpha``.
        alpha: or keep the channels with a p-value of at most this.
        shuffle: a seed: keep as many channels, but others, drawn at random. The control.
        layer: its name, so that each layer has a draw of its own, the same for all rows: a batch
            equals one by one.
    """
    if quantile is None:
        kept = p <= alpha
    else:
        first = order[:, : share_of(p.shape[1], quantile)]
        kept = torch.zeros_like(p, dtype=torch.bool).scatter(1, first, True)
    if shuffle is None:
        return kept
    generator = torch.Generator().manual_seed(zlib.crc32(f"{shuffle} {layer}".encode()))
    return kept[:, torch.randperm(p.shape[1], generator=generator).to(p.device)]


# --- how to weigh


def reweigh(
    gradient: Tensor, kept: Tensor, gamma=math.inf, variance_conservation=True, exact_variance=False
) -> Tensor:
    """The gradient at a convolution's output with its two groups of channels weighed anew (Park,
    Jeon and Choi 2023).

    M and N are the spatial variances of the channel sum of the kept and of the other part (of 1 x 1
    maps, which have none, the absolute sum). Kept channels are multiplied by ``ghat * beta`` and
    the others by ``beta``, where ``ghat = gamma sqrt(N / M)`` and ``beta = sqrt((M + N) / (M ghat^2
    + N))``, or 1 without ``variance_conservation``. With an infinite gamma the others become 0 and
    the kept are multiplied by ``sqrt((M + N) / M)``, or 1. A row that keeps everything is returned
    as it is. A square root counts as 1 where a part has no variance: no factor could give it any.

    Args:
        gradient: ``(b, c, h, w)``; not changed.
        kept: ``(b, c)`` boolean.
        gamma: how much stronger than the others the kept part becomes, as a ratio of standard
            deviations.
        variance_conservation: as above; conserves the variance of the channel sum where the two
            parts do not covary.
        exact_variance: conserves it exactly, whatever gamma is: all is divided by what the variance
            has grown by.
    """
    g = at_least_float32(gradient)
    parts = torch.stack([kept, ~kept]).to(g)  # (2, b, c)
    sums = einsum(parts, g, "part b c, b c h w -> part b h w")
    # an exact scale undoes any other common factor
    conserve = variance_conservation and not exact_variance
    factors = torch.stack(_factors(*_spread(sums), gamma, conserve))  # (2, b)
    factors = torch.where(kept.all(1), 1.0, factors)
    if exact_variance:
        factors = factors * _exact(sums, factors)
    scale = torch.where(kept, factors[0][:, None], factors[1][:, None])
    return (g * rearrange(scale, "b c -> b c 1 1")).to(gradient.dtype)


def _factors(m: Tensor, n: Tensor, gamma: float, conserve: bool) -> tuple[Tensor, Tensor]:
    """Factors of the kept and of the other part ``(b,)``.

    With conservation, ``ghat * beta`` and ``beta`` are written out, so that neither overflows where
    a part is nearly silent: after them the two variances are to each other as gamma^2 to 1 and sum
    to M + N.
    """
    one = torch.ones_like(m)
    if math.isinf(gamma):
        return (_root(m + n, m) if conserve else one), torch.zeros_like(m)
    if not conserve:
        return gamma * _root(n, m), one
    share = gamma / math.hypot(gamma, 1)
    return share * _root(m + n, m), share / gamma * _root(m + n, n)


def _root(above: Tensor, below: Tensor) -> Tensor:
    return torch.where((above > 0) & (below > 0), (above / below).sqrt(), 1.0)


def _spread(sums: Tensor) -> Tensor:
    """Spatial variance of maps ``(..., h, w)``, exactly 0 where only rounding varies; the absolute
    value of 1 x 1 maps.
    """
    flat = rearrange(sums, "... h w -> ... (h w)")
    if flat.shape[-1] == 1:
        return flat[..., 0].abs()
    variance, size = flat.var(-1), flat.square().mean(-1)
    return torch.where(variance > (16 * torch.finfo(sums.dtype).eps) ** 2 * size, variance, 0.0)


def _exact(sums: Tensor, factors: Tensor) -> Tensor:
    """What to multiply by ``(b,)`` so that the channel sum keeps the spread it had."""
    edited = einsum(sums, factors, "part b h w, part b -> b h w")
    before, after = _spread(sums.sum(0)), _spread(edited)
    ratio = torch.where(after > 0, before / after, 1.0)
    return ratio if sums.shape[-1] * sums.shape[-2] == 1 else ratio.sqrt()
