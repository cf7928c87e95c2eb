"""A second device without hardware: its tensors lie in CPU memory, say that they are elsewhere, and
refuse to be mixed with tensors of the CPU, as those of a GPU do.

torch lets a device be written in Python. Importing this registers one called ``standin`` in the
whole process, for good; so it is imported by `paths_on_stand_in.py` in a process of its own, never
by a test. Run code within ``with Watch():``, which creates new tensors where they are asked for.
"""

from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)


class _Backend(_DummyBackendModule):
    """What checkpoints and autocast ask of a device module."""

    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16]

    def get_rng_state(self, device=None):
        return torch.zeros(1)

    def set_rng_state(self, state, device=None):
        pass

    def device(self, index):
        return nullcontext()


_setup_privateuseone_for_python_backend("standin", backend_module=_Backend())
DEVICE = torch.device("standin", 0)
# A module that changes its type gets new parameters: `raw` would not follow an exchange of data.
torch.__future__.set_overwrite_module_params_on_conversion(True)
aten = torch.ops.aten
# What may meet tensors of the CPU: copies between devices, and, as on a GPU, indices.
CROSSES = {aten.copy_.default, aten._to_copy.default, aten._copy_from.default}
CROSSES |= {aten.index.Tensor, aten._unsafe_index.Tensor, aten._index_put_impl_.default}
CROSSES |= {aten.index_put.default, aten.index_put_.default}


class StandIn(torch.Tensor):
    """A tensor that says it is on `DEVICE`; ``raw`` holds its values on the CPU."""

    @staticmethod
    def __new__(cls, raw):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=DEVICE,
        )
        made.raw = raw
        return made

    def __repr__(self):
        return f"StandIn({self.raw})"

    def tolist(self):  # a GPU's tensor allows it, a subclass would not
        return self.raw.tolist()

    def __format__(self, how):
        return format(self.raw, how)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _on_stand_in(func, args, kwargs or {})


class Watch(TorchDispatchMode):
    """Sends every operation that has to do with the stand-in there, and counts them."""

    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        ours = any(isinstance(leaf, StandIn) for leaf in tree_leaves((args, kwargs)))
        if not ours and not _is_ours(kwargs.get("device")):
            return func(*args, **kwargs)
        self.operations += 1
        return _on_stand_in(func, args, kwargs)


def _is_ours(device) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def _on_stand_in(func, args, kwargs):
    """Runs an operation on the values and puts the results where a GPU would have put them."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = [t for t in tensors if isinstance(t, StandIn)]
    mixed = ours and any(t.ndim and not isinstance(t, StandIn) for t in tensors)
    if mixed and func not in CROSSES:
        raise RuntimeError(f"{func}: expected all tensors on one device, found standin:0 and cpu")
    asked = kwargs.get("device")
    there = _is_ours(asked) if asked is not None else bool(ours)
    plain = kwargs if asked is None else kwargs | {"device": "cpu"}
    args_raw, kwargs_raw = tree_map_only(StandIn, lambda t: t.raw, (args, plain))
    out = func(*args_raw, **kwargs_raw)
    if func is aten.copy_.default:
        return args[0]
    if func is aten._local_scalar_dense.default or not there:
        return out.clone() if any(out is raw for raw in args_raw) else out
    known = {id(t.raw): t for t in ours}  # an operation in place returns the tensor it was given
    return tree_map_only(
        torch.Tensor, lambda t: known[id(t)] if id(t) in known else StandIn(t), out
    )


def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    return StandIn(torch.empty_strided(size, stride, dtype=dtype))


def _empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    memory_format = memory_format or torch.contiguous_format
    return StandIn(torch.empty(size, dtype=dtype, memory_format=memory_format))


def _copy_from(source, target, non_blocking=False):
    a, b = (t.raw if isinstance(t, StandIn) else t for t in (source, target))
    b.copy_(a)
    return target


LIBRARY = torch.library.Library("aten", "IMPL")
for name, made in (
    ("empty_strided", _empty_strided),
    ("empty.memory_format", _empty),
    ("_copy_from", _copy_from),
):
    LIBRARY.impl(name, made, "PrivateUse1")
