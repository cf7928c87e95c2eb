"""Maps that know nothing of the model, and two whose quality is known: one right and one wrong by
construction.

Every score of a method is read beside theirs. What a control reaches, a method has not earned.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from ctrace.look.hooks import edit_gradient
from ctrace.look.saliency import gradient

__all__ = ["controls", "guided_backpropagation", "planted_lie", "planted_truth"]


def controls(images: Tensor, masks: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Five maps ``(b, height, width)`` that look at the image or at nothing, never at the model.

    ``"random"``: independent noise. ``"smooth random"``: the same, blurred to blobs. ``"edges"``:
    Sobel magnitude of the brightness. ``"centre"``: a Gaussian in the middle, a quarter of the
    image wide. ``"area"``: 1 on the true parts and 0 elsewhere, so that its sum over a part is the
    part's area.

    Args:
        images: ``(b, c, height, width)``.
        masks: true parts ``(b, p, height, width)``, or the object ``(b, height, width)``.
        seed: of the noise, which differs from image to image.
    """
    b, _, height, width = images.shape
    noise = torch.randn(b, height, width, generator=torch.Generator().manual_seed(seed)).to(
        images.device
    )
    sigma, masks = max(height, width) / 12, masks.to(images)
    reach = min(round(2 * sigma), min(height, width) - 1)
    return {
        "random": noise,
        "smooth random": gaussian_blur(noise, 2 * reach + 1, sigma),
        "edges": _edges(images),
        "centre": _gaussian(height, width, 0.5, 0.5, 0.25).to(images).expand(b, -1, -1).clone(),
        "area": masks.sum(1).clamp(max=1) if masks.ndim == 4 else masks,
    }


def planted_truth(masks: Tensor, importance) -> Tensor:
    """What a perfect method would draw ``(b, height, width)``: each part's importance, spread
    evenly over the part and nothing elsewhere.

    Its sum over each part is exactly that part's importance, also where two parts share the pixels
    of a border.

    Args:
        masks: ``(b, p, height, width)``, weights in [0, 1].
        importance: ``(b, p)``.

    Raises:
        ValueError: a part without a pixel, whose importance no map could show.
    """
    parts = masks.double().flatten(2)  # (b, p, n)
    importance = torch.as_tensor(np.asarray(importance), dtype=torch.float64, device=masks.device)
    if bool((parts.amax(2) == 0).any()):
        raise ValueError(
            "planted_truth: a part has no pixel, so no map can show its importance. Leave such images out, and count them."
        )
    density = torch.linalg.solve(parts @ parts.mT, importance)  # (b, p)
    return torch.einsum("bp,bpn->bn", density, parts).unflatten(1, masks.shape[2:])


def planted_lie(masks: Tensor, importance) -> Tensor:
    """A convincing wrong map ``(b, height, width)``: a smooth blob as far from every part as the
    image allows, and the parts in reverse.

    It looks like any other heat map. No part of it is true.
    """
    wrong, bird, (height, width) = (
        -planted_truth(masks, importance),
        masks.sum(1) > 0,
        masks.shape[2:],
    )
    blobs = []
    for empty in (~bird).cpu().numpy():
        away = distance_transform_edt(np.pad(empty, 1))[
            1:-1, 1:-1
        ]  # the image's edge counts as something to stay away from
        y, x = np.unravel_index(away.argmax(), away.shape)
        blobs.append(_gaussian(height, width, (y + 0.5) / height, (x + 0.5) / width, 0.08))
    blob = torch.stack(blobs).to(wrong) * ~bird
    return blob + 1e-3 * wrong / wrong.abs().amax((1, 2), keepdim=True).clamp_min(1e-300)


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
        raise ValueError(
            "guided_backpropagation: this model has no nn.ReLU; the method is not defined for other activations."
        )
    images = images.detach().clone().requires_grad_()  # frozen models need a gradient at the input
    with edit_gradient(model, relus, lambda gradient, activation, name: gradient.clamp_min(0)):
        return gradient(model, images, target)


def _edges(images: Tensor) -> Tensor:
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]).to(images)
    grey = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    return F.conv2d(grey, torch.stack([kernel, kernel.T])[:, None]).norm(dim=1)


def _gaussian(height: int, width: int, y: float, x: float, sigma: float) -> Tensor:
    """Peak 1 at ``(y, x)``; place and width in shares of the sides."""
    rows, columns = (torch.arange(size) + 0.5 for size in (height, width))
    return torch.exp(
        -(((rows / height - y) ** 2)[:, None] + (columns / width - x) ** 2) / (2 * sigma**2)
    )
