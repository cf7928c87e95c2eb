"""Models through one door: the ones bundled with ctrace, any timm architecture, and local
checkpoints.

>>> model = load_model("aviary-vit-0")
aviary-vit-0: bundled weights, 14 species, grid 12 x 12, 1 prefix token
>>> model.info.grid, model.info.num_prefix_tokens, model.info.input_size
((12, 12), 1, (3, 96, 96))
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem, HybridEmbed
from torch import nn
from torchvision.models import squeezenet1_0

from ctrace.arguments import checked
from ctrace.aviary import SPECIES
from ctrace.check import check_device, check_pixels, one_of
from ctrace.world.weights import fill, published

MODEL_VARIABLE = "CTRACE_MODEL"
MODEL_DIR = Path(__file__).parents[1] / "data" / "models"
MODEL_INPUT = 96
EMBEDDING_SIZE = 64


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

    @checked
    def preprocess(self, images: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Images `(n, 3, height, width)` or `(3, height, width)` in [0, 1] to the model's input
        `(n, 3, *size)`.

        Images of another size are resized (whole image, no crop), so that a map goes back to the
        image by resizing.

        Args:
            size: `(height, width)`, for a network that takes any; None takes `input_size`.
        """
        channels, *own = self.input_size
        size = own if size is None else list(size)
        images = check_pixels(images, channels)
        images = images[None] if images.ndim == 3 else images
        if list(images.shape[-2:]) != size:
            mode = self.interpolation if self.interpolation == "bilinear" else "bicubic"
            images = F.interpolate(images, size, mode=mode, antialias=True, align_corners=False)
            images = images.clamp(0, 1)
        mean, std = (images.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (images - mean) / std

    def index(self, name: str) -> int:
        """Number of the class called `name`: its whole name, or one of the synonyms that a comma
        sets apart.

        Raises:
            ValueError: no class or several are called so; close names, or their numbers, are
                listed.

        >>> load_model("squeezenet", device="cpu").info.index("tabby cat")
        squeezenet: bundled weights, 1000 classes, 0 prefix tokens
        281
        """
        classes = self.classes or ()
        whole = [i for i, words in enumerate(classes) if words == name]
        found = whole or [i for i, words in enumerate(classes) if name in words.split(", ")]
        if len(found) > 1:
            raise ValueError(f"class: {name!r} is the name of {found}. Choose by number.")
        if not found:
            one_of("class", name, [word for words in classes for word in words.split(", ")])
        return found[0]


# --- bundled architectures


def _resnet(outputs: int) -> nn.Module:
    # Output stride 8: a 12 x 12 last feature map, as fine as the ViT's patch grid. zero_init_last
    # would start the residual branches at zero, where hooks on their last conv see no gradient.
    sizes = {"channels": (16, 32, 64, 96), "stem_width": 12, "stem_type": "deep"}
    return ResNet(BasicBlock, [1] * 4, outputs, output_stride=8, zero_init_last=False, **sizes)


def _vit(outputs: int) -> nn.Module:
    # A few convolutions in place of one 8 x 8 patch projection: small ViTs learn many times faster
    # with them. The norm acts on each token and the mean over patch tokens comes last, so that
    # every logit is a sum over tokens.
    widths, strides = (24, 48, 64, 64, 64), (2, 2, 2, 1, 1)
    stem = ConvStem(depth=5, channels=widths, kernel_size=3, stride=strides, padding=1)
    embed = {"patch_size": 1, "embed_dim": 64, "embed_layer": partial(HybridEmbed, backbone=stem)}
    blocks = {"depth": 4, "num_heads": 2, "mlp_ratio": 2}
    head = {"num_classes": outputs, "global_pool": "avg", "fc_norm": False}
    return VisionTransformer(MODEL_INPUT, **embed, **blocks, **head)


def _squeezenet(outputs: int) -> nn.Module:
    model = squeezenet1_0(weights=None, num_classes=outputs)
    # As published: the last 1 x 1 convolution is padded by one, which torchvision leaves out.
    model.classifier[1].padding = (1, 1)
    means, levels = (123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3
    config = {"input_size": (3, 227, 227), "interpolation": "bilinear"}
    model.pretrained_cfg = config | {"mean": means, "std": levels}
    return model


# name -> (architecture, number of outputs)
BUNDLED = {
    **{f"aviary-resnet-{seed}": (_resnet, len(SPECIES)) for seed in range(3)},
    **{f"aviary-vit-{seed}": (_vit, len(SPECIES)) for seed in range(3)},
    "aviary-cheating": (_resnet, len(SPECIES)),
    "aviary-shuffled": (_resnet, len(SPECIES)),
    "aviary-embedding": (_resnet, EMBEDDING_SIZE),
    "squeezenet": (_squeezenet, 1000),
}


def build_bundled(name: str) -> nn.Module:
    """The architecture of a bundled model with fresh random weights and its timm preprocessing
    record.
    """
    architecture, outputs = BUNDLED[name]
    model = architecture(outputs)
    config = {"architecture": name, "num_classes": outputs, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    config |= {"input_size": (3, MODEL_INPUT, MODEL_INPUT), "interpolation": "bicubic"}
    own = getattr(model, "pretrained_cfg", {})
    model.pretrained_cfg = model.default_cfg = config | {"crop_pct": 1.0} | own
    return model


def model_card(name: str) -> dict:
    """How a bundled model was trained and how well it does: recipe, seed, log, accuracies, training
    time; of "squeezenet" its source, licence, what was changed, and accuracies.
    """
    return json.loads((MODEL_DIR / f"{one_of('bundled model', name, BUNDLED)}.json").read_text())


# --- loading


def describe(model: nn.Module, name: str = "", weights: str = "", classes=None) -> ModelInfo:
    """Reads sizes, preprocessing and tokens off a timm model, as it is now."""
    config = timm.data.resolve_model_data_config(model)
    embed, stages = (getattr(model, part, None) for part in ("patch_embed", "feature_info"))
    channels, *size = config["input_size"]
    size = getattr(embed, "img_size", None) or size  # a model may have been resized
    prefix, grid = int(getattr(model, "num_prefix_tokens", 0)), None
    if hasattr(embed, "grid_size") and hasattr(model, "num_prefix_tokens"):
        grid = tuple(embed.grid_size)
    elif isinstance(stages, (list, tuple)) and stages and "reduction" in stages[-1]:
        grid = tuple(-(-side // stages[-1]["reduction"]) for side in size)  # rounded up
    preparation = (config[key] for key in ("mean", "std", "interpolation"))
    return ModelInfo(name, weights, (channels, *size), *preparation, prefix, grid, classes)


def _imagenet_names(subset: str | None) -> tuple[str, ...] | None:
    return tuple(ImageNetInfo(subset).label_descriptions()) if subset else None


def _bundled_names(name: str) -> tuple[str, ...] | None:
    if name == "squeezenet":
        return _imagenet_names("imagenet-1k")
    is_classifier = name in BUNDLED and name != "aviary-embedding"
    return tuple(species.name for species in SPECIES) if is_classifier else None


@checked
def load_model(
    name: str,
    weights: str | os.PathLike = "auto",
    device: str | torch.device | None = None,
    **options,
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
        **options: for timm names, passed to `timm.create_model`, e.g. ``img_size=(224, 448)``.

    Raises:
        ValueError: an unknown name (close names are listed), no pretrained weights within reach, or
            a file that does not fit.

    Example:
        >>> load_model("aviary-resnet-0", device="cpu").info.grid
        aviary-resnet-0: bundled weights, 14 species, grid 12 x 12, 0 prefix tokens
        (12, 12)
    """
    name, choice = str(name), os.fspath(weights)
    device = check_device(device)
    if not timm.is_model(name.split(".")[0]):
        one_of("model", name, [*BUNDLED, *timm.list_models()])
    build = build_bundled if name in BUNDLED else timm.create_model
    # Only published weights are known to be trained on ImageNet; a file may be about anything.
    classes = _bundled_names(name)
    if choice == "random":
        model, source = build(name, **options), "random weights, untrained"
    elif choice not in ("auto", "pretrained"):
        model, source = build(name, **options), f"local file {Path(choice).name}"
        fill(model, choice, name)
    elif name in BUNDLED:
        model, source = build(name, **options), "bundled weights"
        fill(model, MODEL_DIR / f"{name}.safetensors", name)
    else:
        try:
            model, source = published(name, **options)
            classes = _imagenet_names(infer_imagenet_subset(model))
        except ValueError as error:
            if choice == "pretrained":
                raise
            model = build(name, **options)
            source = f"RANDOM weights, untrained, because there were {error}"
    model.info = describe(model, name, source, classes)
    print(_one_line(model.info))
    return model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def chosen_model() -> nn.Module | None:
    """The model that the environment variable CTRACE_MODEL names, with trained weights or not at
    all; None, said in one line, where it names none.

    Raises:
        ValueError: as `load_model`.
    """
    name = os.environ.get(MODEL_VARIABLE)
    if not name:
        print(f"{MODEL_VARIABLE} names no model")
    return load_model(name, "pretrained") if name else None


def _one_line(info: ModelInfo) -> str:
    parts = [info.weights]
    if info.classes:
        parts.append(
            f"{len(info.classes)} {'species' if info.name.startswith('aviary') else 'classes'}"
        )
    if info.grid:
        parts.append(f"grid {info.grid[0]} x {info.grid[1]}")
    parts.append(f"{info.num_prefix_tokens} prefix token{'s' * (info.num_prefix_tokens != 1)}")
    return f"{info.name}: {', '.join(parts)}"
