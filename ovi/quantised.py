"""Quantised layers of a checkpoint: their marks and scales, as ComfyUI and older files write them, and checks of both.

A quantised layer has ComfyUI's own mark: beside `.weight` and its `.weight_scale`, JSON in `.comfy_quant`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .files import read_json, shown

MARK = ".comfy_quant"
BESIDE = ("comfy_quant", "weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale")  # a layer's weight
METADATA_KEY = "_quantization_metadata"  # safetensors metadata entry (JSON), in place of `.comfy_quant` tensors
MAX_MARK, MAX_METADATA = 10_000, 2**22  # characters of JSON, for a layer and for all layers of a file

_SCALED_FP8 = "scaled_fp8"  # marks a file whose fp8 weights have scales; of 2 elements: multiply in full precision
_FP8 = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}
_NAME = re.compile(r"\w{1,40}", re.ASCII)
_OPTIONS = {"full_precision_matrix_mult": bool, "convrot": bool, "convrot_groupsize": int, "linear_dtype": str}
_GROUPS = [4**n for n in range(1, 8)]  # sizes of a rotation, which is built from one of 4


class _Stored(NamedTuple):
    """How a format stores a matrix: dtype and shape, and how many numbers each of its scales may have."""

    dtype: torch.dtype
    shape: tuple[int, int]
    scales: Mapping[str, Sequence[int]]
    blocks: Mapping[torch.dtype, int] = {}  # where each block has a scale of 8 bits: its dtypes, and the largest byte


def _stored(name: str, rows: int, columns: int) -> _Stored | None:
    """Return how a format stores a matrix [rows, columns]; None for a format that is unknown here."""
    if name == "nvfp4":
        scales = {"weight_scale": [_up(rows, 128) * _up(_up(columns, 16) // 16, 4)], "weight_scale_2": [1]}
        shape = (_up(rows, 16), _up(columns, 16) // 2)
        return _Stored(torch.uint8, shape, scales, {torch.float8_e4m3fn: 0x7E, torch.uint8: 0x7E})
    if name == "mxfp8":
        scales = {"weight_scale": [_up(rows, 128) * _up(_up(columns, 32) // 32, 4)]}
        shape = (_up(rows, 32), _up(columns, 32))
        return _Stored(torch.float8_e4m3fn, shape, scales, {torch.float8_e8m0fnu: 0xFE, torch.uint8: 0xFE})
    if name == "convrot_w4a4":
        return _Stored(torch.int8, (rows, columns // 2), {"weight_scale": [rows]})
    dtypes = {form: dtype for dtype, form in _FP8.items()} | {"int8_tensorwise": torch.int8}
    return _Stored(dtypes[name], (rows, columns), {"weight_scale": [1, rows]}) if name in dtypes else None


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def formats(sd: Mapping[str, Tensor]) -> dict[str, str]:
    """Return ComfyUI's name of the format of each quantised layer.

    Raises ValueError where a mark names none, and for an option of a wrong type.
    """
    return {key.removesuffix(MARK): _format(key, mark) for key, mark in sd.items() if key.endswith(MARK)}


def _format(key: str, mark: Tensor) -> str:
    try:
        if mark.dtype != torch.uint8 or mark.numel() > MAX_MARK:
            raise TypeError
        conf = read_json(mark.numpy().tobytes(), MAX_MARK)
        name, params = conf["format"], conf.get("params")
        if not _NAME.fullmatch(name):
            raise ValueError(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{key} names no format; the file is damaged: download it again.") from error
    for options in (conf, params if isinstance(params, dict) else {}):
        for option, kind in _OPTIONS.items():
            value = options.get(option)
            if option in options and (type(value) is not kind or (kind is int and value not in _GROUPS)):
                raise ValueError(
                    f"{key} gives {option} as {shown(repr(value), 60)}; the file is damaged: download it again."
                )
    return str(name)


def from_metadata(metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """Return, by layer, the marks that the metadata of a safetensors file has in place of tensors."""
    try:
        layers = read_json(metadata.get(METADATA_KEY, '{"layers": {}}'), MAX_METADATA)["layers"]
        return {layer: _mark(conf) for layer, conf in layers.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"The file's {METADATA_KEY} does not list its layers; the file is damaged: download it again."
        ) from error


def mark_scaled_fp8(sd: dict[str, Tensor]) -> None:
    """Add marks to the layers of a scaled fp8 file, which has only scales, and drop the file's own mark."""
    mark = sd.pop(_SCALED_FP8, None)
    how = {"full_precision_matrix_mult": True} if mark is not None and mark.numel() == 2 else {}
    for key, tensor in list(sd.items()):
        layer = key.removesuffix(".weight")
        if tensor.dtype in _FP8 and f"{layer}.weight_scale" in sd and f"{layer}{MARK}" not in sd:
            sd[f"{layer}{MARK}"] = _mark({"format": _FP8[tensor.dtype], **how})


def _mark(conf: object) -> Tensor:
    """Return JSON as ComfyUI's checkpoints store it: a tensor of bytes."""
    return torch.frombuffer(bytearray(json.dumps(conf).encode()), dtype=torch.uint8)


def check_layer(sd: Mapping[str, Tensor], layer: str, name: str, shape: Sequence[int]) -> None:
    """Check the weight and the scales of a layer that is quantised in a format; `shape` is that of its exact weight.

    Raises ValueError, naming the tensor, where one is missing, misshapen or of a wrong dtype, and where a scale is NaN,
    infinite, negative, or 0 for the whole layer.
    """
    key, weight = f"{layer}.weight", sd[f"{layer}.weight"]
    if len(shape) != 2:
        raise ValueError(f"{key} is quantised as {name}, which only matrices can be; the file is damaged.")
    stored = _stored(name, *shape)
    needed = tuple(shape) if stored is None else stored.shape
    if weight.shape != needed:
        raise ValueError(
            f"{key} has shape {list(weight.shape)}, but {list(needed)} is needed; the file is damaged or of another "
            "model."
        )
    if stored is None:
        return
    if weight.dtype != stored.dtype:
        raise ValueError(f"{key} is of type {weight.dtype}, but {name} has {stored.dtype}; the file is damaged.")
    for scale, sizes in {**stored.scales, "input_scale": [1], "pre_quant_scale": [shape[1]]}.items():
        tensor = sd.get(f"{layer}.{scale}")
        if tensor is not None:
            blocks = stored.blocks if scale == "weight_scale" else {}
            if tensor.numel() not in sizes or tensor.ndim > 2 or not _is_scale(tensor, blocks):
                raise ValueError(
                    f"{layer}.{scale} ({tensor.dtype}, shape {list(tensor.shape)}) is no scale of {name}, or holds "
                    "NaN, infinity, a negative number or a single 0; the file is damaged: download it again."
                )
        elif scale in stored.scales:
            raise ValueError(f"The Ovi checkpoint has no tensor {layer}.{scale}; get a complete file.")


def _is_scale(scale: Tensor, blocks: Mapping[torch.dtype, int]) -> bool:
    """Whether these numbers can scale weights; those of `blocks` are compared as bytes."""
    if blocks:
        return scale.dtype in blocks and int(scale.view(torch.uint8).max()) <= blocks[scale.dtype]
    if not scale.is_floating_point() or scale.itemsize == 1:
        return False
    low, high = scale.float().aminmax()
    return bool((low > 0 if scale.numel() == 1 else low >= 0) and high < torch.inf)
