"""Models through one door: the ones bundled with ctrace, any timm architecture, and local
checkpoints.

>>> model = load_model("aviary-vit-0")
aviary-vit-0: bundled weights, 14 species, grid 12 x 12, 1 prefix token
>>> model.info.grid, model.info.num_prefix_tokens, model.info.input_size
((12, 12), 1, (3, 96, 96))
"""

from __future__ import annotations

import difflib
import json
import os
import socket
import urllib.parse
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem, HybridEmbed
from torch import nn

from ctrace.aviary import SPECIES

MODEL_DIR = Path(__file__).parents[1] / "data" / "models"
WEIGHTS_VARIABLE = "CTRACE_WEIGHTS_DIR"
MODEL_INPUT = 96
EMBEDDING_SIZE = 64
_MEAN, _STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@dataclass(frozen=True)
class ModelInfo:
    """What a reader must know to feed a model and to read its tokens; every loaded model carries
    one as `model.info`.

    Attributes:
        name: the name asked for.
        weights: where the weights came from, in words.
        input_size: `(channels, height, width)` the model expects.
        mean, std: per channel, subtracted and divided after scaling to [0, 1].
        interpolation: how `preprocess` resizes.
        num_prefix_tokens: tokens before the patch tokens (class token, registers); 0 for conv nets.
        grid: `(h, w)` of the patch tokens or of the last feature map; None where timm does not say.
        classes: names of the outputs, or None where they have none here.
    """

    name: str
    weights: str
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    num_prefix_tokens: int
    grid: tuple[int, int] | None
    classes: tuple[str, ...] | None

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """Images `(n, 3, height, width)` or `(3, height, width)` in [0, 1] to the model's input
        `(n, 3, *input_size[1:])`.

        Images of another size are resized (whole image, no crop), so that a map goes back to the
        image by resizing.
        """
        if images.ndim == 3:
            images = images[None]
        if images.ndim != 4 or images.shape[1] != self.input_size[0]:
            raise ValueError(
                f"expected images (n, {self.input_size[0]}, height, width); received {tuple(images.shape)}. "
                "Channels come first: image.permute(2, 0, 1) turns (height, width, 3) around"
            )
        if not images.is_floating_point() or images.min() < 0 or images.max() > 1:
            raise ValueError(
                f"expected floating point values in [0, 1]; received {images.dtype} from {images.min():.4g} to "
                f"{images.max():.4g}. Grey levels 0 to 255 need division by 255; normalise only once"
            )
        if images.shape[-2:] != self.input_size[1:]:
            mode = (
                self.interpolation if self.interpolation in ("bilinear", "bicubic") else "bicubic"
            )
            images = F.interpolate(
                images, self.input_size[1:], mode=mode, antialias=True, align_corners=False
            ).clamp(0, 1)
        mean, std = (
            torch.tensor(v, dtype=images.dtype, device=images.device).view(-1, 1, 1)
            for v in (self.mean, self.std)
        )
        return (images - mean) / std


# --- bundled architectures
# -------------------------------------------------------------------------------------


def _resnet(outputs: int) -> nn.Module:
    # Output stride 8: a 12 x 12 last feature map, as fine as the ViT's patch grid. zero_init_last
    # would start the residual branches at zero, where hooks on their last conv see no gradient.
    return ResNet(
        BasicBlock,
        [1, 1, 1, 1],
        num_classes=outputs,
        channels=(16, 32, 64, 96),
        stem_width=12,
        stem_type="deep",
        output_stride=8,
        zero_init_last=False,
    )


def _vit(outputs: int) -> nn.Module:
    # A few convolutions in place of one 8 x 8 patch projection: small ViTs learn many times faster
    # with them. The norm acts on each token and the mean over patch tokens comes last, so that
    # every logit is a sum over tokens.
    stem = ConvStem(
        depth=5, channels=(24, 48, 64, 64, 64), kernel_size=3, stride=(2, 2, 2, 1, 1), padding=1
    )
    return VisionTransformer(
        img_size=MODEL_INPUT,
        patch_size=1,
        embed_dim=64,
        depth=4,
        num_heads=2,
        mlp_ratio=2,
        num_classes=outputs,
        global_pool="avg",
        fc_norm=False,
        embed_layer=partial(HybridEmbed, backbone=stem),
    )


# name -> (architecture, number of outputs)
BUNDLED = {
    **{f"aviary-resnet-{seed}": (_resnet, len(SPECIES)) for seed in range(3)},
    **{f"aviary-vit-{seed}": (_vit, len(SPECIES)) for seed in range(3)},
    "aviary-cheating": (_resnet, len(SPECIES)),
    "aviary-shuffled": (_resnet, len(SPECIES)),
    "aviary-embedding": (_resnet, EMBEDDING_SIZE),
}


def build_bundled(name: str) -> nn.Module:
    """The architecture of a bundled model with fresh random weights and its timm preprocessing
    record.
    """
    architecture, outputs = BUNDLED[name]
    model = architecture(outputs)
    model.pretrained_cfg = model.default_cfg = {
        "architecture": name,
        "input_size": (3, MODEL_INPUT, MODEL_INPUT),
        "mean": _MEAN,
        "std": _STD,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "num_classes": outputs,
    }
    return model


def save_bundled(model: nn.Module, name: str, card: dict) -> None:
    """Writes weights (half precision) and model card next to each other in the package data."""
    MODEL_DIR.mkdir(parents=True, exist_ok=True)
    state = {
        k: (v.half() if v.is_floating_point() else v).contiguous().cpu()
        for k, v in model.state_dict().items()
    }
    path = MODEL_DIR / f"{name}.safetensors"
    save_file(state, str(path))
    path.chmod(0o644)  # the writer leaves it readable to its owner only, and it is to be packaged
    (MODEL_DIR / f"{name}.json").write_text(json.dumps(card, indent=1) + "\n")


def model_card(name: str) -> dict:
    """How a bundled model was trained and how well it does: recipe, seed, log, accuracies, training
    time.
    """
    if name not in BUNDLED:
        raise ValueError(f"{name!r} is not bundled; the bundled models are {', '.join(BUNDLED)}")
    return json.loads((MODEL_DIR / f"{name}.json").read_text())


# --- loading
# ---------------------------------------------------------------------------------------------------


def _info(model: nn.Module, name: str, weights: str) -> ModelInfo:
    """Reads sizes, preprocessing and tokens off a timm model."""
    config = timm.data.resolve_model_data_config(model)
    embed = getattr(model, "patch_embed", None)
    stages = getattr(model, "feature_info", None)
    if hasattr(embed, "grid_size") and hasattr(model, "num_prefix_tokens"):
        grid = tuple(embed.grid_size)
    elif isinstance(stages, (list, tuple)) and stages and "reduction" in stages[-1]:
        grid = tuple(
            -(-side // stages[-1]["reduction"]) for side in config["input_size"][1:]
        )  # rounded up
    else:
        grid = None
    outputs = BUNDLED[name][1] if name in BUNDLED else None
    return ModelInfo(
        name,
        weights,
        tuple(config["input_size"]),
        tuple(config["mean"]),
        tuple(config["std"]),
        config["interpolation"],
        int(getattr(model, "num_prefix_tokens", 0)),
        grid,
        tuple(s.name for s in SPECIES) if outputs == len(SPECIES) else None,
    )


def read_checkpoint(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file or of a torch checkpoint; code inside a file is never
    executed.

    Raises:
        ValueError: no such file, a damaged file, or a pickle that holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"no weight file at {path}; weights must be 'auto', 'pretrained', 'random' or the path of an existing file"
        )
    try:
        state = (
            load_file(str(path))
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no readable safetensors file ({error}); it may be cut short: fetch it again"
        ) from error
    except Exception as error:  # torch.load raises many types for a bad file
        raise ValueError(
            f"{path} was refused: {str(error).splitlines()[0]}. Only files that hold nothing but tensors are read "
            "(weights_only=True); save the state dict as safetensors"
        ) from error
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        state = (
            state.get(key, state)
            if isinstance(state, dict) and isinstance(state.get(key, None), dict)
            else state
        )
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(v, torch.Tensor) for v in state.values())
    ):
        raise ValueError(f"{path} holds no state dict (a mapping from names to tensors)")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _fill(model: nn.Module, path: str | os.PathLike, name: str) -> None:
    """Loads a checkpoint, every tensor of it and no other."""
    state = {k: v.float() if v.is_floating_point() else v for k, v in read_checkpoint(path).items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit {name}: {' '.join(str(error).split())[:400]}. Is it the checkpoint of another architecture?"
        ) from error


def _network_problem() -> str | None:
    """Why the hub cannot be reached, found out in seconds: its client alone would retry for most of
    a minute.
    """
    if constants.HF_HUB_OFFLINE:
        return "the hub client is set to offline"
    if urllib.request.getproxies():
        return None  # names are resolved by the proxy; let the client try
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=4).close()
    except OSError as error:
        return f"no network ({error})"
    return None


@contextmanager
def _hub_offline(offline: bool):
    """The hub client restricted to its cache, and back to what it was."""
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, offline or constants.HF_HUB_OFFLINE
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _pretrained(name: str) -> tuple[nn.Module, str]:
    """A timm model with its published weights, from the folder in CTRACE_WEIGHTS_DIR, the hub
    cache, or the network.
    """
    folder = os.environ.get(WEIGHTS_VARIABLE)
    found = (
        [
            p
            for p in (
                Path(folder) / f"{name}{end}" for end in (".safetensors", ".pth", ".pt", ".bin")
            )
            if p.is_file()
        ]
        if folder
        else []
    )
    if found:
        model = timm.create_model(name)
        _fill(model, found[0], name)
        return model, f"local file {found[0].name}"
    offline = _network_problem()
    try:
        with _hub_offline(offline is not None):
            return timm.create_model(name, pretrained=True), "pretrained timm weights"
    except (
        Exception
    ) as error:  # the hub client raises its own types, its transport's and the system's
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        reason = f"not in the hub cache, and {offline}" if offline else first_line
        raise ValueError(
            f"no pretrained weights for {name!r}: {reason}. Three ways on: (1) run once with a network, the weights stay in the hub cache; "
            f"(2) set {WEIGHTS_VARIABLE} to a folder that holds {name}.safetensors or {name}.pth; (3) use a bundled model, e.g. 'aviary-vit-0'"
        ) from error


def _check_name(name: str) -> None:
    if name in BUNDLED or timm.is_model(name.split(".")[0]):
        return
    close = difflib.get_close_matches(name, [*BUNDLED, *timm.list_models()], n=4, cutoff=0.5)
    raise ValueError(
        f"no model is called {name!r}. Bundled: {', '.join(BUNDLED)}; or any timm architecture"
        + (f". Close names: {', '.join(close)}" if close else "")
    )


def load_model(
    name: str, weights: str | os.PathLike = "auto", device: str | torch.device | None = None
) -> nn.Module:
    """A model in evaluation mode with a `ModelInfo` as `model.info`; prints in one line what was
    loaded from where.

    Args:
        name: one of `BUNDLED`, or any timm architecture (with or without a weight tag, e.g.
            "vit_small_patch16_224").
        weights: "auto" takes the bundled weights, or for timm names the published ones, and where
            those cannot be had random ones, and says so; "pretrained" insists on trained weights;
            "random" draws them from torch's generator; anything else is the path of a safetensors
            file or torch checkpoint.
        device: None takes a GPU when there is one.

    Raises:
        ValueError: an unknown name (close names are listed), no pretrained weights within reach, or
            a file that does not fit.

    Example:
        >>> load_model("aviary-resnet-0", device="cpu").info.grid
        aviary-resnet-0: bundled weights, 14 species, grid 12 x 12, 0 prefix tokens
        (12, 12)
    """
    name, choice = str(name), os.fspath(weights)
    _check_name(name)
    if choice == "random":
        model, source = (
            (build_bundled(name) if name in BUNDLED else timm.create_model(name)),
            "random weights, untrained",
        )
    elif choice not in ("auto", "pretrained"):
        model, source = (
            (build_bundled(name) if name in BUNDLED else timm.create_model(name)),
            f"local file {Path(choice).name}",
        )
        _fill(model, choice, name)
    elif name in BUNDLED:
        model, source = build_bundled(name), "bundled weights"
        _fill(model, MODEL_DIR / f"{name}.safetensors", name)
    else:
        try:
            model, source = _pretrained(name)
        except ValueError as error:
            if choice == "pretrained":
                raise
            model, source = (
                timm.create_model(name),
                f"RANDOM weights, untrained, because there were {error}",
            )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model.info = _info(model, name, source)
    print(_one_line(model.info))
    return model.eval().to(device)


def _one_line(info: ModelInfo) -> str:
    parts = [info.weights]
    if info.classes:
        parts.append(f"{len(info.classes)} species")
    if info.grid:
        parts.append(f"grid {info.grid[0]} x {info.grid[1]}")
    parts.append(f"{info.num_prefix_tokens} prefix token{'s' * (info.num_prefix_tokens != 1)}")
    return f"{info.name}: {', '.join(parts)}"
