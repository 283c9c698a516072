"""A device that is not the CPU, on the CPU: tensors there hold their numbers, and do not meet those that are elsewhere.

Analyses run on it as on a GPU, and fail where they would fail there: an operation on tensors of both devices, an index
on the device into a tensor of the CPU, a generator of the CPU for numbers of the device.
"""

import contextlib

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("lazy")  # the one besides "meta" that torch knows on every machine
CPU = torch.device("cpu")
_aten = torch.ops.aten
# Operations that take tensors of two devices: copies, and indices on the CPU.
_COPIES = {_aten.copy_.default, _aten._to_copy.default}
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}


class Elsewhere(torch.Tensor):
    """A tensor on the other device."""

    @staticmethod
    def __new__(cls, held):
        """Wrap a tensor of the CPU."""
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="meta",
        )
        made.held = held
        return made

    @property
    def device(self):
        """Where it says that it is."""
        return DEVICE

    is_meta = False

    def __repr__(self):
        return f"Elsewhere({self.held!r})"

    def __format__(self, spec):
        """Write the number it holds, as of any device."""
        return format(self.held, spec)

    def untyped_storage(self):
        """Where the numbers are, by which libraries tell shared tensors."""
        return self.held.untyped_storage()

    def data_ptr(self):
        """Where the first number is."""
        return self.held.data_ptr()

    def tolist(self):
        """Copy it to a list, as of any device."""
        return self.held.tolist()

    def numpy(self):
        """Refuse, as a GPU does."""
        raise TypeError("a tensor on the device must be copied to the CPU first")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        """Run an operation on what is held."""
        return _run(function, args, kwargs or {})


class _Everywhere(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Numbers(TorchFunctionMode):
    """Makes tensors of Python's numbers on the CPU and moves them: torch itself would drop them on the way."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and "device" in kwargs:
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        if function is torch.Tensor.new_tensor:
            kwargs = {"dtype": args[0].dtype} | kwargs
            return torch.tensor(*args[1:], **kwargs).to(args[0].device)
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(
                torch.tensor(one, dtype=None if one else torch.long) if isinstance(one, list) else one for one in index
            )
            args = (args[0], index, *args[2:])
        return function(*args, **kwargs)


@contextlib.contextmanager
def another_device():
    """Let tensors be made on, and moved to, a device of their own."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # a parameter that is moved stays the same object
    try:
        with _Numbers(), _Everywhere():
            yield DEVICE
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


@contextlib.contextmanager
def on_the_cpu():
    """Leave the other device out of it for a while, as where a library loads a model."""
    with contextlib.ExitStack() as stack:
        if torch.overrides._get_current_function_mode() is not None:
            stack.enter_context(torch.overrides._pop_mode_temporarily())
        stack.enter_context(_disable_current_modes())
        yield


def _run(function, args, kwargs):
    target = _target(function, args, kwargs)
    if "device" in kwargs:
        kwargs = kwargs | {"device": CPU}
    result = function(*tree_map(_held, args), **tree_map(_held, kwargs))
    if function._schema.is_mutable and args and isinstance(result, torch.Tensor):
        changed = args[0] if "out" not in kwargs else kwargs["out"]
        if isinstance(changed, torch.Tensor) and _held(changed) is result:
            if changed.shape != result.shape:  # squeeze_ and its like change the wrapper too
                with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.Python)):
                    function(*args, **kwargs)
            return changed
    if target != DEVICE:
        return result
    return tree_map(lambda one: Elsewhere(one) if isinstance(one, torch.Tensor) else one, result)


def _held(one):
    return one.held if isinstance(one, Elsewhere) else one


def _target(function, args, kwargs):
    """Where the result goes.

    Raises:
        RuntimeError: If tensors of two devices meet.
    """
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
    asked = kwargs.get("device")
    if asked is not None:
        target = CPU if torch.device(asked) == CPU else DEVICE  # torch itself takes a wrapper to be on "meta"
        generator = kwargs.get("generator")
        if target == DEVICE and generator is not None and generator.device != DEVICE:
            raise RuntimeError(f"{function}: a generator of the CPU for numbers of the device")
        return target
    if function in _COPIES:
        return tensors[0].device
    if function in _INDEXED:
        place = tensors[0].device
        indices = [one for one in args[1] if one is not None]
        values = args[2:3]
        if place == CPU and any(one.device == DEVICE for one in indices):
            raise RuntimeError(f"{function}: indices on the device into a tensor of the CPU")
        tensors = [tensors[0], *values]
    places = {one.device for one in tensors}
    if len(places) > 1 and any(one.ndim and one.device == CPU for one in tensors):
        raise RuntimeError(f"{function}: tensors on the CPU and on the device")
    return DEVICE if DEVICE in places else CPU
