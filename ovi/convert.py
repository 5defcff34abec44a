"""Offline conversions of Ovi's files: `python -m ovi.convert --help`.

A command plans its files first, the dtype and shape of every tensor; then it writes them, tensor by tensor, so memory
holds few tensors whatever the size of a file; or, on a dry run, it lists them. Input files are mapped into memory.
Written files are what `safetensors.torch.save_file` would write, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import math
import mmap
import re
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import audio_vae, checkpoint

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
BYTES = {"F8_E8M0": torch.uint8}  # the scales of mxfp8, kept as bytes: ComfyUI takes both, but maps only bytes

# What is quantised. Not the rest of a block: norms, modulation, biases, and the keys of the fusion.
MATRIX = re.compile(
    r"(video|audio)_model\.blocks\.\d+\.(self_attn\.[qkvo]|cross_attn\.([qkvo]|v_fusion)|ffn\.[02])\.weight"
)


class Format(NamedTuple):
    """A quantised format: ComfyUI's name of it, and the layout of comfy-kitchen with its options."""

    name: str
    layout: str
    options: Mapping[str, Any] = {}


FORMATS = {
    "fp8": Format("float8_e4m3fn", "TensorCoreFP8Layout", {"scale": "recalculate"}),
    "nvfp4": Format("nvfp4", "TensorCoreNVFP4Layout"),
    "mxfp8": Format("mxfp8", "TensorCoreMXFP8Layout"),
    "int8": Format("int8_tensorwise", "TensorWiseINT8Layout", {"per_channel": True}),
}


class Mapped:
    """The tensors and the metadata of a safetensors file, mapped into memory.

    A tensor takes memory once it is used, until `forget`. Raises ValueError for a file of another kind or not whole.
    """

    def __init__(self, path: Path) -> None:
        try:
            with safe_open(path, framework="numpy"):  # checks the header, and the file's size against it
                pass
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file, or not a whole one ({error}); get it again.") from error
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

    def forget(self) -> None:
        """Give back the memory of what was read (Windows does so when memory is short)."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


class Part(NamedTuple):
    """Tensors of a file that are made together: of which dtypes and shapes (perhaps on the meta device), and how."""

    like: Mapping[str, Tensor]
    make: Callable[[], Mapping[str, Tensor]]


class Job(NamedTuple):
    """What a command does: the files that it writes, the metadata of each, and the files that it reads meanwhile."""

    outputs: Mapping[Path, Sequence[Part]]
    metadata: Mapping[str, str]
    sources: Sequence[Mapped]


def merge(video: Path, audio: Path, out: Path) -> Job:
    """Put both towers into one file."""
    model, metadata, sources = _model(video, audio)
    return Job({out: [_unchanged(model)]}, metadata, sources)


def split(model_path: Path, video: Path, audio: Path) -> Job:
    """Put each tower into a file of its own."""
    model, metadata, sources = _model(model_path)
    outputs = {
        out: [_unchanged({key: tensor for key, tensor in model.items() if key.startswith(prefix)})]
        for out, prefix in ((video, checkpoint.VIDEO), (audio, checkpoint.AUDIO))
    }
    return Job(outputs, metadata, sources)


def quantize(model_path: Path, out: Path, form: Format) -> Job:
    """Bring the matrices of the blocks to a format of 8 or 4 bits, and the rest to bfloat16, as ComfyUI loads them."""
    model, metadata, sources = _model(model_path)
    if quantised := [key for key, tensor in model.items() if tensor.itemsize == 1]:
        raise ValueError(
            f"{model_path} is quantised already ({quantised[0]} is {NAMES[model[quantised[0]].dtype]}); "
            "choose one of bf16, fp16 or fp32."
        )
    parts = [
        _quantised(key, tensor, form) if MATRIX.fullmatch(key) else _bfloat16(key, tensor)
        for key, tensor in model.items()
    ]
    return Job({out: parts}, metadata, sources)


def merge_audio_vae(vae: Path, vocoder: Path, out: Path) -> Job:
    """Put MMAudio's VAE (v1-16) and the BigVGAN vocoder into one file, which ComfyUI's 'Load VAE' opens."""
    return Job({out: [_unchanged(audio_vae.merge(_tensors(vae), _tensors(vocoder)))]}, {}, [])


def run(job: Job, *, dry_run: bool) -> None:
    """List the files of a job, or write them: under temporary names until all are whole, and all or none."""
    if not dry_run:
        try:
            for path, parts in job.outputs.items():
                _write(_temporary(path), parts, job.metadata, job.sources)
        except BaseException:
            for path in job.outputs:
                _temporary(path).unlink(missing_ok=True)
            raise
        for path in job.outputs:
            _temporary(path).replace(path)
    for path, parts in job.outputs.items():
        tensors = _planned(parts)
        if dry_run:
            for key, tensor in tensors.items():
                print(f"{key}  {NAMES[tensor.dtype]} {list(tensor.shape)}")
        size = sum(tensor.nbytes for tensor in tensors.values())
        print(f"{path}: {len(tensors)} tensors, {size / 1e9:.3g} GB{', not written' if dry_run else ''}")


def _write(path: Path, parts: Sequence[Part], metadata: Mapping[str, str], sources: Sequence[Mapped]) -> None:
    """Write a safetensors file: the header's length in 8 bytes, the header in JSON, and each tensor at its place."""
    from tqdm import tqdm

    tensors = _planned(parts)
    rank = {dtype: i for i, dtype in enumerate(NAMES)}
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for key in sorted(tensors, key=lambda key: (-rank[tensors[key].dtype], key)):
        tensor = tensors[key]
        start, end = end, end + tensor.nbytes
        header[key] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    progress = tqdm(desc=path.stem, total=end, unit="B", unit_scale=True, disable=None)  # None: on a terminal alone
    with path.open("wb") as file, progress:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in parts:
            for key, tensor in part.make().items():
                file.seek(8 + len(text) + header[key]["data_offsets"][0])
                file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
                progress.update(tensor.nbytes)
                for source in sources:
                    source.forget()


def _planned(parts: Sequence[Part]) -> dict[str, Tensor]:
    """All tensors of a file, of the right dtypes and shapes."""
    return {key: tensor for part in parts for key, tensor in part.like.items()}


def _model(*paths: Path) -> tuple[dict[str, Tensor], dict[str, str], list[Mapped]]:
    """A complete, sound Ovi model under its published key names, its metadata, and the files that it is in."""
    sources = [Mapped(path) for path in paths]
    model, metadata, _ = checkpoint.assemble((source.tensors, source.metadata) for source in sources)
    metadata.pop(checkpoint.QUANTIZATION_KEY, None)  # it is in the tensors now, with the published names
    return model, metadata, sources


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a PyTorch file that holds nothing else."""
    with path.open("rb") as file:
        start = file.read(9)
    if start.endswith(b"{"):  # the length of a header, and its first byte
        return Mapped(path).tensors
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch.load run into anything
        raise ValueError(
            f"{path} is neither a safetensors file nor a PyTorch file of tensors alone, or not a whole one; "
            "get it again from where it was published."
        ) from error
    if not isinstance(tensors, dict):
        raise ValueError(f"{path} holds a {type(tensors).__name__}, but tensors by name are needed.")
    return tensors


def _unchanged(tensors: Mapping[str, Tensor]) -> Part:
    return Part(tensors, lambda: tensors)


def _bfloat16(key: str, tensor: Tensor) -> Part:
    return Part({key: tensor.to("meta", torch.bfloat16)}, lambda: {key: tensor.bfloat16()})


def _quantised(key: str, weight: Tensor, form: Format) -> Part:
    """A matrix in a format of ComfyUI's: beside `.weight` its scales, and the name of the format in `.comfy_quant`.

    When made, its relative error is printed. Raises ValueError then where it is all zero, or holds NaN or infinity.
    """
    from comfy_kitchen.tensor import QuantizedTensor
    from tqdm import tqdm

    layer = key.removesuffix(".weight")
    mark = torch.frombuffer(bytearray(json.dumps({"format": form.name}).encode()), dtype=torch.uint8)

    def stored(quantised: Any) -> dict[str, Tensor]:
        tensors = {f"{layer}.comfy_quant": mark, **quantised.state_dict(key)}
        return {name: t if t.dtype in NAMES else t.view(torch.uint8) for name, t in tensors.items()}  # see BYTES

    def make() -> dict[str, Tensor]:
        exact = weight.to(torch.float32, copy=True)
        quantised = QuantizedTensor.from_float(exact, form.layout, **form.options)
        error = float((quantised.dequantize() - exact).norm() / exact.norm())
        if not math.isfinite(error):
            raise ValueError(f"{key} is all zero, or holds NaN or infinity; the file is damaged: get it again.")
        tqdm.write(f"{layer}  {form.name}, relative error {error:.2%}")
        return stored(quantised)

    like = QuantizedTensor.from_float(weight.to("meta", torch.float32), form.layout, **form.options)
    return Part(stored(like), make)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _check_paths(inputs: Sequence[Path], outputs: Sequence[Path], *, force: bool) -> None:
    """Refuse inputs that are no files, and outputs that are an input, each other, or (unless `force`) exist."""
    for path in inputs:
        if not path.is_file():
            raise ValueError(f"There is no file {path}.")
    given = [path.resolve() for path in (*inputs, *outputs)]
    for path in outputs:
        if given.count(path.resolve()) > 1:
            raise ValueError(f"{path} is given twice; a file that is written needs a name of its own.")
        for existing in (path, _temporary(path)):
            if existing.exists() and not force:
                raise ValueError(f"{existing} exists; choose another name, or write over it with --force.")


def _parser() -> argparse.ArgumentParser:
    """The command line; a command's `inputs` and `outputs` name its paths, and `plan` is what makes its Job of them."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--dry-run", action="store_true", help="list what would be written, and write nothing")
    common.add_argument("--force", action="store_true", help="write over files that exist")
    parser = argparse.ArgumentParser(prog="python -m ovi.convert", description="Convert files of Ovi.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, plan: Callable[..., Job], inputs: str, outputs: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, parents=[common], help=plan.__doc__, description=plan.__doc__)
        for path in (*inputs.split(), *outputs.split()):
            sub.add_argument(path, type=Path, metavar=path.upper())
        sub.set_defaults(plan=plan, inputs=inputs.split(), outputs=outputs.split())
        return sub

    command("merge", merge, "video audio", "out")
    command("split", split, "in", "video audio")
    command("quantize", quantize, "in", "out").add_argument("--format", choices=FORMATS, required=True)
    command("audio-vae", merge_audio_vae, "vae vocoder", "out")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code: 0, or 2 with one line on stderr, or 130 where it was interrupted."""
    args = vars(_parser().parse_args(argv))
    inputs, outputs = ([args[name] for name in args[side]] for side in ("inputs", "outputs"))
    forms = [FORMATS[args["format"]]] if "format" in args else []
    try:
        _check_paths(inputs, outputs, force=args["force"])
        run(args["plan"](*inputs, *outputs, *forms), dry_run=args["dry_run"])
    except ModuleNotFoundError as error:
        sys.stderr.write(f"There is no Python package {error.name} here; ComfyUI's own Python has it.\n")
        return 2
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; nothing was written.\n")
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that nothing is left behind
    sys.exit(main())
