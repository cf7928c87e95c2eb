"""One batch through a model: the mean activation of every channel on the way, and the checks that a pass over a data set needs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["channel_means", "check_labels", "images_and_labels", "mean_activation", "number_of_outputs"]


def mean_activation(output: Tensor) -> Tensor:
    """Spatial mean of a convolution's output after a ReLU, ``(b, c)`` from ``(b, c, h, w)``; in float32 at least."""
    return output.relu().mean((2, 3), dtype=torch.promote_types(output.dtype, torch.float32))


@contextmanager
def channel_means(model: nn.Module, convs: dict[str, nn.Conv2d]) -> Iterator[Callable]:
    """Yields a function from images to the model's output and the `mean_activation` of all layers side by side ``(b, channels)``.

    Nothing larger than that is kept, and the hooks are gone when the context closes.

    Raises:
        ValueError: a layer that is not reached, is used twice, or whose rows are not images.
    """
    seen, handles = {}, []

    def see(name: str) -> Callable:
        def hook(module, inputs, output):
            if name in seen:
                raise ValueError(f"layer {name!r} is used twice in one pass, so an image has two activations. Leave it out of layers.")
            seen[name] = mean_activation(output)

        return hook

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        seen.clear()
        output = model(images)
        missed = [name for name in convs if name not in seen]
        if missed:
            raise ValueError(f"{', '.join(missed)}: never reached by a forward pass (an auxiliary head?). Leave them out of layers.")
        wrong = [f"{name!r} put out {len(seen[name])}" for name in convs if len(seen[name]) != len(images)]
        if wrong:
            raise ValueError(f"{wrong[0]} rows for {len(images)} images: they are not images. Leave it out of layers.")
        return output, torch.cat([seen[name] for name in convs], 1)

    try:
        for name, conv in convs.items():
            handles.append(conv.register_forward_hook(see(name)))
        yield run
    finally:
        for handle in handles:
            handle.remove()


def number_of_outputs(output) -> int:
    """Classes of a classifier, read off its logits ``(b, classes)``."""
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise ValueError("the model does not put out one row of logits per image, so the number of classes is unknown. Pass num_classes.")
    return output.shape[1]


def images_and_labels(batch) -> tuple[Tensor, Tensor]:
    """The two halves of what a data loader yields."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        got = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise ValueError(f"loader: expected batches (images, labels), received a {got}.")
    return batch[0], torch.as_tensor(batch[1])


def check_labels(labels: Tensor, b: int, k: int) -> Tensor:
    """The class number of each of ``b`` images ``(b,)``, on the CPU; refuses any other label."""
    labels = labels.detach().cpu()
    if labels.shape != (b,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"labels: expected one class number for each of the {b} images, received {labels.dtype} {tuple(labels.shape)}. A soft "
            "label has no class to test; take its argmax if that is what you mean."
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < k:
        raise ValueError(
            f"labels: classes run from 0 to {k - 1}, received {int(labels.min())} to {int(labels.max())}. "
            "Does the data number its classes as the model does? For an embedding model pass num_classes."
        )
    return labels.long()
