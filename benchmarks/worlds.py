"""Trained classifiers of the aviary: those that ship with ctrace, and those that
``tools/train_aviary.py --further`` made.
"""

from dataclasses import replace

from ctrace.world.models import BUNDLED, load_model
from tools.train_aviary import WORLDS


def worlds(kind: str) -> list[str]:
    """Names of all classifiers of a kind, "resnet" or "vit", that are on this machine."""
    found = [name for name in BUNDLED if name.startswith(f"aviary-{kind}-")]
    return found + sorted(path.stem for path in WORLDS.glob(f"aviary-{kind}-*.safetensors"))


def load_world(name: str):
    """A classifier by its name, on the CPU."""
    if name in BUNDLED:
        return load_model(name, device="cpu")
    model = load_model(f"{name[:-1]}0", WORLDS / f"{name}.safetensors", device="cpu")
    model.info = replace(model.info, name=name)
    return model
