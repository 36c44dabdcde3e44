"""A second device that every machine has: its tensors lie on the CPU and say that they are elsewhere.

As on a GPU, an operation refuses what was left behind on the CPU, and draws with no generator of the CPU; the values
are those of the CPU. It bears the name of a device that torch knows and that needs no library.
"""

import contextlib
import types
from unittest import mock

import accelerate
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

ELSEWHERE, CPU = torch.device("maia:0"), torch.device("cpu")
ATEN = torch.ops.aten
INDEXING = ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default  # a GPU's tensor takes the CPU's indices
FUSED = "torch.optim.optimizer._get_fused_kernels_supported_devices"


class There(torch.Tensor):
    """`inner`, a tensor of the CPU, which is elsewhere."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = ELSEWHERE

    @staticmethod
    def __new__(cls, inner):
        like = dict(strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype)
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, **like)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, f, types, args=(), kwargs=None):
        return done(f, args, kwargs or {})

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, other):
        assert other.shape == self.shape and there(other)
        self.inner = other.inner

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def tolist(self):
        return self.inner.tolist()

    def numpy(self):
        raise AssertionError("numpy reads the CPU alone")

    def new_tensor(self, data, **how):
        return There(torch.tensor(data, **dict(dtype=self.dtype) | how))


def there(t):
    return isinstance(t, There)


def is_there(device):
    return device is not None and torch.device(device).type == ELSEWHERE.type


def done(f, args, kwargs, device=None):
    """f on the CPU; its results are where its tensors are, or on `device`."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    asked = device or kwargs.get("device")
    goal = is_there(device) if device else any(map(there, tensors)) or is_there(asked)
    if f is ATEN.copy_.default:
        goal = there(args[0])
    elif goal and not device:
        meet = tree_leaves((args[0], *args[2:])) if f in INDEXING else tensors
        left = [tuple(t.shape) for t in meet if isinstance(t, torch.Tensor) and t.ndim and not there(t)]
        assert not left, f"{f} meets {left} on the CPU"
        assert not kwargs.get("generator"), f"{f} draws with a generator of the CPU"
    out = f(*tree_map(inner, args), **tree_map(inner, kwargs) | (dict(device=CPU) if is_there(asked) else {}))
    same = {id(inner(t)): t for t in tensors}  # what works in place gives back what it was given
    back = lambda t: same[id(t)] if id(t) in same else There(t)
    return tree_map_only(torch.Tensor, back, out) if goal else out


def inner(t):
    return t.inner if there(t) else t


class Operations(TorchDispatchMode):
    """What makes a tensor elsewhere from nothing, and what moves one to `device`."""

    device = None

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        return done(f, args, kwargs or {}, self.device)

    def moved(self, t, *how, device=None, dtype=None, copy=False, **_):
        """t.to(*how), which would think that both sides are the CPU."""
        for a in how:
            if isinstance(a, torch.Tensor):
                device, dtype = a.device, a.dtype
            elif isinstance(a, torch.dtype):
                dtype = a
            elif not isinstance(a, bool | None):
                device = a
        device, dtype = torch.device(device or t.device), dtype or t.dtype
        if (device.type, dtype) == (t.device.type, t.dtype) and not copy:
            return t
        self.device = device
        try:
            return ATEN._to_copy(t, dtype=dtype)
        finally:
            self.device = None


class Calls(TorchFunctionMode):
    """What is no operation: Python's numbers become a tensor, and a tensor moves."""

    def __init__(self, operations):
        super().__init__()
        self.operations = operations

    def __torch_function__(self, f, types, args=(), kwargs=None):
        kwargs, t = kwargs or {}, args[0] if args else None
        if f in (torch.Tensor.to, torch.Tensor.cpu):
            return self.operations.moved(t, *((CPU,) if f is torch.Tensor.cpu else args[1:]), **kwargs)
        if f in (torch.tensor, torch.as_tensor) and is_there(kwargs.get("device")):
            made = f(*args, **kwargs | dict(device=CPU))
            return made if there(made) else There(made)
        if f is torch.Tensor.__getitem__ and there(t) and isinstance(args[1], list):
            args = t, There(torch.tensor(args[1]))
        return f(*args, **kwargs)


@contextlib.contextmanager
def elsewhere():
    """Within this the device is there, and the one that runs take."""
    setting = torch.__future__  # a parameter's data cannot become of another class, so that it is another parameter
    before = setting.get_overwrite_module_params_on_conversion()
    setting.set_overwrite_module_params_on_conversion(True)
    library = mock.patch.object(torch, ELSEWHERE.type, types.ModuleType(ELSEWHERE.type), create=True)
    taken = mock.patch.object(accelerate.Accelerator, "device", ELSEWHERE)
    fused = mock.patch(FUSED, lambda: ["cpu", ELSEWHERE.type])
    try:
        with library, fused, taken, Operations() as operations, Calls(operations):
            yield ELSEWHERE
    finally:
        setting.set_overwrite_module_params_on_conversion(before)
