"""What a file on disk holds: safetensors and PyTorch files, checked before anything of them is used.

Every reader raises ValueError, in one sentence that names the file, for a file of another kind or an incomplete one.
"""

from __future__ import annotations

import json
import math
import mmap
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

# By safetensors' names, in its order: a file holds tensors of the last of these first, so that all are aligned.
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
BYTES = {"F8_E8M0": torch.uint8}  # the scales of mxfp8, read as bytes: ComfyUI takes both, but maps only bytes


class MappedFile:
    """The tensors and the metadata of a safetensors file, mapped into memory.

    A tensor takes memory only once it is used, until `release`.
    """

    def __init__(self, path: Path) -> None:
        check_safetensors(path)
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(self._map[:8], "little")
        header = json.loads(self._map[8:start])
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        dtypes = DTYPES | BYTES
        if unknown := {entry["dtype"] for entry in header.values()} - dtypes.keys():
            raise ValueError(f"{path} has tensors of type {min(unknown)}, which no file of Ovi has.")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            self.tensors = {
                key: self._tensor(dtypes[entry["dtype"]], entry["shape"], start + entry["data_offsets"][0])
                for key, entry in header.items()
            }

    def _tensor(self, dtype: torch.dtype, shape: list[int], offset: int) -> Tensor:
        count = math.prod(shape)
        if not count:  # frombuffer takes no empty ones
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset).view(shape)

    def release(self) -> None:
        """Release the memory of what was read. (Windows does so by itself when memory is short.)"""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def check_safetensors(path: Path) -> None:
    """Check the header of a safetensors file, and the file's size against it."""
    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error}); download it again.") from error


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file into memory."""
    check_safetensors(path)
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] | None = file.metadata()
    return load_file(path), metadata or {}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or of a PyTorch file that holds nothing else."""
    with path.open("rb") as file:
        start = file.read(9)
    if start.endswith(b"{"):  # the length of a header in 8 bytes, and its first byte
        return MappedFile(path).tensors
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises anything on a damaged file
        raise ValueError(
            f"{path} is neither a complete safetensors file nor a complete PyTorch file of tensors alone; "
            "download it again."
        ) from error
    if not isinstance(tensors, dict):
        raise ValueError(f"{path} holds a {type(tensors).__name__}, but tensors by name are needed.")
    return tensors
