"""What goes into a model and what comes out: checks that every attribution needs before a gradient
means anything.
"""

import torch
from torch import Tensor, nn

__all__ = ["at_least_float32", "check_gradients_on", "check_ready", "one_output", "prepare_images"]


def check_gradients_on() -> None:
    """Raises RuntimeError when the caller has switched gradients off."""
    off = "torch.inference_mode()" if torch.is_inference_mode_enabled() else "torch.no_grad()"
    if not torch.is_grad_enabled():
        raise RuntimeError(
            f"gradients are off: this runs under {off}, and an attribution is a gradient. Move the call out of that block."
        )


def check_ready(model: nn.Module) -> None:
    """Refuses modules whose answer for one image depends on the others in its batch, or on chance.

    Raises:
        ValueError: BatchNorm that uses batch statistics, or active dropout.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            module.training or module.running_mean is None
        ):
            cause = "is in training mode" if module.training else "keeps no running statistics"
            raise ValueError(
                f"BatchNorm {name!r} {cause}: each image would be explained by the others in its batch"
                + (
                    ", and the running statistics would change. Call model.eval() first."
                    if module.training
                    else "."
                )
            )
        rate = (
            getattr(module, "p", 0)
            if isinstance(module, nn.modules.dropout._DropoutNd)
            else getattr(module, "drop_prob", 0)
        )
        if module.training and rate:
            raise ValueError(
                f"dropout {name!r} is active: two calls would give two maps. Call model.eval() first."
            )


def prepare_images(model: nn.Module, image: Tensor) -> Tensor:
    """A batch ``(b, channels, height, width)`` on the model's device and in its precision, without
    gradient history.

    Raises:
        ValueError: not a finite floating-point image or batch of images, channels first.
        RuntimeError: a tensor made under inference mode.
    """
    if not isinstance(image, Tensor):
        raise ValueError(
            f"image: expected a tensor (3, height, width), received {type(image).__name__}. "
            "A numpy photo: torch.from_numpy(photo).permute(2, 0, 1) / 255."
        )
    if image.is_inference() or any(p.is_inference() for p in model.parameters()):
        raise RuntimeError(
            "the image or the model was made under torch.inference_mode() and can have no gradient. Clone it outside."
        )
    if image.ndim not in (3, 4) or 0 in image.shape:
        raise ValueError(
            f"image: expected (3, height, width) or (b, 3, height, width), received {tuple(image.shape)}."
        )
    if image.shape[-1] in (1, 3) and image.shape[-3] not in (1, 3):
        raise ValueError(
            f"image: {tuple(image.shape)} has its channels last. Use image.permute(2, 0, 1), or (0, 3, 1, 2) for a batch."
        )
    if not image.is_floating_point():
        raise ValueError(
            f"image: expected floating point, prepared as for training, received {image.dtype}. Divide 0..255 by 255 first."
        )
    if not bool(torch.isfinite(image).all()):
        raise ValueError("image: holds NaN or infinity.")
    like = next((p for p in model.parameters() if p.is_floating_point()), image)
    return (image if image.ndim == 4 else image[None]).detach().to(like, copy=True)


def one_output(output, b: int) -> Tensor:
    """The model's output, if it is one tensor with a row per image and a gradient can go back
    through it.

    Raises:
        ValueError: anything else was returned.
        RuntimeError: the way back is cut.
    """
    if not isinstance(output, Tensor) or output.ndim == 0 or len(output) != b:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"the model returned {got}; expected one tensor with a row for each of the {b} images. Wrap the model in a module "
            "that returns its logits or its embedding."
        )
    if not output.requires_grad:
        raise RuntimeError(
            "no gradient can go back through the model's output. Likely cause: it detaches, runs under torch.no_grad(), or passes "
            "through numpy (an ONNX session). Load the same weights into their PyTorch architecture and call that."
        )
    return output


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision to float32; everything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
