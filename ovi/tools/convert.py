"""Offline conversions of Ovi's files: `python -m ovi.tools.convert --help`.

A command first plans its files, the dtype and shape of every tensor. Then it writes them tensor by tensor, so memory
holds few tensors whatever the size of a file, or, on a dry run, lists them. Input files are mapped into memory. Output
files are what `safetensors.torch.save_file` would write, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import audio_vae, checkpoint, quantised
from ..audio_vae import SOURCES, VAE, VOCODER
from ..files import NAMES, MappedFile, joined, naming, read_tensors, shards
from ..writing import complete
from .files import check_paths, exit_code, program

# What is quantised; the rest of a block is not: norms, modulation, biases, and the fusion's key projections.
MATRIX = re.compile(
    r"(video|audio)_model\.blocks\.\d+\.(self_attn\.[qkvo]|cross_attn\.([qkvo]|v_fusion)|ffn\.[02])\.weight"
)


OPTIONAL = {"second"}  # paths that a command can do without


class Format(NamedTuple):
    """A quantised format: ComfyUI's name of it, and the layout of comfy-kitchen with its options."""

    name: str
    layout: str
    options: Mapping[str, Any] = {}


FORMATS: Mapping[str, Format | None] = {
    "bf16": None,  # not quantised
    "fp8": Format("float8_e4m3fn", "TensorCoreFP8Layout", {"scale": "recalculate"}),
    "nvfp4": Format("nvfp4", "TensorCoreNVFP4Layout"),
    "mxfp8": Format("mxfp8", "TensorCoreMXFP8Layout"),
    "int8": Format("int8_tensorwise", "TensorWiseINT8Layout", {"per_channel": True}),
}


class Part(NamedTuple):
    """Tensors of a file that are computed together: `like` has their dtypes and shapes, perhaps on the meta device."""

    like: Mapping[str, Tensor]
    make: Callable[[], Mapping[str, Tensor]]


class Job(NamedTuple):
    """The work of a command: the files to write, their metadata, and the files that are read meanwhile."""

    outputs: Mapping[Path, Sequence[Part]]
    metadata: Mapping[str, str]
    sources: Sequence[MappedFile]


def merge(model_path: Path, second: Path | None, out: Path) -> Job:
    """Merge a model's towers (IN and SECOND), its shards (IN is the first of them), or both, into one file."""
    model, metadata, sources = _model(model_path, *([] if second is None else [second]))
    return Job({out: [_unchanged(model)]}, metadata, sources)


def split(model_path: Path, video: Path, audio: Path) -> Job:
    """Split a model into one file per tower."""
    model, metadata, sources = _model(model_path)
    outputs = {
        out: [_unchanged({key: tensor for key, tensor in model.items() if key.startswith(prefix)})]
        for out, prefix in ((video, checkpoint.VIDEO), (audio, checkpoint.AUDIO))
    }
    return Job(outputs, metadata, sources)


def quantize(model_path: Path, out: Path, form: Format | None) -> Job:
    """Convert a model to bfloat16, with the matrices of the blocks quantised to 8 or 4 bits, as ComfyUI loads them."""
    model, metadata, sources = _model(model_path)
    if quantised := [key for key, tensor in model.items() if tensor.itemsize == 1]:
        raise ValueError(
            f"{model_path} is already quantised ({quantised[0]} is {NAMES[model[quantised[0]].dtype]}); "
            "choose a file in bf16, fp16 or fp32."
        )
    parts = [
        _quantised(key, tensor, form) if form and MATRIX.fullmatch(key) else _bfloat16(key, tensor)
        for key, tensor in model.items()
    ]
    return Job({out: parts}, metadata, sources)


def merge_audio_vae(vae: Path, vocoder: Path, out: Path) -> Job:
    """Merge MMAudio's VAE (v1-16) and the BigVGAN vocoder into one file, which ComfyUI's 'Load VAE' opens."""
    tensors = read_tensors(vae, SOURCES[VAE]), read_tensors(vocoder, SOURCES[VOCODER])
    with naming(vae, vocoder):
        return Job({out: [_unchanged(audio_vae.merge(*tensors))]}, {}, [])


def run(job: Job, *, dry_run: bool) -> None:
    """List the files of a job, or write them, all or none."""
    if not dry_run:
        with complete(*job.outputs) as temporary:
            for path, parts in zip(temporary, job.outputs.values(), strict=True):
                _write(path, parts, job.metadata, job.sources)
    for path, parts in job.outputs.items():
        tensors = _planned(parts)
        if dry_run:
            for key, tensor in tensors.items():
                print(f"{key}  {NAMES[tensor.dtype]} {list(tensor.shape)}")
        size = sum(tensor.nbytes for tensor in tensors.values())
        print(f"{path}: {len(tensors)} tensors, {size / 1e9:.3g} GB{', not written' if dry_run else ''}")


def _write(path: Path, parts: Sequence[Part], metadata: Mapping[str, str], sources: Sequence[MappedFile]) -> None:
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
    progress = tqdm(desc=path.stem, total=end, unit="B", unit_scale=True, disable=None)  # None: on a terminal only
    with path.open("wb") as file, progress:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in parts:
            for key, tensor in part.make().items():
                file.seek(8 + len(text) + header[key]["data_offsets"][0])
                file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
                progress.update(tensor.nbytes)
                for source in sources:
                    source.release()


def _planned(parts: Sequence[Part]) -> dict[str, Tensor]:
    """Return all tensors of a file, with the right dtypes and shapes."""
    return {key: tensor for part in parts for key, tensor in part.like.items()}


def _model(*paths: Path) -> tuple[dict[str, Tensor], dict[str, str], list[MappedFile]]:
    """Return a complete, valid Ovi model under its published key names, its metadata, and the files it is read from."""
    sources = [[MappedFile(shard) for shard in shards(path)] for path in paths]
    with naming(*paths):
        parts = [joined((shard.tensors, shard.metadata) for shard in of_path) for of_path in sources]
        model, metadata, _ = checkpoint.assemble(parts)
    metadata.pop(quantised.METADATA_KEY, None)  # it is in the tensors now, with the published names
    return model, metadata, [shard for of_path in sources for shard in of_path]


def _unchanged(tensors: Mapping[str, Tensor]) -> Part:
    return Part(tensors, lambda: tensors)


def _bfloat16(key: str, tensor: Tensor) -> Part:
    return Part({key: tensor.to("meta", torch.bfloat16)}, lambda: {key: tensor.bfloat16()})


def _quantised(key: str, weight: Tensor, form: Format) -> Part:
    """Plan a matrix in one of ComfyUI's formats: `.weight`, its scales, and the format's name in `.comfy_quant`.

    When it is computed, its relative error is printed. Raises ValueError then where it is all zero or holds NaN or
    infinity.
    """
    from comfy_kitchen.tensor import QuantizedTensor
    from tqdm import tqdm

    layer = key.removesuffix(".weight")
    mark = torch.frombuffer(bytearray(json.dumps({"format": form.name}).encode()), dtype=torch.uint8)

    def stored(quantised: Any) -> dict[str, Tensor]:
        tensors = {f"{layer}.comfy_quant": mark, **quantised.state_dict(key)}
        return {name: t if t.dtype in NAMES else t.view(torch.uint8) for name, t in tensors.items()}  # see files.BYTES

    def make() -> dict[str, Tensor]:
        exact = weight.to(torch.float32, copy=True)
        quantised = QuantizedTensor.from_float(exact, form.layout, **form.options)
        error = float((quantised.dequantize() - exact).norm() / exact.norm())
        if not math.isfinite(error):
            raise ValueError(f"{key} is all zero, or holds NaN or infinity; the file is damaged: download it again.")
        tqdm.write(f"{layer}  {form.name}, relative error {error:.2%}")
        return stored(quantised)

    like = QuantizedTensor.from_float(weight.to("meta", torch.float32), form.layout, **form.options)
    return Part(stored(like), make)


def _parser() -> argparse.ArgumentParser:
    """Return the parser; `inputs` and `outputs` name a command's paths, and `plan` makes its Job of them."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--dry-run", action="store_true", help="list what would be written, and write nothing")
    common.add_argument("--force", action="store_true", help="overwrite files that exist")
    parser = argparse.ArgumentParser(prog="python -m ovi.tools.convert", description="Convert Ovi's files.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, plan: Callable[..., Job], inputs: str, outputs: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, parents=[common], help=plan.__doc__, description=plan.__doc__)
        for path in (*inputs.split(), *outputs.split()):
            sub.add_argument(path, type=Path, metavar=path.upper(), nargs="?" if path in OPTIONAL else None)
        sub.set_defaults(plan=plan, inputs=inputs.split(), outputs=outputs.split())
        return sub

    command("merge", merge, "in second", "out")
    command("split", split, "in", "video audio")
    command("quantize", quantize, "in", "out").add_argument("--format", choices=FORMATS, required=True)
    command("audio-vae", merge_audio_vae, "vae vocoder", "out")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code: 0, or 2 with one line on stderr, or 130 where it was interrupted."""
    args = vars(_parser().parse_args(argv))
    inputs, outputs = ([args[name] for name in args[side]] for side in ("inputs", "outputs"))
    formats = [FORMATS[args["format"]]] if "format" in args else []

    def work() -> int:
        read = [shard for path in inputs if path is not None for shard in shards(path)]
        check_paths(read, outputs, force=args["force"])
        run(args["plan"](*inputs, *outputs, *formats), dry_run=args["dry_run"])
        return 0

    return exit_code(work, "Interrupted; nothing was written.")


if __name__ == "__main__":
    program(main)
