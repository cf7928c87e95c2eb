"""Embeddings of a data set: computed once, kept in a file that knows which weights, settings and
images it came from.

>>> from ctrace.carrot.data import aviary_splits
>>> pictures = aviary_splits(train=4, test=1, size=32)["train"]
>>> made = embed(lambda images: images.mean((2, 3)), pictures, progress=False)
>>> tuple(made.G.shape), made.labels.tolist()
((4, 3), [0, 1, 2, 3])
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

__all__ = ["Embeddings", "cache_key", "embed", "weights_identity"]

FORMAT = "ctrace carrot embeddings 1"


@dataclass(frozen=True, eq=False)
class Embeddings:
    """One row per image, in the order of the data.

    Attributes:
        G: ``(n, c)``.
        labels: class numbers ``(n,)``.
    """

    G: Tensor
    labels: Tensor


def embed(
    embedder: Callable[[Tensor], Tensor],
    data: Dataset | Iterable,
    cache=None,
    key: dict[str, str] | None = None,
    batch: int = 64,
    progress: bool = True,
) -> Embeddings:
    """The embedding of every image, read from ``cache`` where it was computed before.

    Args:
        embedder: images ``(b, 3, height, width)`` as the data gives them to ``(b, c)``.
        data: a data set of (image, class number), or any iterable of batches ``(images, labels)``.
        cache: a folder; needs a ``key``.
        key: what the embeddings depend on, in words, see `cache_key`.
        batch: images at a time, for a data set.
        progress: a bar on stderr.

    Raises:
        ValueError: no image, embeddings that are not finite, or a cached file that is damaged or of
            something else.
    """
    path = None if cache is None else _path(Path(cache), key)
    if path is not None and path.exists():
        return _load(path, key)
    loader = DataLoader(data, batch) if isinstance(data, Dataset) else data
    rows, labels = [], []
    with torch.no_grad():
        for item in tqdm(loader, desc="embedding", unit="batch", disable=not progress):
            images, y = _pair(item)
            rows.append(embedder(images).cpu())
            labels.append(y.cpu())
    if not rows:
        raise ValueError(
            "data: no batch came out of it. An iterator that has been used up, or an empty data set?"
        )
    made = Embeddings(torch.cat(rows), torch.cat(labels).long())
    if not bool(torch.isfinite(made.G).all()):
        raise ValueError(
            f"{int((~torch.isfinite(made.G)).any(1).sum())} of {len(made.G)} embeddings are not finite. Half precision overflowing?"
        )
    if path is not None:
        _save(path, made, key)
    return made


def cache_key(model: nn.Module, settings: dict, data) -> dict[str, str]:
    """What embeddings depend on: the values of all weights, every setting, and the images.

    Raises:
        ValueError: data without an ``identity`` (see `ctrace.carrot.data.Split`): a file for it
            could be another data set's.
    """
    if not hasattr(data, "identity"):
        raise ValueError(
            f"cache: a {type(data).__name__} does not say which images it holds, so its embeddings cannot be told from others. Use the splits "
            "of ctrace.carrot.data, or pass cache=None."
        )
    return {
        "weights": weights_identity(model),
        "settings": json.dumps(settings, sort_keys=True, default=str),
        "data": data.identity,
    }


def weights_identity(model: nn.Module) -> str:
    """A hash of all parameters and buffers, by name, shape and value, and of the architecture in
    words.
    """
    digest = blake2b(str(model).encode(), digest_size=32)
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + _bytes(tensor))
    return digest.hexdigest()


def _pair(batch) -> tuple[Tensor, Tensor]:
    if (
        not isinstance(batch, (tuple, list))
        or len(batch) != 2
        or len(batch[0]) != len(torch.as_tensor(batch[1]))
    ):
        got = (
            f"{type(batch).__name__} of {len(batch)}"
            if isinstance(batch, (tuple, list))
            else type(batch).__name__
        )
        raise ValueError(
            f"data: expected batches (images, labels) of equal length, received a {got}."
        )
    return batch[0], torch.as_tensor(batch[1])


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _path(folder: Path, key: dict[str, str] | None) -> Path:
    if not key:
        raise ValueError("cache: a key is needed too, see cache_key(model, settings, data).")
    return (
        folder
        / f"{blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=12).hexdigest()}.safetensors"
    )


def _checksum(made: Embeddings) -> str:
    return blake2b(_bytes(made.G) + _bytes(made.labels), digest_size=32).hexdigest()


def _save(path: Path, made: Embeddings, key: dict[str, str]) -> None:
    """Whole or not at all: an interrupted run leaves no half file under the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        unfinished = Path(folder) / path.name
        metadata = key | {"format": FORMAT, "checksum": _checksum(made)}
        save_file(
            {"G": made.G.contiguous(), "labels": made.labels.contiguous()},
            str(unfinished),
            metadata,
        )
        os.replace(unfinished, path)


def _load(path: Path, key: dict[str, str]) -> Embeddings:
    advice = "Delete the file and it is computed again."
    try:
        with safe_open(str(path), "pt") as file:
            found, made = (
                file.metadata() or {},
                Embeddings(file.get_tensor("G"), file.get_tensor("labels")),
            )
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"cache: {path} is damaged or no file of embeddings ({error}). {advice}"
        ) from error
    if found.get("format") != FORMAT or any(
        found.get(name) != value for name, value in key.items()
    ):
        off = [
            name
            for name in ("format", *key)
            if found.get(name) != (FORMAT if name == "format" else key[name])
        ]
        raise ValueError(
            f"cache: {path} holds embeddings of something else: {', '.join(off)} differ. Was it copied or renamed? {advice}"
        )
    if found.get("checksum") != _checksum(made):
        raise ValueError(
            f"cache: {path} is damaged: its values do not match their checksum. {advice}"
        )
    return made
