"""What a hidden pixel shows instead: every test that hides pixels must name it, because the answer
depends on it.
"""

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

__all__ = ["FILLS", "filled", "hide"]


def _zero(images: Tensor, seed: int) -> Tensor:
    return torch.zeros_like(images)


def _mean(images: Tensor, seed: int) -> Tensor:
    return images.mean((2, 3), keepdim=True).expand_as(images)


def _blur(images: Tensor, seed: int) -> Tensor:
    sigma = max(images.shape[2:]) / 12
    reach = min(
        round(2 * sigma), min(images.shape[2:]) - 1
    )  # the border is mirrored, which needs that many pixels
    return gaussian_blur(images, 2 * reach + 1, sigma)


def _noise(images: Tensor, seed: int) -> Tensor:
    noise = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed)).to(
        images
    )  # one for all: a batch equals one by one
    return images.mean((2, 3), keepdim=True) + images.std((2, 3), keepdim=True) * noise


FILLS = {"zero": _zero, "mean": _mean, "blur": _blur, "noise": _noise}


def filled(images: Tensor, fill: str | Tensor = "blur", seed: int = 0) -> Tensor:
    """What the images ``(b, c, height, width)`` show where they are hidden, everywhere at once; the
    same shape.

    Args:
        images: prepared as for training, so that 0 is the mean colour of the training set.
        fill: ``"zero"``, ``"mean"`` (each image's own colour), ``"blur"`` (Gaussian, a twelfth of
            the longer side), ``"noise"`` (the image's own mean and standard deviation), or images
            to show instead.
        seed: of the noise.

    Raises:
        ValueError: an unknown name, or images that do not fit.

    >>> filled(torch.arange(4.0).view(1, 1, 2, 2), "mean").flatten()
    tensor([1.5000, 1.5000, 1.5000, 1.5000])
    """
    if isinstance(fill, Tensor):
        try:
            return fill.to(images).expand_as(images)
        except RuntimeError as error:
            raise ValueError(
                f"fill: expected images that fit {tuple(images.shape)}, received {tuple(fill.shape)}."
            ) from error
    if fill not in FILLS:
        raise ValueError(f"fill: expected one of {', '.join(FILLS)} or images, received {fill!r}.")
    return FILLS[fill](images, seed)


def hide(images: Tensor, masks: Tensor, fill: Tensor) -> Tensor:
    """The images with ``fill`` where the masks ``(b, height, width)`` are true; one image may be
    given with many masks.
    """
    return torch.where(masks[:, None], fill, images)
