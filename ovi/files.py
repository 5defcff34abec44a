"""What a file on disk holds: safetensors and PyTorch files, checked before anything of them is used.

Every reader raises ValueError, in one sentence that names the file, for a file of another kind, a damaged one, and one
that holds anything but tensors by name. No check needs memory for what a file only claims to hold.
"""

from __future__ import annotations

import json
import math
import mmap
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
SAFETENSORS, PYTORCH = "safetensors", "PyTorch"

MAX_HEADER = 2**24  # bytes of a safetensors header; Ovi's has half a million
MAX_NAME = 500  # characters of a tensor's name
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 2**48  # of a tensor's dimensions that are not 0
MAX_EXPANDED = 2**30  # bytes by which the tensors of a PyTorch file may exceed what is stored, by repeating it
MAX_NESTING = 4  # of mappings in a PyTorch file, around its tensors
MAX_PICKLE = 2**24  # bytes of the pickle in a PyTorch file, which names its tensors
PARTS = ("state_dict", "generator", "model", "module")  # of a PyTorch file: where the tensors are

_FORMATS = (  # by their first bytes
    (b"GGUF", "a GGUF file"),
    (b"version https:", "a git-lfs pointer, which stands for the file in a repository"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "a WebP, WAV or AVI file"),
    (b"%PDF", "a PDF file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"OggS", "an Ogg file"),
    (b"fLaC", "a FLAC file"),
    (b"ID3", "an MP3 file"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"MZ", "a Windows program"),
    (b"\x7fELF", "a Linux program"),
)
_LATER = (  # by the bytes from the fifth on
    (b"ftyp", "an MP4 or MOV video"),
    (b"TFL3", "a TensorFlow Lite file"),
    (b"ORTM", "an ONNX Runtime file"),
)
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{1,6})-of-(?P<total>[0-9]{1,6})(?P<ending>\.\w+)")
_OBJECT = re.compile(r"\b(?:GLOBAL|global:?|class) ([A-Za-z_][\w.]*\.[\w.]+)")  # in torch's refusal of a pickle


class MappedFile:
    """The tensors and the metadata of a safetensors file, mapped into memory.

    A tensor takes memory only once it is used, until `release`.
    """

    def __init__(self, path: Path) -> None:
        require_safetensors(path)
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(self._map[:8], "little")
        header = json.loads(self._map[8:start])
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        dtypes = DTYPES | BYTES
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


def check(path: Path, source: str = "") -> str:
    """Check a file of tensors without reading them; return its kind, `SAFETENSORS` or `PYTORCH`.

    `source` says where such a file is to be had. Raises ValueError for a file that cannot be read, is of another
    format, cut, damaged or empty, and for names, dtypes and shapes that no tensor of a model has.
    """
    try:
        if not path.is_file():
            raise ValueError(f"{shown(path)} is {'a folder' if path.is_dir() else 'not there'}; choose a file.")
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as error:
        raise ValueError(f"{shown(path)} cannot be read ({error.strerror}); check its permissions.") from error
    if start[8:9] == b"{" and b"\0" in start[:8]:  # a length, whose first bytes may be those of any format
        _check_safetensors(path, int.from_bytes(start[:8], "little"), source)
        return SAFETENSORS
    if what := _other_format(start):
        raise _refusal(path, f"is {what}, not a safetensors or PyTorch file of tensors", source)
    if start.startswith((b"PK\x03\x04", b"\x80")):
        _load_pytorch(path, source)
        return PYTORCH
    raise _refusal(path, "is of no known format", source)


def require_safetensors(path: Path) -> None:
    """Check a safetensors file (see `check`); raise ValueError for a PyTorch file, too."""
    if check(path) != SAFETENSORS:
        raise ValueError(f"{shown(path)} is a PyTorch file, but a safetensors file is needed.")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file into memory."""
    require_safetensors(path)
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] | None = file.metadata()
    return load_file(path), metadata or {}


def read_tensors(path: Path, source: str = "") -> dict[str, Tensor]:
    """Return the tensors of a safetensors or a PyTorch file, mapped into memory where its format allows it."""
    return MappedFile(path).tensors if check(path, source) == SAFETENSORS else _load_pytorch(path, source)


def state_dict(loaded: Any) -> Any:
    """Return the part of a PyTorch file that holds its tensors by name, where ComfyUI, vocoders and trainers put it."""
    for _ in range(MAX_NESTING):  # a mapping may hold itself
        if not isinstance(loaded, Mapping):
            break
        keys = [key for key in PARTS if isinstance(loaded.get(key), Mapping)] or (
            list(loaded) if len(loaded) == 1 else []
        )
        if not keys or not isinstance(loaded[keys[0]], Mapping):
            break
        loaded = loaded[keys[0]]
    return loaded


def shards(path: Path) -> list[Path]:
    """Return all files of a model in shards, whose first one is given; a file that is no shard is alone.

    Raises ValueError for another shard than the first, and where one is missing.
    """
    named = _SHARD.fullmatch(path.name)
    if named is None:
        return [path]
    width = len(named["number"])

    def shard(number: int) -> Path:
        name = f"{named['stem']}-{number:0{width}}-of-{named['total']}{named['ending']}"
        return path.with_name(name)

    if int(named["number"]) != 1:
        raise ValueError(f"{shown(path)} is one shard of a model in several; choose the first, {shard(1).name}.")
    found = [path]
    for number in range(2, int(named["total"]) + 1):
        if not shard(number).is_file():
            raise ValueError(
                f"{shown(path)} is the first of {int(named['total'])} shards, and {shard(number).name} is missing; "
                "put all of them into the same folder."
            )
        found.append(shard(number))
    return found


def joined(
    parts: Iterable[tuple[Mapping[str, Tensor], Mapping[str, str] | None]],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Join the tensors and the metadata of shards. Raises ValueError for a tensor that two of them hold."""
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for of_shard, its_metadata in parts:
        if twice := next((key for key in of_shard if key in tensors), None):
            raise ValueError(f"Two shards hold the tensor {twice}; they belong to different models.")
        tensors |= of_shard
        metadata |= its_metadata or {}
    return tensors, metadata


@contextmanager
def naming(*paths: Path) -> Iterator[None]:
    """Put the names of files before the message of a ValueError that their contents cause."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{', '.join(shown(path.name) for path in paths)}: {error}") from error


def read_json(text: str | bytes, limit: int) -> Any:
    """Parse JSON that a file holds. Raises ValueError for more than `limit` characters, and for what is no JSON."""
    if len(text) > limit:
        raise ValueError(f"It has {len(text)} characters; at most {limit} are expected.")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("It is nested too deeply.") from error


def shown(text: object, limit: int = 300) -> str:
    """Return a text from outside so that a message of one line can show it."""
    line = "".join(char if char.isprintable() else "?" for char in str(text)[: limit + 1])
    return line if len(line) <= limit else f"{line[:limit]}…"


def _refusal(path: Path, problem: str, source: str) -> ValueError:
    return ValueError(f"{shown(path)} {problem}; download it again{f': {source}' if source else ''}.")


def _other_format(start: bytes) -> str | None:
    """Say what a file is that cannot hold tensors, by its first bytes."""
    if not start:
        return "empty"
    if not start.strip(b"\0"):
        return "nothing but zeros, as an interrupted download leaves behind"
    for offset, formats in ((0, _FORMATS), (4, _LATER)):
        for magic, what in formats:
            if start.startswith(magic, offset):
                return what
    text = start.decode("utf-8-sig", errors="ignore").lstrip()
    if text.lower().startswith(("<!doctype html", "<html")):
        return "a web page (HTML), as a site sends that asks to log in"
    if len(text) > 0.9 * len(start) and all(char.isprintable() or char.isspace() for char in text):
        return f"a text file (it begins with {shown(text, 40)!r})"
    return None


def _check_safetensors(path: Path, length: int, source: str) -> None:
    """Check the header of a safetensors file: against the file's size, as safetensors does, and what it declares."""
    if MAX_HEADER < length <= path.stat().st_size:
        raise _refusal(path, f"is no model: its header has {length} bytes", source)
    try:
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            header = json.loads(file.read(8 + length)[8:])
    except (SafetensorError, ValueError, RecursionError) as error:
        raise _refusal(path, f"is not a complete safetensors file ({shown(error)})", source) from error
    header.pop("__metadata__", None)
    _check_tensors(
        path,
        ((key, entry["shape"], entry["dtype"], entry["dtype"] in DTYPES | BYTES) for key, entry in header.items()),
        source,
    )


def _check_tensors(path: Path, tensors: Iterable[tuple[object, Sequence[int], str, bool]], source: str) -> None:
    """Check names, shapes and dtypes; `tensors` has those, and whether the dtype is one of Ovi's."""
    empty = True
    for name, shape, dtype, known in tensors:
        empty = False
        if not (isinstance(name, str) and len(name) <= MAX_NAME and name.isprintable()):
            problem = f"names a tensor {shown(name, 60)!r}"
        elif len(shape) > MAX_DIMENSIONS or math.prod(size for size in shape if size) > MAX_ELEMENTS:
            problem = f"has a tensor {name} of shape {shown(list(shape), 100)}"
        elif not known:
            problem = f"has a tensor {name} of type {dtype}"
        else:
            continue
        raise _refusal(path, f"{problem}, as no model has; it is damaged or of another kind", source)
    if empty:
        raise _refusal(path, "holds no tensors", source)


def _load_pytorch(path: Path, source: str) -> dict[str, Tensor]:
    """Return the tensors of a PyTorch file, mapped into memory (but for files from before 2020)."""
    zipped = zipfile.is_zipfile(path)
    if zipped:
        pickle = _zipped_pickle(path, source)
    else:
        with path.open("rb") as file:
            pickle = file.read(MAX_PICKLE)
    if b"bytearray" in pickle:  # bytes of a size that it names, which even torch's safe unpickler allocates
        raise _refusal(path, "holds bytes in place of tensors", source)
    mapped = zipped and path.suffix.lower() != ".safetensors"  # torch reads what is called so as safetensors
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            loaded = torch.load(str(path) if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch.load raises anything on a damaged file
        if strange := _OBJECT.search(str(error)):
            raise ValueError(
                f"{shown(path)} holds code or objects ({shown(strange[1], 60)}) beside tensors, and is not opened for "
                f"safety; choose a file of tensors alone{f': {source}' if source else ''}."
            ) from error
        raise _refusal(path, "is not a complete PyTorch file of tensors", source) from error
    tensors = state_dict(loaded)
    if not isinstance(tensors, dict):
        raise _refusal(path, f"holds a value of type {type(tensors).__name__}, but tensors by name are needed", source)
    expanded = 0
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            what = f"holds a value of type {type(tensor).__name__} as {shown(name, 60)!r}, where only tensors belong"
            raise _refusal(path, what, source)
        special = tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided
        if special or tensor.device.type != "cpu":
            raise _refusal(path, f"holds no plain numbers as {shown(name, 60)!r}", source)
        expanded += max(0, tensor.nbytes - tensor.untyped_storage().nbytes())
    if expanded > MAX_EXPANDED:
        raise _refusal(path, "repeats stored numbers to a size that no model has", source)
    known = {*NAMES, torch.float8_e8m0fnu}
    _check_tensors(path, ((k, t.shape, str(t.dtype), t.dtype in known) for k, t in tensors.items()), source)
    return tensors


def _zipped_pickle(path: Path, source: str) -> bytes:
    """Return the pickle in a zip archive that is PyTorch's: stored without compression, so no larger than its file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            stored = sum(entry.file_size for entry in entries) <= path.stat().st_size
            pickle = archive.open(pickles[0]).read(MAX_PICKLE) if pickles and stored else b""
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, RuntimeError) as error:
        raise _refusal(path, "is not a complete PyTorch file of tensors", source) from error
    if not pickles:
        raise _refusal(path, "is a zip archive, not a safetensors or PyTorch file of tensors", source)
    if not stored:
        raise _refusal(path, "is a compressed zip archive, which PyTorch does not write", source)
    return pickle
