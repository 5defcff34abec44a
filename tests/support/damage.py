"""Safetensors files that are damaged, or say absurd things, at random from a seed."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

ABSURD = [None, True, 0, -1, 1.5, 10**12, float("nan"), float("inf"), "x", "", [], {}, [[]], {"a": 1}]
METADATA = ["{", "3", "[]", "null", "[" * 20_000, '"x"', "{}", '{"unknown": 1}', "\0"]
DTYPES = [
    "BOOL",
    "U8",
    "I8",
    "F8_E5M2",
    "F8_E4M3",
    "F8_E8M0",
    "I16",
    "F16",
    "BF16",
    "U32",
    "F32",
    "F64",
    "C64",
    "F4",
    "X",
]
NAMES = [
    "",
    "\n",
    "é",
    "x" * 1000,
    "__metadata__",
    "video_model.blocks.999999999.norm3.weight",
    "model",
    "a.comfy_quant",
]


def damaged(whole: bytes, seed: int) -> bytes:
    """Return a safetensors file with one to three things changed."""
    draw = random.Random(seed)
    length = struct.unpack("<Q", whole[:8])[0]
    header, data = json.loads(whole[8 : 8 + length]), bytearray(whole[8 + length :])
    for _ in range(draw.randint(1, 3)):
        data = _change(header, data, draw)
    text = json.dumps(header).encode()
    return _cut(struct.pack("<Q", len(text)) + text + data, draw) if draw.random() < 0.4 else _file(text, data)


def _file(text: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def _change(header: dict[str, Any], data: bytearray, draw: random.Random) -> bytearray:
    """Change the header in place; return the data."""
    name = draw.choice([key for key in header if key != "__metadata__"])
    entry, how = header[name], draw.randrange(9)
    if how == 0:
        header[draw.choice(NAMES)] = header.pop(name)
    elif how == 1:
        entry["dtype"] = draw.choice(DTYPES)
    elif how == 2:
        entry["shape"] = draw.choice([[], [0], [3, 2], [2**62, 0], [1] * 70, draw.choice(ABSURD)])
    elif how == 3:
        entry["data_offsets"] = draw.choice([[0, 0], [0, 2**62], [8, 4], draw.choice(ABSURD)])
    elif how == 4:
        key = draw.choice(["num_heads", "text_len", "audio_rope_scale", "reference_rope_scale"])
        header["__metadata__"] = {"ovi_config": json.dumps({"num_heads": 3, key: draw.choice(ABSURD)})}
    elif how == 5:
        key = draw.choice(["ovi_config", "_quantization_metadata"])
        header["__metadata__"] = {key: draw.choice(METADATA)}
    elif how == 6:
        header["__metadata__"] = draw.choice(ABSURD)
    elif how == 7:
        start = draw.randrange(len(data))
        data[start : start + 4096] = b"\xff" * len(data[start : start + 4096])
    else:
        mark = json.dumps({"format": draw.choice([*ABSURD, "float8_e4m3fn", "nvfp4", "int3"])}).encode()
        layer = name.rpartition(".")[0]
        header[f"{layer}.comfy_quant"] = {"dtype": "U8", "shape": [len(mark)]}
        header[f"{layer}.comfy_quant"]["data_offsets"] = [len(data), len(data) + len(mark)]
        data = data + mark
    for key, value in list(header.items()):  # what was renamed to it, or made absurd
        if key != "__metadata__" and not isinstance(value, dict):
            del header[key]
    return data


def _cut(file: bytes, draw: random.Random) -> bytes:
    """Return a file cut short, with changed bytes in its header, or with more at its end."""
    how = draw.randrange(4)
    if how == 0:
        return file[: draw.randrange(len(file))]
    if how == 1:
        return struct.pack("<Q", draw.choice([0, 1, 2**63, 99_999_999, 2**32])) + file[8:]
    if how == 2:
        return file + b"\0" * draw.choice([1, 8])
    changed = bytearray(file)
    for _ in range(3):
        changed[draw.randrange(min(2000, len(file)))] = draw.randrange(256)
    return bytes(changed)


def write(path: Path, header: dict[str, Any], data: bytes = b"", pad: int = 0) -> Path:
    """Write a safetensors file of a header, padded to a length, and data; return its path."""
    path.write_bytes(_file(json.dumps(header).encode().ljust(pad), data))
    return path
