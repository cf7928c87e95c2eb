"""A signature that is held: arguments are what their annotations say, or are refused by name before
anything has run, so that a refusal leaves everything as it was.

What is differentiated or moved between devices (features, images, embeddings, graphs) is a torch
tensor, and an array or a list is refused with the line to write; `Numbers`, which only judge or
count (maps, masks, classes), may be an array or a list as well. What depends on several arguments
(shapes that fit each other) is checked by the function itself.
"""

import contextlib
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial, wraps
from inspect import signature
from numbers import Real
from pathlib import Path
from typing import Annotated, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from ctrace.check import as_tensor, at_least_float32, check_features, check_number, seen

WORDS = {Tensor: "a torch tensor", str: "a text", bool: "a truth value", nn.Module: "a model"}
WORDS |= {int: "a whole number", float: "a number", type(None): "None", Callable: "a function"}
WORDS[Real] = WORDS[float]
INSTEAD = {np.ndarray: "torch.from_numpy(x)", list: "torch.tensor(x)", tuple: "torch.tensor(x)"}
ALSO = {tuple: (tuple, list), Sequence: (Sequence, np.ndarray), bool: (bool, np.bool_)}
REAL = (torch.float32, torch.float64)
FLOATING = (*REAL, torch.float16, torch.bfloat16)
# frames of these are not the caller's: our own, and those of decorators and context managers
INNER = (f"{Path(__file__).parent}/", f"{Path(torch.__file__).parent}/", contextlib.__file__)


# --- what an annotation can say


def _finite(what: str, x: Tensor) -> Tensor:
    """Real, not empty, and without NaN or infinity."""
    if x.is_complex() or x.layout != torch.strided or not x.numel():
        got = f"{x.dtype} {tuple(x.shape)} ({x.layout})"
        raise ValueError(f"{what}: expected at least one real number, dense, received {got}.")
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        bad = f"{int((~torch.isfinite(x)).sum())} of {x.numel()} are NaN or infinity"
        raise ValueError(f"{what}: expected finite numbers, {bad}. A division by zero upstream?")
    return x


def _numbers(what: str, value) -> Tensor:
    x = as_tensor(what, value)
    if x.is_floating_point() and isinstance(value, float | list | tuple):
        x = as_tensor(what, value, dtype=torch.float64)  # torch reads in its default precision
    return _finite(what, at_least_float32(x.detach()))


@dataclass(frozen=True)
class Axes:
    """The axes of a tensor by name, ``"n c"``, forms apart by ``"|"``; a name means one size
    throughout a call. ``dtypes`` are those accepted (all if none are named), one for all
    arguments of a call that are `real`; entries lie from 0 and ``below`` the size of a name.
    """

    forms: str
    dtypes: tuple[torch.dtype, ...] = ()
    below: str | None = None

    def fit(self, what: str, x: Tensor, sizes: dict) -> Tensor:
        """``x``, whose sizes are remembered for the arguments behind it."""
        wanted = sizes.setdefault("dtypes", REAL) if self.dtypes == REAL else self.dtypes
        if wanted and x.dtype not in wanted:
            names = " or ".join(map(str, wanted))
            raise ValueError(f"{what}: expected {names}, received {x.dtype}. Use x.to(dtype).")
        for names in map(str.split, self.forms.split("|")):
            pairs = dict(zip(names, x.shape))
            if len(names) == x.ndim and all(sizes.get(n, m) == m for n, m in pairs.items()):
                break
        else:
            known = [f"{n} = {m}" for n, m in sizes.items() if n in self.forms.split()]
            forms = " or ".join(f"({', '.join(form.split())})" for form in self.forms.split("|"))
            where = f" with {', '.join(known)}" if known else ""
            got = f"received shape {tuple(x.shape)}"
            raise ValueError(f"{what}: expected axes {forms}{where}, {got}.")
        sizes |= pairs | ({"dtypes": (x.dtype,)} if self.dtypes == REAL else {})
        most = sizes.get(self.below)
        if most is not None and not 0 <= int(x.min()) <= int(x.max()) < most:
            got = f"from {int(x.min())} to {int(x.max())}"
            raise ValueError(f"{what}: expected numbers from 0 and below {most}, received {got}.")
        return x


def shaped(forms: str):
    """Annotation of a tensor of any real type with these axes."""
    return Annotated[Tensor, Axes(forms)]


def floating(forms: str):
    """Annotation of a floating-point tensor with these axes."""
    return Annotated[Tensor, Axes(forms, FLOATING)]


def real(forms: str):
    """Annotation of a float32 or float64 tensor with these axes."""
    return Annotated[Tensor, Axes(forms, REAL)]


def numbering(forms: str, below: str | None = None):
    """Annotation of an int64 tensor with these axes, whose entries number another axis."""
    return Annotated[Tensor, Axes(forms, (torch.int64,), below)]


def truth(forms: str):
    """Annotation of a boolean tensor with these axes."""
    return Annotated[Tensor, Axes(forms, (torch.bool,))]


def numbers(forms: str):
    """Annotation of a tensor, an array or lists with these axes."""
    return Annotated[object, _numbers, Axes(forms)]


def within(kind: type = float, **bounds: float):
    """Annotation of a number within bounds, those of `ctrace.check.check_number`."""
    return Annotated[kind, partial(check_number, whole=kind is int, **bounds)]


Seed = within(int, at_least=0, below=2**32)
Whole = within(int, at_least=0)
Count = within(int, at_least=1)
Positive = within(above=0)
Bandwidth = Real | str | Tensor | np.ndarray | None
Points = Annotated[object, lambda what, x: check_features(x)]
Features = Annotated[object, lambda what, x: check_features(x, rows_at_least=1)]
Numbers = Annotated[object, _numbers]


# --- the judge


def checked(function: Callable) -> Callable:
    """The function, whose arguments are refused unless they fit their annotations (`fit`)."""
    accepted, hints = signature(function), {}

    @wraps(function)
    def run(*args, **named):
        given, sizes = accepted.bind(*args, **named), {"2": 2}
        if not hints:  # late: an annotation may name what its module defines later
            hints.update(get_type_hints(function, include_extras=True))
        for name, value in given.arguments.items():
            if name in hints and value is not accepted.parameters[name].default:
                given.arguments[name] = fit(name, value, hints[name], sizes)
        return function(*given.args, **given.kwargs)

    return run


def check_fields(record) -> None:
    """The same for the fields of a dataclass, to be called from its ``__post_init__``."""
    hints, sizes = get_type_hints(type(record), include_extras=True), {"2": 2}
    for field in fields(record):
        value = getattr(record, field.name)
        if field.init and value is not field.default and field.name in hints:
            object.__setattr__(record, field.name, fit(field.name, value, hints[field.name], sizes))


def fit(what: str, value, hint, sizes: dict):
    """``value`` in the form the annotation asks for; ValueError that names ``what`` if it has
    another.
    """
    if get_origin(hint) is Annotated:
        kind, *checks = get_args(hint)
        value = value if kind in (int, float) else fit(what, value, kind, sizes)
        for check in checks:
            axes = isinstance(check, Axes)
            value = check.fit(what, value, sizes) if axes else check(what, value)
        return value
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    nearest_first = sorted(options, key=lambda option: _kind(option) is object)
    kind = next((option for option in nearest_first if _is(value, _kind(option))), None)
    if kind is None:
        kinds = dict.fromkeys(map(_kind, options))
        how = f" Use {INSTEAD[type(value)]}." if Tensor in kinds and type(value) in INSTEAD else ""
        wanted = " or ".join(WORDS.get(k, f"a {getattr(k, '__name__', k)}") for k in kinds)
        raise ValueError(f"{what}: expected {wanted}, received {seen(value)}.{how}")
    if len(options) > 1:
        return fit(what, value, kind, sizes)
    if kind in (int, float):
        return check_number(what, value, whole=kind is int)
    if kind is Tensor:
        return _finite(what, value)
    inner = get_args(kind) if isinstance(value, tuple | list) else ()
    if inner:
        each = inner if _kind(kind) is tuple and Ellipsis not in inner else inner[:1] * len(value)
        if len(each) != len(value):
            raise ValueError(f"{what}: expected {len(each)} entries, received {value!r}.")
        for entry, its_hint in zip(value, each):
            fit(what, entry, its_hint, sizes)
    return bool(value) if kind is bool else value


def _kind(hint) -> type:
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return get_origin(hint) or hint


def _is(value, kind: type) -> bool:
    if kind in (int, float, Real):
        return isinstance(value, Real) and not isinstance(value, bool)
    return isinstance(value, ALSO.get(kind, kind))


def check_places(what: str, value, n: int, things: str = "numbers") -> Tensor:
    """Different numbers from 0 to ``n - 1``, one at least, as an int64 tensor; a mask ``(n,)``
    gives the places that it is true at.
    """
    places = as_tensor(what, value)
    got = f"{places.dtype} {tuple(places.shape)}"
    if places.dtype == torch.bool and places.shape == (n,):
        places = places.nonzero()[:, 0]
    places = places.reshape(-1) if places.ndim < 2 else places
    whole = not (places.is_floating_point() or places.is_complex() or places.dtype == torch.bool)
    if whole and places.ndim == 1 and 0 < len(places.unique()) == len(places):
        if 0 <= int(places.min()) and int(places.max()) < n:
            return places.long()
    wanted = f"different {things} from 0 to {n - 1}, or a mask ({n},)"
    raise ValueError(f"{what}: expected {wanted}, received {got}.")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning that points at the line of the caller's, through whatever stands between."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_code.co_filename.startswith(INNER):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
