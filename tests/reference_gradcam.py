"""Literal, slow versions of the maps, written from the papers (one loop per sum, no broadcasting),
and three small models to try.
"""

import timm
import torch
import torch.nn.functional as F
from torch import nn


def gradcam(acts, grads):
    """Selvaraju et al. 2017, eqs. 1 and 2 before the ReLU, for one image ``(c, h, w)``."""
    c, h, w = acts.shape
    cam = torch.zeros(h, w, dtype=acts.dtype)
    for k in range(c):
        alpha = sum(grads[k, i, j] for i in range(h) for j in range(w)) / (h * w)
        cam += alpha * acts[k]
    return cam


def gradcam_plus_plus(acts, grads):
    """Chattopadhay et al. 2018, eqs. 7 and 19, powers and all; places without gradient weigh
    nothing.
    """
    c, h, w = acts.shape
    cam = torch.zeros(h, w, dtype=acts.dtype)
    for k in range(c):
        total, weight = acts[k].sum(), 0.0
        for i in range(h):
            for j in range(w):
                g = grads[k, i, j]
                if g > 0:
                    weight += g**2 / (2 * g**2 + total * g**3) * g
        cam += weight * acts[k]
    return cam


def layercam(acts, grads):
    """Jiang et al. 2021, eqs. 5 and 6."""
    c, h, w = acts.shape
    cam = torch.zeros(h, w, dtype=acts.dtype)
    for k in range(c):
        for i in range(h):
            for j in range(w):
                cam[i, j] += max(grads[k, i, j], 0) * acts[k, i, j]
    return cam


def hirescam(acts, grads):
    """Draelos and Carin 2020, eq. 4."""
    c, h, w = acts.shape
    cam = torch.zeros(h, w, dtype=acts.dtype)
    for k in range(c):
        for i in range(h):
            for j in range(w):
                cam[i, j] += grads[k, i, j] * acts[k, i, j]
    return cam


METHODS = {
    "gradcam": gradcam,
    "gradcam++": gradcam_plus_plus,
    "layercam": layercam,
    "hirescam": hirescam,
}


def vit_block(vit, image, index, block):
    """Activations and gradients ``(c, h, w)`` at ``blocks[block].norm1``, by running the pre-norm
    blocks by hand.
    """
    tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(image))))
    for b in vit.blocks[:block]:
        tokens = tokens + b.attn(b.norm1(tokens))
        tokens = tokens + b.mlp(b.norm2(tokens))
    z = vit.blocks[block].norm1(tokens).detach().requires_grad_()
    for i, b in enumerate(vit.blocks[block:]):
        tokens = tokens + b.attn(z if i == 0 else b.norm1(tokens))
        tokens = tokens + b.mlp(b.norm2(tokens))
    logit = vit.head(vit.norm(tokens)[:, 0])[0, index]
    (grad,) = torch.autograd.grad(logit, z)
    h, w = vit.patch_embed.grid_size
    rows = [torch.zeros(z.shape[2], h, w, dtype=z.dtype) for _ in range(2)]
    for source, target in zip((z[0].detach(), grad[0]), rows):
        for i in range(h):
            for j in range(w):
                target[:, i, j] = source[vit.num_prefix_tokens + i * w + j]
    return rows


class Residual(nn.Module):
    """Conv, ReLU, skip: everything that has broken hooks, each with a switch."""

    def __init__(self, inplace=True):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=inplace)
        self.head = nn.Linear(4, 5)
        self.unused = nn.Linear(4, 5)
        self.inplace = inplace
        self.eval()

    def forward(self, x):
        skip = self.stem(x)
        y = self.norm(self.conv(skip))
        if self.inplace:
            y += skip
        else:
            y = y + skip
        return self.head(self.relu(y).mean((2, 3)))


class Embedder(nn.Module):
    """Images to embeddings, of unit length or not."""

    def __init__(self, normalise):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 16, 3, stride=2)
        self.deep = nn.Conv2d(16, 16, 3, stride=2)
        self.head = nn.Linear(16, 8)
        self.normalise = normalise
        self.eval()

    def forward(self, x):
        e = self.head(self.deep(self.conv(x).relu()).relu().mean((2, 3)))
        return F.normalize(e) if self.normalise else e


def make_vit(**settings):
    torch.manual_seed(0)
    vit = timm.models.VisionTransformer(
        img_size=48, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=10, **settings
    ).eval()
    for p in vit.parameters():
        torch.nn.init.normal_(p, std=0.3)  # timm's own initialisation leaves the head nearly blind
    return vit
