"""Where trained weights come from: a file, the folder in CTRACE_WEIGHTS_DIR, the hub's cache, or
the network.

Code inside a file is never executed.
"""

from __future__ import annotations

import os
import socket
import urllib.parse
import urllib.request
from pathlib import Path

import timm
from huggingface_hub import constants, try_to_load_from_cache
from torch import Tensor, nn

from ctrace.arguments import checked

WEIGHTS_VARIABLE = "CTRACE_WEIGHTS_DIR"
ENDINGS = (".safetensors", ".pth", ".pt", ".bin")
ON_THE_HUB = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")


@checked
def read_checkpoint(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a torch checkpoint; code inside a file is never
    executed.

    Raises:
        ValueError: no such file, a damaged file, or a pickle that holds more than tensors.
    """
    path = Path(path)
    if not path.is_file() or not path.stat().st_size:
        problem = "an empty file is" if path.is_file() else "no weight file"
        raise ValueError(
            f"weights: {problem} at {path}. Fetch it again, or choose 'auto' or 'random'."
        )
    try:
        state = timm.models.load_state_dict(str(path), weights_only=True)
    except AttributeError:  # a list, a number
        state = None
    except Exception as error:  # torch.load and safetensors raise many types for a bad file
        problem = "is no readable safetensors file" if path.suffix == ENDINGS[0] else "was refused"
        raise ValueError(
            f"weights: {path} {problem}: {_first_line(error)}. Only whole files that hold "
            "nothing but tensors is read (weights_only=True). Fetch it again, or save a state dict."
        ) from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"weights: {path} holds no state dict (a mapping from names to tensors).")
    return state


def fill(model: nn.Module, path: str | os.PathLike, name: str) -> None:
    """Loads a checkpoint into the model, every tensor of it and no other."""
    try:
        model.load_state_dict(read_checkpoint(path))
    except RuntimeError as error:
        raise ValueError(
            f"weights: {path} does not fit {name}: {' '.join(str(error).split())[:400]}. Is it the "
            "checkpoint of another architecture?"
        ) from error


def published(name: str, **options) -> tuple[nn.Module, str]:
    """A timm model with its published weights, and where these were found: in the folder named by
    CTRACE_WEIGHTS_DIR, in the hub's cache, or over the network, in this order.

    Raises:
        ValueError: they are out of reach, or a file does not fit; three ways on are named.
    """
    config, source = timm.get_pretrained_cfg(name), "pretrained timm weights"
    folder = Path(os.environ.get(WEIGHTS_VARIABLE) or os.devnull)
    file = next((f for end in ENDINGS if (f := folder / f"{name}{end}").is_file()), None)
    if file:
        source = f"local file {file.name}"
    try:
        file = file or _in_cache(config.hf_hub_id, config.hf_hub_filename)
        if file:  # timm converts what the authors published to its own layout and input size
            options = {"pretrained_cfg_overlay": {"state_dict": read_checkpoint(file)}} | options
        elif config.hf_hub_id and (problem := _network_problem()):
            raise ConnectionError(f"not in the hub cache, and {problem}")
        model = timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # the hub's client, its transport and torch raise their own types
        raise ValueError(
            f"no pretrained weights for {name!r}: {_first_line(error)[:400]}. Three ways on: (1) "
            "run once with a network, the weights stay in the hub cache; (2) set "
            f"{WEIGHTS_VARIABLE} to a folder that holds {name}.safetensors or {name}.pth; (3) use "
            "a bundled model, e.g. 'aviary-vit-0'"
        ) from error
    model.pretrained_cfg.pop("state_dict", None)  # or every copy of the model would hold them twice
    return model, source


def _in_cache(hub_id: str | None, filename: str | None) -> str | None:
    repository, _, revision = (hub_id or "").partition("@")
    for file in (filename, *ON_THE_HUB) if filename else ON_THE_HUB:
        found = repository and try_to_load_from_cache(repository, file, revision=revision or None)
        if isinstance(found, str) and found:
            return found
    return None


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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
