"""Copies between CPU and device, and what lives in its memory: `python -m bench.copies` writes a table to COPIES.md.

It runs the golden model of the tests on their emulated device, so it needs the Python and the variables of `nox -s
device`, and COMFYUI_PATH.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.support import GOLDEN, golden_model
from tests.support.comfy_host import Host

RESULTS = Path(__file__).parent / "COPIES.md"
HEAD = """# Copies and live bytes

Written by `python -m bench.copies`: the golden model of the tests in float32 (6 MB) on their emulated device, sampled \
with guidance (two prompts in one batch). *Once* is what a run copies whatever its steps, *a step* what each one adds. \
The first row is of the model loaded whole, the second of one that finds room for half of its weights.

The peak is besides the weights. What ComfyUI is told covers a pass alone: the sampler's own latents, of which each is \
1.5 times as large here as the tokens are and a sixteenth in Ovi, and the matrices of attention, which the \
emulation makes and a card's kernels do not, come beside it.
"""
RUNS, STEPS = 20, (2, 3)
KB = 1e3


def row(name: str, model: Any, run: Callable[[int], Any]) -> str:
    """Measure a MODEL; `run` samples with a number of steps."""
    from tests.support import emulated
    from tests.support.sampling import SHAPES

    live = []
    for _ in range(RUNS):
        run(STEPS[0])
        live.append(emulated.LIVE.bytes())
    sizes = []
    for steps in STEPS:
        with emulated.traffic() as traffic:
            run(steps)
        sizes.append([sum(traffic.sizes(to)) for to in (str(emulated.DEVICE), "cpu")])
    each = [more - few for few, more in zip(*sizes, strict=True)]
    once = [few - STEPS[0] * step for few, step in zip(sizes[0], each, strict=True)]
    with emulated.LIVE.peak() as peak:
        run(STEPS[0])
    told = model.model.memory_required([2, 1, sum(math.prod(shape[1:]) for shape in SHAPES)])
    cells = [f"{size / KB:.1f} KB" for size in (*once, *each, live[1], live[-1], peak[0] - live[-1], told)]
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    """Measure the model loaded whole, and with room for half of it."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        comfy = Host(Path(os.environ["COMFYUI_PATH"]).resolve(), Path(folder), "emulated")
        from comfy import model_management

        from tests.support.sampling import guide, ksampler, prompts

        file = shutil.copy(golden_model.MODEL, comfy.models / "diffusion_models" / "golden.safetensors")
        names = {"model_name": file.name, "second_model_name": "none", "weight_dtype": "default"}
        (model,) = comfy.run("OviModelLoader", **names)
        loop = load_file(GOLDEN / "D_t2v.safetensors")

        def run(steps: int) -> Any:
            return ksampler(comfy, guide(comfy, model), prompts(loop), steps=steps)

        heads = ["Model", "To the device, once", "Back", "To it in a step", "Back", "Live after 2 runs"]
        lines = [HEAD, f"| {' | '.join([*heads, f'After {RUNS}', 'Peak', 'ComfyUI is told'])} |", "|---" * 9 + "|"]
        lines.append(row("whole", model, run))
        model_management.unload_all_models()
        room = model_management.minimum_inference_memory() + model.model_size() // 2

        def free_memory(dev: Any = None, torch_free_too: bool = False) -> Any:
            free = room - model.loaded_size()
            return (free, free) if torch_free_too else free

        model_management.get_free_memory = free_memory
        lines.append(row("half", model, run))
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
