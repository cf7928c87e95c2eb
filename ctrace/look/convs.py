"""The convolutions of a model: which there are, which of them ParchGrad edits unless told
otherwise, and how strongly their channels fire.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["channel_means", "conv_layers", "default_convs", "mean_activation"]


def conv_layers(model: nn.Module, layers=None) -> dict[str, nn.Conv2d]:
    """Every `Conv2d` by dotted name, in order of definition; or those of them named by ``layers``.

    Args:
        layers: a dotted name, a module, or a list of these.

    Raises:
        ValueError: no convolution in the model, or a layer that is not one of them.
    """
    names = {
        id(module): name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    }
    convs = {name: model.get_submodule(name) for name in names.values()}
    if not convs:
        raise ValueError(
            f"the model ({type(model).__name__}) has no Conv2d, and this method is about channels of convolutions. "
            "For a transformer use Grad-CAM, or an input attribution without a partition."
        )
    if layers is None:
        return convs
    asked = [layers] if isinstance(layers, (str, nn.Module)) else list(layers)
    chosen = [names.get(id(layer)) if isinstance(layer, nn.Module) else layer for layer in asked]
    wrong = [str(given) for given, name in zip(asked, chosen) if name not in convs]
    if wrong or not chosen:
        raise ValueError(
            f"layers: expected convolutions of this model, received {', '.join(wrong) or 'none'}. It has: {', '.join(convs)}."
        )
    return {name: convs[name] for name in chosen}


def default_convs(model: nn.Module, layer_ratio: float | None = None) -> list[str]:
    """Names of the convolutions to edit, in order of definition.

    With ``layer_ratio`` the last share of all convolutions, one at least, for any model. Without it
    the published choice for the model's family (timm and torchvision): ResNet, the convolutions of
    the last two stages without their shortcuts; VGG, those in the upper half of ``features``;
    EfficientNet, the depthwise ones that open the last two stages and the final 1 x 1.

    Raises:
        ValueError: no convolution, a share outside (0, 1], or no ``layer_ratio`` for a family
            without a default.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    >>> default_convs(net, layer_ratio=0.5)
    ['2']
    """
    convs = conv_layers(model)
    if layer_ratio is not None:
        if not 0 < layer_ratio <= 1:
            raise ValueError(f"layer_ratio: expected a share in (0, 1], received {layer_ratio}.")
        return list(convs)[
            -max(1, int(layer_ratio * len(convs) + 1e-9)) :
        ]  # int(0.29 * 100) alone would be 28
    for family in type(model).__mro__:
        chosen = FAMILIES.get(family.__name__, lambda *_: [])(model, convs)
        if chosen:
            return chosen
    raise ValueError(
        f"no default layers are known for {type(model).__name__}. Pass layer_ratio, for example 0.5 for the last half of its {len(convs)} "
        "convolutions, or layers by name."
    )


def _resnet(model: nn.Module, convs: dict) -> list[str]:
    late, inner = ("layer3.", "layer4."), ("conv1", "conv2", "conv3")
    return [name for name in convs if name.startswith(late) and name.split(".")[-1] in inner]


def _vgg(model: nn.Module, convs: dict) -> list[str]:
    half = len(model.features) // 2
    return [
        name for name in convs if name.startswith("features.") and int(name.split(".")[1]) >= half
    ]


def _efficientnet(model: nn.Module, convs: dict) -> list[str]:
    if hasattr(model, "conv_head"):  # timm
        stages, head = [f"blocks.{len(model.blocks) + i}.0." for i in (-2, -1)], "conv_head"
    else:  # torchvision keeps the stem, seven stages and the head in one list
        last = len(model.features) - 1
        stages, head = [f"features.{last + i}.0." for i in (-2, -1)], f"features.{last}.0"
    depthwise = [name for name, conv in convs.items() if conv.groups == conv.in_channels > 1]
    return [name for name in depthwise if name.startswith(tuple(stages))] + [head]


FAMILIES = {"ResNet": _resnet, "VGG": _vgg, "EfficientNet": _efficientnet}


def mean_activation(output: Tensor) -> Tensor:
    """Spatial mean of a convolution's output after a ReLU, ``(b, c)`` from ``(b, c, h, w)``; in
    float32 at least.
    """
    return output.relu().mean((2, 3), dtype=torch.promote_types(output.dtype, torch.float32))


@contextmanager
def channel_means(model: nn.Module, convs: dict[str, nn.Conv2d]) -> Iterator[Callable]:
    """Yields a function from images to the model's output and the `mean_activation` of all layers
    side by side ``(b, channels)``.

    Nothing larger than that is kept, and the hooks are gone when the context closes.

    Raises:
        ValueError: a layer that is not reached, is used twice, or whose rows are not images.
    """
    seen, handles = {}, []

    def see(name: str) -> Callable:
        def hook(module, inputs, output):
            if name in seen:
                raise ValueError(
                    f"layer {name!r} is used twice in one pass, so an image has two activations. Leave it out of layers."
                )
            seen[name] = mean_activation(output)

        return hook

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        seen.clear()
        output = model(images)
        missed = [name for name in convs if name not in seen]
        if missed:
            raise ValueError(
                f"{', '.join(missed)}: never reached by a forward pass (an auxiliary head?). Leave them out of layers."
            )
        wrong = [
            f"{name!r} put out {len(seen[name])}"
            for name in convs
            if len(seen[name]) != len(images)
        ]
        if wrong:
            raise ValueError(
                f"{wrong[0]} rows for {len(images)} images: they are not images. Leave it out of layers."
            )
        return output, torch.cat([seen[name] for name in convs], 1)

    try:
        for name, conv in convs.items():
            handles.append(conv.register_forward_hook(see(name)))
        yield run
    finally:
        for handle in handles:
            handle.remove()
