"""The memory that a large float32 file needs, in Load Ovi Model and in `convert`: `python -m bench.files [--blocks 6]`.

The file is of the release's width, with fewer blocks, and takes its size on the disk. Each row is a process of its own;
its peak is that of the resident set, with Python, PyTorch and, in the loader's, ComfyUI. 1 GB is 10^9 bytes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from ovi.config import OviConfig
from ovi.model import OviModel
from ovi.tools.convert import MATRIX

ROOT = Path(__file__).parent.parent
FORMATS = ("bf16", "fp8", "nvfp4")  # of `convert quantize`
LOAD = """
import sys, torch
from bench import comfyui
comfyui.start()
from ovi.native import load
load([sys.argv[1]], {"dtype": torch.bfloat16})
"""
# A process between this one and the one that is measured, because a child's peak begins with its parent's.
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def write_float32(path: Path, config: OviConfig) -> None:
    """Write a float32 model of random numbers where a format refuses zeros; the others are holes in the file."""
    header, end = {}, 0
    for key, tensor in OviModel(config, device="meta").state_dict().items():
        start, end = end, end + tensor.nbytes
        header[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    numbers = torch.randn(1024, generator=torch.Generator().manual_seed(0)).numpy().tobytes()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        for key in filter(MATRIX.fullmatch, header):
            start, end = header[key]["data_offsets"]
            file.seek(8 + len(text) + start)
            file.write(numbers * ((end - start) // len(numbers)))


def peak(*command: str | Path) -> int:
    """Return the peak of a command's resident set in bytes."""
    asking = [sys.executable, "-c", PEAK, sys.executable, *map(str, command)]
    return 1024 * int(subprocess.run(asking, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)


def rows(blocks: int, folder: Path) -> Iterator[str]:
    """Measure, and yield the lines of the table."""
    source, out = folder / "float32.safetensors", folder / "out.safetensors"
    config = OviConfig(num_layers=blocks)
    write_float32(source, config)
    size = source.stat().st_size
    yield f"| {blocks} blocks, {size / 1e9:.1f} GB in float32 | Result | Peak | Peak - bf16 result |"
    yield "|---|---|---|---|"

    def row(name: str, result: float, most: int) -> str:
        return f"| {name} | {result / 1e9:.2f} GB | {most / 1e9:.2f} GB | {(most - size / 2) / 1e9:+.2f} GB |"

    yield row("Load Ovi Model, bf16", size / 2, peak("-c", LOAD, source))
    for form in FORMATS:
        most = peak("-m", "ovi.tools.convert", "quantize", source, out, "--format", form, "--force")
        yield row(f"convert to {form}", out.stat().st_size, most)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.files", description=__doc__)
    parser.add_argument("--blocks", type=int, default=6, help="of the release's 30")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for line in rows(args.blocks, Path(folder)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
