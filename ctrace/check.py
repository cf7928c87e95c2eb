"""What every room asks of its input, in one place and in the same words.

Each checker returns the value in the form the code wants, or says what was expected, what came and
what to do about it. `fingerprint` asks the converse: whether a model was left as it was found.
"""

import math
import operator as op
import zlib
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real

import torch
from torch import Tensor, nn

BOUNDS = {"above": op.gt, "at_least": op.ge, "below": op.lt, "at_most": op.le}
RATES = ("p", "drop_prob", "prob", "drop_rate", "dropout")  # what modules call a chance of dropping
SIXTEEN_BITS = (torch.float16, torch.bfloat16)
SHOWN = 24  # names in a message


# --- names and numbers


def one_of(what: str, value: str, known: Iterable[str]) -> str:
    """``value`` if it is one of the ``known`` names; else ValueError with the names nearest to it.

    >>> one_of("kind", "morph", ["morf", "lerf"])
    Traceback (most recent call last):
    ValueError: kind: expected one of morf, lerf, received 'morph'. Did you mean 'morf'?
    """
    known = list(known)
    if isinstance(value, str) and value in known:
        return value
    near = get_close_matches(str(value), known, n=4, cutoff=0.5)
    near = near or [name for name in known if str(value).lower() in name.lower()][:4]
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    shown = ", ".join(known[:SHOWN]) + (", ..." if len(known) > SHOWN else "")
    raise ValueError(f"{what}: expected one of {shown}, received {value!r}.{hint}")


def check_names(names: Iterable[str], n: int, what: str = "names") -> tuple[str, ...]:
    """One name for each of ``n`` columns, all different, as a tuple."""
    names = tuple(names)
    if len(names) != n:
        raise ValueError(f"{what}: expected {n} names, one for each column, received {len(names)}.")
    if len(set(names)) < n:
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{what}: expected different names, but {twice} repeat. Number them.")
    return names


def check_number(what: str, value: float, whole: bool = False, **bounds: float) -> float:
    """A finite number within its bounds: ``above=``, ``at_least=``, ``below=``, ``at_most=``.

    >>> check_number("quantile", 0.1, above=0, at_most=1)
    0.1
    >>> check_number("steps", 0, whole=True, at_least=1)
    Traceback (most recent call last):
    ValueError: steps: expected a whole number at least 1, received 0.
    """
    fits = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    fits = fits and math.isfinite(value)
    if not (fits and all(BOUNDS[word](value, bound) for word, bound in bounds.items())):
        wanted = " and".join(f" {word.replace('_', ' ')} {bound}" for word, bound in bounds.items())
        kind = "whole" if whole else "finite"
        raise ValueError(f"{what}: expected a {kind} number{wanted}, received {value!r}.")
    return int(value) if whole else float(value)


def as_tensor(what: str, value, **where) -> Tensor:
    """``value`` as a tensor: a tensor, an array or a list of numbers, for what judges or counts."""
    try:
        return torch.as_tensor(value, **where)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        wanted = f"expected a tensor, an array or a list of numbers, received {seen(value)}"
        raise ValueError(f"{what}: {wanted}. ({str(error).splitlines()[0]})") from error


def check_device(device, at: torch.device | None = None) -> torch.device | None:
    """``device`` as torch sees it, ``at`` where it is None; refuses CUDA where there is none, and a
    device other than ``at``, where the model is.
    """
    try:
        wanted = at if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: expected 'cpu' or 'cuda', received {device!r}.") from error
    if wanted is not None and wanted.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: torch sees no CUDA device here, received {device!r}. Use None.")
    if at is not None and (wanted.type, wanted.index or 0) != (at.type, at.index or 0):
        raise ValueError(f"device: asked for {wanted}, the model is on {at}. Use model.to(device).")
    return wanted


# --- features, maps, classes


def check_features(x: Tensor, rows_at_least: int = 2) -> Tensor:
    """``x (n, c)`` if it is finite, float32 or float64, and has enough rows; sixteen bits become
    float32.
    """
    if not isinstance(x, Tensor) or x.ndim != 2:
        got = f"{seen(x)}. An array: torch.as_tensor(x); a grid (h, w, c): x.flatten(0, 1)"
        raise ValueError(f"features: expected a torch tensor with two axes (n, c), received {got}.")
    x = x.float() if x.dtype in SIXTEEN_BITS else x
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"features: expected float32 or float64, received {x.dtype}: x.float().")
    if x.shape[0] < rows_at_least or x.shape[1] < 1:
        wanted = f"at least {rows_at_least} rows (points) and 1 channel"
        raise ValueError(f"features: expected {wanted}, received {seen(x)}. Give more points.")
    # the sum alone needs no copy, but may overflow
    if not torch.isfinite(x.sum()) and not torch.isfinite(x).all():
        bad = f"{int((~torch.isfinite(x)).any(1).sum())} of {len(x)} rows hold NaN or infinity"
        raise ValueError(f"features: {bad}. Look upstream: a division by zero, or half precision.")
    return x


def check_maps(maps, images: Tensor, what: str = "maps") -> Tensor:
    """Finite maps ``(b, height, width)`` that fit ``images (b, ..., height, width)``, detached and
    on their device.
    """
    maps = as_tensor(what, maps).detach().to(images.device)
    shape = (len(images), *images.shape[-2:])
    if maps.shape != shape:
        got = f"{seen(maps)}. Enlarge a grid; sum an input attribution over its colours"
        raise ValueError(f"{what}: expected (b, height, width) equal to {shape}, received {got}.")
    if maps.is_complex() or not bool(torch.isfinite(maps).all()):
        raise ValueError(f"{what}: NaN or infinity has no rank. Count a failed map: pass zeros.")
    return maps


def check_classes(target, b: int, n_classes: int | None = None, what: str = "target") -> Tensor:
    """Class numbers ``(b,)``, int64, from one for all images or one for each."""
    classes = as_tensor(what, target)
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        got = f"{classes.dtype}. Embeddings and soft labels are no classes"
        raise ValueError(f"{what}: expected whole class numbers, received {got}.")
    if classes.shape not in ((), (b,)):
        got = f"received shape {seen(classes)}. A single int asks all about one class"
        raise ValueError(f"{what}: expected one class for each of the {b} images, {got}.")
    low, high = (int(pick(classes)) for pick in (torch.min, torch.max)) if b else (0, -1)
    if low < 0 or (n_classes is not None and high >= n_classes):
        run = "from 0" if n_classes is None else f"from 0 to {n_classes - 1}"
        got = f"{low} to {high}. Does the data number its classes as the model does?"
        raise ValueError(f"{what}: classes run {run}, received {got}")
    return classes.long().expand(b)


def check_batch(batch) -> tuple[Tensor, Tensor]:
    """Images and labels, the two halves of what a data loader yields."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        got = type(batch).__name__ + f" of {len(batch)}" * isinstance(batch, tuple | list)
        raise ValueError(f"loader: expected batches (images, labels), received a {got}.")
    return batch[0], as_tensor("labels", batch[1])


# --- models and images


def check_gradients_on() -> None:
    """Raises RuntimeError when the caller has switched gradients off."""
    if not torch.is_grad_enabled():
        off = "torch.inference_mode()" if torch.is_inference_mode_enabled() else "torch.no_grad()"
        raise RuntimeError(f"gradients are off: this runs under {off}. Call it outside that block.")


def check_ready(model: nn.Module) -> None:
    """Refuses modules whose answer for one image depends on the others in its batch, or on chance.

    Raises:
        ValueError: a normalisation that uses or follows batch statistics, or active dropout of any
            kind (stochastic depth, inside an attention, random slopes).
    """
    batch_norm, norm = nn.modules.batchnorm._BatchNorm, nn.modules.batchnorm._NormBase
    for name, module in model.named_modules():
        rates = [getattr(module, word, 0) for word in RATES]
        chance = any(isinstance(p, float) and 0 < p <= 1 for p in rates)
        if isinstance(module, batch_norm) and module.running_mean is None:
            why = "keeps no running statistics: each image would be explained by its batch."
        elif module.training and isinstance(module, norm) and module.track_running_stats:
            why = "is in training mode: its batch would count and be remembered. Call model.eval()."
        elif module.training and (chance or isinstance(module, nn.RReLU)):
            why = "is active: two calls would give two maps. Call model.eval() first."
        else:
            continue
        raise ValueError(f"{type(module).__name__} {name!r} {why}")


def check_pixels(images: Tensor, channels: int = 3) -> Tensor:
    """Pixels ``(..., 3, height, width)`` in [0, 1], not yet normalised; uint8 is divided by 255."""
    if images.ndim not in (3, 4) or images.shape[-3] != channels:
        wanted = f"({channels}, height, width), or a batch of them, received {seen(images)}"
        raise ValueError(f"image: expected {wanted}. Channels come first: permute(2, 0, 1).")
    pixels = at_least_float32(images / 255 if images.dtype == torch.uint8 else images)
    if pixels.is_complex() or 0 in pixels.shape:
        raise ValueError(f"image: expected real pixels, received {pixels.dtype} {seen(pixels)}.")
    # written so that NaN fails too
    if not pixels.is_floating_point() or not bool(((pixels >= 0) & (pixels <= 1)).all()):
        got = f"{pixels.dtype} from {pixels.min():.4g} to {pixels.max():.4g}"
        how = "Grey levels need division by 255; a mean and standard deviation come after this"
        raise ValueError(f"image: expected uint8 or floats in [0, 1], received {got}. {how}.")
    return pixels


def prepare_images(model: nn.Module, image: Tensor) -> Tensor:
    """A batch ``(b, channels, height, width)`` on the model's device and in its precision, without
    gradient history.

    Raises:
        ValueError: not a finite floating-point image or batch of images, channels first.
        RuntimeError: a tensor made under inference mode.
    """
    if not isinstance(image, Tensor) or image.ndim not in (3, 4) or 0 in image.shape:
        wanted = f"a tensor (3, height, width) or (b, 3, height, width), received {seen(image)}"
        how = "torch.from_numpy(photo).permute(2, 0, 1) / 255"
        raise ValueError(f"image: expected {wanted}. A numpy photo: {how}.")
    if image.is_inference() or any(p.is_inference() for p in model.parameters()):
        made = "made under torch.inference_mode() and can have no gradient. Clone it outside."
        raise RuntimeError(f"the image or the model was {made}")
    if image.shape[-1] in (1, 3) and image.shape[-3] not in (1, 3):
        raise ValueError(f"image: {seen(image)} has its channels last. Use image.movedim(-1, -3).")
    if not image.is_floating_point():
        got = f"{image.dtype}. Divide 0..255 by 255"
        raise ValueError(f"image: expected floating point, received {got}.")
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
        wanted = f"one tensor with a row for each of the {b} images. Wrap the model to return it"
        raise ValueError(f"the model returned {seen(output)}; expected {wanted}.")
    if not bool(torch.isfinite(output).all()):
        raise ValueError("the model returned NaN or infinity. Half precision, or broken weights?")
    if not output.requires_grad:
        why = "It detaches, runs under no_grad, or passes through numpy (an ONNX session)?"
        raise RuntimeError(f"no gradient in the output. {why} Load the weights into PyTorch.")
    return output


def rows_of(output, b: int) -> Tensor:
    """The model's output, if it is finite rows of logits or embeddings ``(b, d)``."""
    rows = isinstance(output, Tensor) and output.ndim == 2 and len(output) == b
    if not (rows and bool(torch.isfinite(output).all())):
        raise ValueError(f"the model returned {seen(output)}; expected finite rows ({b}, d).")
    return output


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision to float32; everything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def fingerprint(model: nn.Module) -> dict[str, tuple]:
    """Everything about a model that a method could leave changed: compare one from before with one
    from after.

    Per module: training flag, in-place flag and all hooks. Per parameter and buffer:
    ``requires_grad``, hooks on the tensor, a checksum of the values and of ``.grad``.

    >>> net = nn.Linear(2, 2)
    >>> before = fingerprint(net)
    >>> net(torch.ones(1, 2)).sum().backward()
    >>> [name for name, facts in fingerprint(net).items() if facts != before[name]]
    ['weight', 'bias']
    """
    facts = {}
    for name, module in model.named_modules():
        hooks = {k: tuple(v.items()) for k, v in vars(module).items() if k.endswith("hooks") and v}
        facts[f"module {name}"] = module.training, getattr(module, "inplace", None), hooks
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        hooks = tuple((tensor._backward_hooks or {}).items())
        facts[name] = tensor.requires_grad, hooks, _checksum(tensor), _checksum(tensor.grad)
    return facts


def _checksum(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return zlib.crc32(values.numpy())


def seen(x) -> str:
    """A value in a message: a tensor by its shape, something short as it is, the rest by type."""
    if isinstance(x, Tensor):
        return str(tuple(x.shape))
    return repr(x) if x is None or isinstance(x, str | Real) else type(x).__name__
