"""Planted networks: weights set by hand on birds painted in fixed colours, so that what matters is
known and not learned.

Every part of a painted bird has a colour of its own that neither the backdrop nor a mixture at an
edge can reach. One convolution detects each colour; a mean over places and a linear head do the
rest. So the drop of a logit when the renderer takes a part away is the sum of that part's
activations times a known weight, and every method can be asked for it to the last digit.
"""

from collections import OrderedDict
from dataclasses import replace

import torch
from torch import Tensor, nn

from ctrace.aviary import PARTS, Scene, render_levels

__all__ = ["GROUPS", "channel_groups", "paint", "planted_images", "planted_network"]

GROUPS = (*PARTS, "body")  # what each group of channels detects; the head does not read the body

# Colour, weights of red, green and blue, and threshold. At a weaker threshold some backdrop or some
# mixed pixel would pass.
_DETECTORS = {
    "beak": ((1.0, 0.0, 0.0), (1, -1, -1), 0.25),
    "crest": ((0.0, 1.0, 0.0), (-1, 1, -1), 0.25),
    "wing": ((0.0, 0.0, 1.0), (-1, -1, 1), 0.25),
    "tail": ((1.0, 1.0, 0.0), (1, 1, -2), 1.0),
    "legs": ((1.0, 0.0, 1.0), (1, -2, 1), 1.0),
    "body": ((0.0, 1.0, 1.0), (-2, 1, 1), 1.0),
}
_HEAD_SCALE = (
    128.0  # a part covers about a hundredth of the picture; this brings logits to the order of 1
)


def paint(scene: Scene) -> Scene:
    """The same bird in the planted colours, without distractors, toadstool and pixel noise."""
    colours = tuple((owner, _DETECTORS[owner][0]) for owner, _ in scene.colours)
    return replace(scene, colours=colours, distractors=(), mark=None, noise=0)


def planted_images(scenes: list[Scene], size: int = 96) -> Tensor:
    """The painted scenes for a planted network: ``(n, 3, size, size)`` float64 in [0, 1]."""
    return (
        torch.stack(
            [torch.from_numpy(render_levels(paint(scene), size)) for scene in scenes]
        ).double()
        / 255
    )


def planted_network(copies: int = 1) -> nn.Sequential:
    """A classifier for painted birds: 1 x 1 ``conv``, ``relu``, mean over places, ``head``;
    float64, in eval mode.

    Class k stands for part k of `PARTS`: that part counts four times for it, each other part once
    against it, the body (which is detected too) not at all. The logits of a bird sum to 0, so that
    they equal their own centred version.

    Args:
        copies: channels per group; they differ by powers of 2 in scale, which the head undoes.

    >>> net = planted_network(copies=2)
    >>> net.conv.weight.shape, channel_groups(2).tolist()
    (torch.Size([12, 3, 1, 1]), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    """
    scale = 2.0 ** torch.arange(copies).double()  # (copies,)
    weight = torch.tensor([_DETECTORS[g][1] for g in GROUPS]).double()  # (g, 3)
    threshold = torch.tensor([_DETECTORS[g][2] for g in GROUPS]).double()  # (g,)
    head = torch.zeros(len(PARTS), len(GROUPS)).double()  # (k, g)
    head[:, : len(PARTS)] = 5 * torch.eye(len(PARTS)) - 1
    conv, last = nn.Conv2d(3, len(GROUPS) * copies, 1), nn.Linear(len(GROUPS) * copies, len(PARTS))
    modules = OrderedDict(
        conv=conv, relu=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), head=last
    )
    net = nn.Sequential(modules).double().eval()
    with torch.no_grad():
        conv.weight.copy_((weight[:, None] * scale[:, None]).reshape(-1, 3, 1, 1))
        conv.bias.copy_((-threshold[:, None] * scale).flatten())
        last.weight.copy_((_HEAD_SCALE * head[:, :, None] / (copies * scale)).flatten(1))
        last.bias.zero_()
    return net


def channel_groups(copies: int = 1) -> Tensor:
    """For each channel of a planted network the index into `GROUPS` of what it detects."""
    return torch.arange(len(GROUPS)).repeat_interleave(copies)
