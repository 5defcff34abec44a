"""A second device on the CPU, as strict as a graphics card: it refuses tensors of two devices, and counts copies.

Its tensors are torch-opencl's, on pocl: `opencl:0` and on. That has next to no operators, so each runs on the CPU, on
numbers that are kept there for every storage of the device. This shows where tensors are, with real numbers; it has no
streams, no pinned memory, and not the kernels of a card with their dtypes.

Importing this installs it, for the whole process. It needs torch-opencl, which PyTorch must not have loaded by itself
(`TORCH_DEVICE_BACKEND_AUTOLOAD=0`), and pocl, which makes as many devices as `POCL_DEVICES` names: "pthread pthread"
are two, and Ovi Parallel is tested on four.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class _Guard(torch._C._acc.DeviceGuard):
    """What PyTorch has for backends in Python: streams and events of which there is nothing to wait for."""

    def type_(self) -> Any:
        return _GUARDED


_GUARDED = torch._C._autograd.DeviceType.PrivateUse1
_C10 = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
_guards = (ctypes.c_void_p * (int(_GUARDED) + 1)).in_dll(_C10, "_ZN3c104impl26device_guard_impl_registryE")
_guard = _Guard()


def _load() -> int:
    """Load torch-opencl, which names the device; return the address of a guard that autograd can use."""
    torch._C._acc.register_python_privateuseone_device_guard(_guard)
    with_events = _guards[int(_GUARDED)]
    import torch_opencl

    if with_events == _guards[int(_GUARDED)]:
        raise RuntimeError("torch-opencl was loaded before: set TORCH_DEVICE_BACKEND_AUTOLOAD=0.")
    torch_opencl._autoload()
    # What PyTorch asks every device for: torch.autocast even where it is off, checkpoints even without random numbers.
    torch.opencl.get_amp_supported_dtype = list
    torch.opencl.get_rng_state = lambda *_: torch.zeros(0)
    torch.opencl.set_rng_state = lambda *_: None
    return with_events


_WITH_EVENTS = _load()
TYPE = "opencl"
DEVICE = torch.device(TYPE, 0)
CPU = torch.device("cpu")

KEY = "PrivateUse1"
# What torch-opencl does: memory. The few operators that it has beside these are not used.
MEMORY = {"empty.memory_format", "empty_strided"}
INDEXING = ("aten::index.", "aten::index_put", "aten::_index_put_impl_")  # for which a card takes indices on the CPU
PRUNE = 1000  # storages, after which those that died are let go

# The CPU's own kernels make views of any storage, where torch-opencl's are of contiguous tensors alone.
VIEWS = ("view", "as_strided", "set_.source_Storage", "set_.source_Storage_storage_offset")
_of_cpu = {name: torch.library.get_kernel(f"aten::{name}", "CPU") for name in VIEWS}
_resize = torch.library.get_kernel("aten::resize_", KEY)
_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)
_VIEW_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


@dataclass
class Traffic:
    """The copies between devices that a program asked for, in order: (from, to, shape, bytes)."""

    copies: list[tuple[str, str, tuple[int, ...], int]] = field(default_factory=list)

    def sizes(self, to: str) -> list[int]:
        """Return the bytes of each copy to a device, e.g. "cpu"."""
        return [size for _, target, _, size in self.copies if target == to]


class Memory:
    """The numbers of every storage of the device, as bytes on the CPU."""

    def __init__(self) -> None:
        self._storages: dict[int, tuple[StorageWeakRef, Tensor]] = {}  # a weak reference keeps its address from reuse
        self._lock = threading.RLock()  # ComfyUI has a thread for each device
        self._prune_at = PRUNE
        self._peak: int | None = None

    def of(self, x: Tensor) -> Tensor:
        """Return the numbers of a device tensor: a view on the CPU, with its strides."""
        storage = x.untyped_storage()
        _, held = self._storages.get(storage._cdata, (None, None))
        if held is None or len(held) != storage.nbytes():  # new, or resized
            grown = torch.empty(storage.nbytes(), dtype=torch.uint8)
            if held is not None:
                common = min(len(held), len(grown))
                grown[:common] = held[:common]
            self.hold(x, grown)
            held = grown
        size = x.element_size()
        return torch.as_strided(
            held[: len(held) // size * size].view(x.dtype), x.size(), x.stride(), x.storage_offset()
        )

    def hold(self, x: Tensor, numbers: Tensor) -> None:
        """Make bytes on the CPU the numbers of a device tensor's storage."""
        storage = x.untyped_storage()
        with self._lock:
            self._storages[storage._cdata] = (StorageWeakRef(storage), numbers)
            if self._peak is not None:
                self._peak = max(self._peak, self.bytes())
            elif len(self._storages) > self._prune_at:
                self.bytes()
                self._prune_at = len(self._storages) + PRUNE

    def bytes(self) -> int:
        """Return the bytes of the storages that live now, and let go of the others."""
        with self._lock:
            self._storages = {key: held for key, held in self._storages.items() if not held[0].expired()}
            return sum(len(numbers) for _, numbers in self._storages.values())

    @contextmanager
    def peak(self) -> Iterator[list[int]]:
        """Yield a list that gets the most bytes that lived at once within the block."""
        found: list[int] = []
        self._peak = self.bytes()
        try:
            yield found
            found.append(self._peak)
        finally:
            self._peak = None


@contextmanager
def autograd() -> Iterator[None]:
    """Let autograd run backwards on `DEVICE`, for which it asks the device for events: torch-opencl has none."""
    index = int(_GUARDED)
    _guards[index], own = _WITH_EVENTS, _guards[index]
    try:
        yield
    finally:
        _guards[index] = own


LIVE = Memory()
_watching: list[Traffic] = []


@contextmanager
def traffic() -> Iterator[Traffic]:
    """Yield what counts the copies within the block."""
    counted = Traffic()
    _watching.append(counted)
    try:
        yield counted
    finally:
        _watching.remove(counted)


def _note(source: Tensor, target: torch.device) -> None:
    for counted in _watching:
        counted.copies.append((str(source.device), str(target), tuple(source.shape), source.nbytes))


def _change(value: Any, change: Callable[[Any], Any]) -> Any:
    """Apply a function to an operator's argument or result, within lists too."""
    if isinstance(value, (list, tuple)):
        return [_change(each, change) for each in value]
    return change(value)


def _run(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operator on the numbers on the CPU; what it gives is on the device.

    Raises RuntimeError, as CUDA does, for arguments on several devices; scalars and indices may be on the CPU.
    """
    schema = operator._schema
    name = f"{schema.name}.{schema.overload_name}"
    given: list[tuple[Tensor, Tensor]] = []  # on the device, on the CPU
    devices: set[torch.device] = set()
    asked: list[torch.device] = []

    def down(value: Any) -> Any:
        if isinstance(value, torch.device) and value.type == TYPE:
            asked.append(value)
            return CPU
        if not isinstance(value, Tensor):
            return value
        if value.device.type != TYPE:
            devices.update([value.device] if value.dim() else [])
            return value
        devices.add(value.device)
        given.append((value, LIVE.of(value)))
        return given[-1][1]

    def index_down(value: Any) -> Any:
        return value if isinstance(value, Tensor) and value.device == CPU else down(value)

    def argument(position: int, value: Any) -> Any:
        wanted = schema.arguments[position]
        if isinstance(value, (int, float)) and str(wanted.type) == "Tensor":  # a number that PyTorch made a tensor
            return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
        is_index = name.startswith(INDEXING) and wanted.name == "indices"
        return _change(value, index_down if is_index else down)

    on_cpu = [argument(position, value) for position, value in enumerate(args)]
    named = {key: _change(value, down) for key, value in kwargs.items()}
    if len(devices) > 1:
        found = ", ".join(sorted(map(str, devices)))
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {found} in {name}.")
    device = next(iter([*asked, *devices]), DEVICE)
    return _change(operator(*on_cpu, **named), lambda value: _up(value, given, device))


def _up(value: Any, given: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> Any:
    """Return a result on the device: what was given, a view of it, or a new tensor."""
    if not isinstance(value, Tensor):
        return value
    for on_device, on_cpu in given:
        if value is on_cpu:
            if value.shape != on_device.shape:  # an output that was resized
                on_device.resize_(value.shape)
                LIVE.of(on_device).copy_(value)
            return on_device
    storage = value.untyped_storage()
    for on_device, on_cpu in given:
        if storage.nbytes() and storage.data_ptr() == on_cpu.untyped_storage().data_ptr():
            whole = torch.as_strided(on_device, [storage.nbytes() // on_device.element_size()], [1], 0)
            return torch.as_strided(whole.view(value.dtype), value.shape, value.stride(), value.storage_offset())
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    if value.storage_offset() or storage.nbytes() != made.untyped_storage().nbytes():
        LIVE.of(made).copy_(value)
    else:
        LIVE.hold(made, torch.empty(0, dtype=torch.uint8).set_(storage))
    return made


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """Copy between devices, or within one."""
    if source.device != target.device:
        _note(source, target.device)
    source, numbers = (LIVE.of(x) if x.device.type == TYPE else x for x in (source, target))
    numbers.copy_(source)
    return target


def _item(x: Tensor) -> Any:
    """Read a scalar: a copy, too."""
    _note(x, CPU)
    return LIVE.of(x).item()


def _strided(x: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> Tensor:
    """View a storage."""
    return _of_cpu["as_strided"].call_boxed(_VIEW_KEYS, x, list(size), list(stride), storage_offset)


def _resized(x: Tensor, size: Sequence[int], *, memory_format: torch.memory_format | None = None) -> Tensor:
    """Resize a tensor on its own device, where torch-opencl takes the current one."""
    with torch.opencl.device(x.device.index):
        return _resize.call_boxed(_KEYS, x, list(size), memory_format=memory_format)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attend by PyTorch's plain formulas, since a device must name its kernels to choose among them."""
    return torch.ops.aten._scaled_dot_product_attention_math(
        q, k, v, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Any:
    """As PyTorch's own, which wants to know how many biases there are."""
    *geometry, mask = rest
    transposed, groups = geometry[3], geometry[5]
    biases = weight.shape[1] * groups if transposed else weight.shape[0]
    return _run(torch.ops.aten.convolution_backward.default, grad, x, weight, [biases], *geometry, mask)


def _operator(name: str) -> Any:
    """Return an operator by name, or None for one that Python cannot call."""
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default", None)


_FALLBACK = torch.library.Library("_", "IMPL")
_ATEN = torch.library.Library("aten", "IMPL")


def _install() -> None:
    """Make this the device's way to run operators."""
    kernels: dict[str, Any] = {
        "_copy_from": _copy_from,
        "_local_scalar_dense": _item,
        "as_strided": _strided,
        "_reshape_alias": _strided,
        "resize_": _resized,
        "view": lambda x, size: _of_cpu["view"].call_boxed(_VIEW_KEYS, x, list(size)),
        "convolution_overrideable": partial(_run, torch.ops.aten.convolution.default),
        "convolution_backward_overrideable": _convolution_backward,
    }
    for name in VIEWS[2:]:
        kernels[name] = partial(_of_cpu[name].call_boxed, _VIEW_KEYS)
    for registered in torch._C._dispatch_get_registrations_for_dispatch_key(KEY):
        namespace, _, name = registered.partition("::")
        if namespace == "aten" and name not in MEMORY | kernels.keys() and (operator := _operator(name)):
            kernels[name] = partial(_run, operator)
    _FALLBACK.fallback(_run, KEY)
    for name, kernel in kernels.items():
        _ATEN.impl(name, kernel, KEY, allow_override=True)
    for key in (KEY, f"Autograd{KEY}"):
        _ATEN.impl("scaled_dot_product_attention", _attention, key)
    with torch.inference_mode(mode=False), torch.enable_grad(), autograd():
        torch.zeros(1, requires_grad=True).sum().backward()  # the first one, on whatever device, asks for events


_install()
