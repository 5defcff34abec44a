"""A second device on the CPU, as strict as a graphics card: it refuses tensors of two devices, and counts copies.

Memory is that of torch-opencl on pocl, `opencl:0` and on. It has next to no operators, so each one runs on the CPU, on
copies of its arguments; results go back into the device's memory. What this shows is where tensors are, with real
numbers; streams, pinned memory, kernels and their dtypes it does not have.

Importing this installs it, for the whole process. It needs torch-opencl and pocl, before which `POCL_DEVICES` must be
set: "pthread pthread" are two devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves, tree_map

TYPE = "opencl"
KEY = "PrivateUse1"
DEVICE = torch.device(TYPE, 0)
CPU = torch.device("cpu")
# What torch-opencl does better: memory, and views of it. The few operators that it has beside these are not used.
_MEMORY = {"empty.memory_format", "empty_strided", "as_strided", "resize_", "view", "_reshape_alias", "_copy_from"}
INDICES = ("aten::index.", "aten::index_put", "aten::_index_put_impl_")  # a card takes these on the CPU, too

_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)
_copy_whole = torch.library.get_kernel("aten::_copy_from", KEY)  # torch-opencl's, of contiguous tensors alone
_as_strided = torch.library.get_kernel("aten::as_strided", KEY)
_empty = torch.library.get_kernel("aten::empty.memory_format", KEY)
_empty_strided = torch.library.get_kernel("aten::empty_strided", KEY)


@dataclass
class Traffic:
    """The copies between devices that a program asked for: (from, to, shape, bytes), in order."""

    copies: list[tuple[str, str, tuple[int, ...], int]] = field(default_factory=list)

    def bytes(self, to: str) -> int:
        """Return the bytes that were copied to a device, e.g. "cpu"."""
        return sum(size for _, target, _, size in self.copies if target == to)


class Live:
    """The storages in the device's memory."""

    def __init__(self) -> None:
        self._storages: list[tuple[StorageWeakRef, int]] = []
        self._pruned = 0
        self._peak: int | None = None

    def add(self, made: Tensor) -> None:
        """Note the storage of a new tensor."""
        storage = made.untyped_storage()
        self._storages.append((StorageWeakRef(storage), storage.nbytes()))
        if self._peak is not None:
            self._peak = max(self._peak, self.bytes())
        elif len(self._storages) > 2 * self._pruned + 1000:
            self.bytes()

    def bytes(self) -> int:
        """Return the bytes of the storages that live now."""
        self._storages = [(ref, size) for ref, size in self._storages if not ref.expired()]
        self._pruned = len(self._storages)
        return sum(size for _, size in self._storages)

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


LIVE = Live()
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


def _whole(x: Tensor) -> Tensor:
    """Return the storage of a device tensor as one run of its dtype."""
    return _as_strided.call_boxed(_KEYS, x, [x.untyped_storage().nbytes() // x.element_size()], [1], 0)


def _storage_down(x: Tensor) -> Tensor:
    """Return the whole storage of a device tensor, on the CPU."""
    flat = torch.empty(x.untyped_storage().nbytes() // x.element_size(), dtype=x.dtype)
    if flat.numel():
        _copy_whole.call_boxed(_KEYS, _whole(x), flat, False)
    return flat


def _down(x: Tensor) -> Tensor:
    """Return a device tensor on the CPU, with its strides in a storage of its own."""
    return torch.as_strided(_storage_down(x), x.shape, x.stride(), x.storage_offset())


def _store(value: Tensor, x: Tensor) -> None:
    """Write a value on the CPU into a device tensor, whatever its strides."""
    if not x.numel():
        return
    if x.is_contiguous() and not x.storage_offset() and x.nbytes == x.untyped_storage().nbytes():
        _copy_whole.call_boxed(_KEYS, value.to(x.dtype).expand(x.shape).contiguous(), x, False)
        return
    flat = _storage_down(x)
    torch.as_strided(flat, x.shape, x.stride(), x.storage_offset()).copy_(value)
    _copy_whole.call_boxed(_KEYS, flat, _whole(x), False)


def _up(value: Tensor, device: torch.device) -> Tensor:
    """Return a result on the device."""
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    _store(value, made)
    return made


def _check_devices(name: str, names: Sequence[str], values: Sequence[Any]) -> torch.device:
    """Return the device of an operator's arguments; raise RuntimeError where they are on several, as CUDA does.

    Scalars may be on the CPU, and so may indices.
    """
    found: set[torch.device] = set()
    for argument, value in zip(names, values, strict=True):
        if argument == "indices" and name.startswith(INDICES):
            continue
        tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        found |= {t.device for t in tensors if t.device.type == TYPE or t.dim()}
    if len(found) > 1:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found {', '.join(sorted(map(str, found)))} in {name}."
        )
    return found.pop() if found else DEVICE


def _run(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """Run any operator on the CPU: its arguments there, what it writes and its results back on the device."""
    schema = operator._schema
    names = [argument.name for argument in schema.arguments]
    values = [args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names)]
    device = next((v for v in values if isinstance(v, torch.device) and v.type == TYPE), None)
    where = _check_devices(f"{schema.name}.{schema.overload_name}", names, values)
    device = device or where
    pairs: dict[int, tuple[Tensor, Tensor]] = {}  # by the id of the tensor on the device

    def down(value: Any) -> Any:
        if isinstance(value, torch.device) and value.type == TYPE:
            return CPU
        if not isinstance(value, Tensor) or value.device.type != TYPE:
            return value
        if id(value) not in pairs:
            pairs[id(value)] = (value, _down(value))
        return pairs[id(value)][1]

    out = operator(*tree_map(down, args), **tree_map(down, kwargs))
    given = {id(on_cpu): on_device for on_device, on_cpu in pairs.values()}
    for argument, value in zip(schema.arguments, values, strict=True):
        if argument.alias_info is not None and argument.alias_info.is_write:
            for tensor in tree_leaves(value):
                if isinstance(tensor, Tensor) and id(tensor) in pairs:
                    written = pairs[id(tensor)][1]
                    if tensor.shape != written.shape:
                        tensor.resize_(written.shape)
                    _store(written, tensor)

    def up(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.device.type == TYPE:
            return value
        if id(value) in given:
            return given[id(value)]
        viewed = next((t for t, c in pairs.values() if _same_storage(c, value)), None)
        if viewed is None:
            return _up(value, device)
        if viewed.dtype != value.dtype:
            raise NotImplementedError(f"{schema.name} gives a view of another dtype, which is not emulated.")
        return torch.as_strided(viewed, value.shape, value.stride(), value.storage_offset())

    return tree_map(up, out)


def _same_storage(a: Tensor, b: Tensor) -> bool:
    return bool(a.numel()) and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """Copy between the CPU and the device, or within it, whatever the strides and dtypes."""
    if source.device != target.device:
        _note(source, target.device)
    value = _down(source) if source.device.type == TYPE else source
    if target.device.type == TYPE:
        _store(value, target)
    else:
        target.copy_(value)
    return target


def _strided(x: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> Tensor:
    offset = x.storage_offset() if storage_offset is None else storage_offset
    return _as_strided.call_boxed(_KEYS, x, list(size), list(stride), offset)


def _item(x: Tensor) -> Any:
    """Read a scalar: a copy, too."""
    _note(x, CPU)
    return _down(x).item()


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attend by PyTorch's plain formulas, since a device has to name its kernels to choose among them."""
    return torch.ops.aten._scaled_dot_product_attention_math(
        q, k, v, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]


def _convolution(*args: Any) -> Tensor:
    return _run(torch.ops.aten.convolution.default, *args)


def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    sizes = [weight.shape[1] * groups if transposed else weight.shape[0]]
    geometry = (stride, padding, dilation, transposed, output_padding, groups, mask)
    return _run(torch.ops.aten.convolution_backward.default, grad, x, weight, sizes, *geometry)


def _made(kernel: Any) -> Any:
    def make(*args: Any, **kwargs: Any) -> Tensor:
        made = kernel.call_boxed(_KEYS, *args, **kwargs)
        LIVE.add(made)
        return made

    return make


_FALLBACK = torch.library.Library("_", "IMPL")
_ATEN = torch.library.Library("aten", "IMPL")
_FALLBACK.fallback(_run, KEY)


def _install() -> None:
    """Register what torch-opencl lacks or does for contiguous tensors alone."""
    kernels = {
        "_copy_from": _copy_from,
        "as_strided": _strided,
        "_local_scalar_dense": _item,
        "convolution_overrideable": _convolution,
        "convolution_backward_overrideable": _convolution_backward,
        "empty.memory_format": _made(_empty),
        "empty_strided": _made(_empty_strided),
    }
    for name, kernel in kernels.items():
        _ATEN.impl(name, kernel, KEY, allow_override=True)
    for key in (KEY, f"Autograd{KEY}"):
        _ATEN.impl("scaled_dot_product_attention", _attention, key)
    for name in torch._C._dispatch_get_registrations_for_dispatch_key(KEY):
        namespace, _, operator = name.partition("::")
        if namespace == "aten" and operator not in _MEMORY | kernels.keys():
            packet, _, overload = operator.partition(".")
            found = getattr(getattr(torch.ops.aten, packet), overload or "default", None)
            if found is not None:  # else Python cannot call it
                _ATEN.impl(operator, partial(_run, found), KEY, allow_override=True)


_install()
