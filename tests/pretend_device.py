"""An accelerator that is not there: tensors of the CPU that count as another device's, and raise what it would raise.

What it refuses: an operation on tensors of two devices (but for numbers without dimensions, which may come from the
CPU), random numbers of the CPU's generator, a way to numpy, and, as Apple's GPUs do, any float64. It computes on the
CPU, so its numbers are the CPU's: it tells where tensors are, and nothing of a real device's kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

INDEXED = ("__getitem__", "__setitem__")

PLACED_AS_THE_FIRST = (
    *INDEXED,
    *("copy_", "expand_as", "view_as", "reshape_as"),
    *("__set__", "_has_compatible_shallow_copy_type"),  # by which a module gets its parameters elsewhere
)
"""Operations whose other tensors may be elsewhere: indices, what is copied, what only lends its shape."""


class Mixed(RuntimeError):
    """An operation that the device would refuse."""


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in lists, tuples and dicts of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(each)


class PretendDevice(TorchFunctionMode):
    """As long as it is entered, there is a device ``cuda:0`` or ``mps:0``, by ``kind``, to which tensors can be moved.

    A device is a property of memory, so that views, parameters and copies have it by themselves. A weak reference
    keeps each address from being taken by other memory.
    """

    _there: ClassVar[dict[int, StorageWeakRef]] = {}

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.device = torch.device(kind, 0)

    def holds(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` is on the device."""
        return tensor.untyped_storage()._cdata in self._there

    def place(self, tensor: Tensor) -> Tensor:
        """Say that the memory of ``tensor`` is the device's."""
        if self.device.type == "mps" and tensor.dtype in (torch.float64, torch.complex128):
            raise TypeError("MPS framework doesn't support float64")
        storage = tensor.untyped_storage()
        self._there[storage._cdata] = StorageWeakRef(storage)
        return tensor

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        if name == "__get__" and getattr(function.__self__, "__name__", "") == "device":
            return self.device if self.holds(args[0]) else function(*args)
        if isinstance(args[0] if args else None, Tensor) and name in ("to", "cpu", "as_tensor"):
            return self._move(name, *args, **kwargs)
        if name in ("numpy", "__array__") and self.holds(args[0]):
            raise Mixed(f"{name} of a tensor on {self.device}")
        wanted = kwargs.get("device")
        there = self._place_of(name, args, kwargs) if wanted is None else self._means(wanted)
        if there:
            kwargs |= {"device": "cpu"} if wanted is not None else {}
            if kwargs.get("generator") is not None:
                raise Mixed(f"{name} on {self.device} with a generator of the CPU")
        found = function(*args, **kwargs)
        for each in tensors_in(found) if there else ():
            self.place(each)
        return found

    def _means(self, device: Any) -> bool:
        return torch.device(device).type == self.device.type

    def _place_of(self, name: str, args: Any, kwargs: Any) -> bool:
        """Whether an operation is done on the device; refused if its tensors are not all on one."""
        given = list(tensors_in((args, kwargs)))
        if name in PLACED_AS_THE_FIRST:
            if name in INDEXED:
                self._check_index(name, *args)
            return self.holds(args[0])
        there = any(map(self.holds, given))
        alone = 0 if name in ("cat", "stack") else 1
        if there and not all(self.holds(t) for t in given if t.dim() >= alone):
            places = ", ".join(f"{'there' if self.holds(t) else 'cpu'} {tuple(t.shape)}" for t in given)
            raise Mixed(f"{name} expects all tensors on {self.device}: {places}")
        return there

    def _check_index(self, name: str, tensor: Tensor, index: Any, *values: Any) -> None:
        """Indices may come from the CPU; with them, values may not."""
        there, indices = self.holds(tensor), list(tensors_in(index))
        foreign = [t for t in indices if not there and self.holds(t)]
        foreign += [t for t in tensors_in(values) if indices and self.holds(t) != there]
        if any(t.dim() for t in foreign):
            raise Mixed(f"{name} of a tensor {'on' if there else 'not on'} {self.device}, by others")

    def _move(self, name: str, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``to``, ``cpu`` and ``as_tensor``: other memory where the device changes, no float64 on the way."""
        devices = [each for each in (*args, *kwargs.values()) if isinstance(each, torch.device | str)]
        others = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        dtypes = [each for each in (*args, *kwargs.values()) if isinstance(each, torch.dtype)]
        before = self.holds(tensor)
        after = self.holds(others[0]) if others else self._means(devices[0]) if devices else before and name != "cpu"
        dtype = others[0].dtype if others else dtypes[0] if dtypes else tensor.dtype
        if before and dtype != tensor.dtype and dtype in (torch.float64, torch.complex128):
            self.place(tensor.new_empty(0, dtype=dtype))  # the device itself converts, before anything is copied
        moved = Tensor.to(tensor, dtype, copy=before != after or bool(kwargs.get("copy")))
        return self.place(moved) if after else moved
