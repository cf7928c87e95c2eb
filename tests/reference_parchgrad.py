"""Literal, slow ParchGrad, one image and one channel at a time, and a small sequential net to try
it on.
"""

import math

import torch
from scipy import stats
from torch import nn


def make_net(classes=4, seed=0):
    """Convolutions 0 and 3, BatchNorm between them, maps of 8 x 8 and 6 x 6; no channel is ever
    shut, so one suffices.
    """
    torch.manual_seed(seed)
    layers = [
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.SiLU(inplace=True),
        nn.Conv2d(6, 8, 3),
        nn.SiLU(inplace=True),
    ]
    net = (
        nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(72, classes))
        .double()
        .eval()
    )
    net[1].bias.data.normal_()
    net[1].running_mean.normal_()
    return net


def dead_channel_net():
    """Channel 1 of layer 0 is constant, at a value that is no exact binary number."""
    net = make_net()
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1] = 0.0, 0.1
    return net


def labelled_images(n, classes=4, seed=1, size=10):
    """Each class brightens a colour of its own, so that some channels know it."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 3, size, size, generator=generator, dtype=torch.float64)
    labels = torch.arange(n) % classes
    for i in range(n):
        images[i, labels[i] % 3] += 0.5 + 0.5 * (labels[i] // 3)
    return images, labels


def activations(net, layer, images):
    """Mean of ReLU(convolution) for each image and channel, as nested lists."""
    rows = []
    for image in images:
        out = net[: layer + 1](image[None])[0].detach()
        rows.append(
            [
                sum(max(v, 0.0) for line in channel.tolist() for v in line) / channel.numel()
                for channel in out
            ]
        )
    return rows


def class_pvalue(rows, labels, k, channel):
    inside = [row[channel] for row, label in zip(rows, labels) if label == k]
    outside = [row[channel] for row, label in zip(rows, labels) if label != k]
    return float(stats.ttest_ind(inside, outside, equal_var=False, alternative="greater").pvalue)


def instance_pvalue(rows, value, channel):
    column = [row[channel] for row in rows]
    mean = sum(column) / len(column)
    std = math.sqrt(sum((v - mean) ** 2 for v in column) / (len(column) - 1))
    return float(stats.norm.sf((value - mean) / std))


def keep(pvalues, quantile=None, alpha=None):
    """Indices of kept channels; all of them where none would be."""
    if quantile is not None:
        return sorted(range(len(pvalues)), key=lambda i: pvalues[i])[
            : max(1, int(quantile * len(pvalues)))
        ]
    chosen = [i for i, p in enumerate(pvalues) if p <= alpha]
    return chosen or list(range(len(pvalues)))


def spread(total):
    values = [v for line in total.tolist() for v in line]
    if len(values) == 1:
        return abs(values[0])
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / (len(values) - 1)


def surgery(gradient, kept, gamma=math.inf, variance_conservation=True, exact_variance=False):
    """The formulas for one image ``(c, h, w)``, as they are written."""
    c = len(gradient)
    others = [i for i in range(c) if i not in kept]
    if not others:
        return gradient.clone()
    zero = torch.zeros_like(gradient[0])
    m, n = (
        spread(sum((gradient[i] for i in kept), zero)),
        spread(sum((gradient[i] for i in others), zero)),
    )
    if gamma == math.inf:
        up, down = math.sqrt((m + n) / m) if variance_conservation else 1.0, 0.0
    else:
        ghat = gamma * math.sqrt(n / m)
        beta = math.sqrt((m + n) / (m * ghat**2 + n)) if variance_conservation else 1.0
        up, down = ghat * beta, beta
    edited = torch.stack([gradient[i] * (up if i in kept else down) for i in range(c)])
    if exact_variance:
        edited = edited * math.sqrt(spread(gradient.sum(0)) / spread(edited.sum(0)))
    return edited


def attribute(net, image, k, kept_at, **weights):
    """Input gradient of logit ``k`` of one image, module by module, with the surgery behind each
    layer of ``kept_at``.
    """
    steps = [image[None]]
    with torch.no_grad():
        for module in net:
            steps.append(module(steps[-1].clone()))
    gradient = torch.zeros_like(steps[-1])
    gradient[0, k] = 1.0
    for place in reversed(range(len(net))):
        if place in kept_at:
            gradient = surgery(gradient[0], kept_at[place], **weights)[None]
        x = steps[place].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(net[place](x * 1.0), x, gradient)
    return gradient[0]
