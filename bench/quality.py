"""The quality of the miniature's clips, measured: `python -m bench.quality --help`.

Needs COMFYUI_PATH. ComfyUI samples every row, each with one change to the first one. Bounces of the ball are found in
the video, onsets in the audio; errors are the distances between them. Next to the median distance to the nearest onset
stands the same for video and audio of different clips, which is chance. In the last rows colour and pitch come from
references, and those of the references count as right. `--talking` measures the talking world instead.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from bench import comfyui, talking
from miniature import WEIGHTS, figures, references, world
from miniature.measure import scores

MODEL, LORA = WEIGHTS / "ovi_miniature.safetensors", WEIGHTS / "references_lora.safetensors"
COLUMNS = {
    "error_ms": "{:.0f} ms",
    "missed": "{:.0%}",
    "extra": "{:.0%}",
    "nearest_ms": "{:.0f} ms",
    "shuffled_ms": "{:.0f} ms",
    "colour": "{:.0%}",
    "pitch": "{:.0%}",
    "seconds": "{:.0f} s",
}
HEAD = (
    "| | Error, matched | Missed | Extra | To the nearest | Shuffled | Colour | Pitch | Time |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Measure every row, or the first ones, and print them as they come."""
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    parser.add_argument("--prompts", type=int, default=16, help="of the rows without references; 0 leaves them out")
    parser.add_argument("--reference-prompts", type=int, default=64, help="of those with references")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and of the noise")
    parser.add_argument("--rows", type=int, help="only this many rows")
    parser.add_argument("--named", default="", metavar="PATTERN", help="only rows whose name matches")
    parser.add_argument("--synchrony", action="store_true", help="the rows of synchrony guidance instead")
    parser.add_argument("--talking", action="store_true", help="the talking world's rows instead: see bench/talking.py")
    parser.add_argument("--model", type=Path, help="in place of the one that is shipped")
    parser.add_argument("--lora", type=Path, help="that follows references; with --talking, one whose strength varies")
    parser.add_argument("--with-lora", type=Path, help="a LoRA that all rows get")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--figure", type=Path, help="where to draw the first row's first clip, or the talking rows")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    args = parser.parse_args()
    comfyui.start(args.device)
    if args.talking:
        talking.run(args)
        return
    from bench.rows import lora, reference_rows, rows, sampled, synchrony_rows
    from miniature.nodes import text_encoder
    from ovi import native

    path = args.model or MODEL
    first = world.HELD_OUT + 1000 * (1 + args.seed)
    plain = [world.scene(first + i) for i in range(args.prompts)]
    referring = [references.scene(first + i) for i in range(args.reference_prompts)]
    results: dict[str, Mapping[str, float]] = {}
    if not args.json:
        print(HEAD)
    with torch.inference_mode():
        clip = text_encoder(load_file(WEIGHTS / "umt5.safetensors"))
        model = native.load([str(path)])
        if args.with_lora:
            model = lora(args.with_lora)(model)
        table = synchrony_rows() if args.synchrony else [*rows(path), *reference_rows(args.lora or LORA)]
        named = [row for row in table if re.search(args.named, row.name)]
        for row in named[: args.rows]:
            scenes = plain if row.refer is None else referring
            if not scenes:
                continue
            began = time.perf_counter()
            frames, waveforms = sampled(model, row, scenes, clip, args.seed)
            seconds = time.perf_counter() - began
            if args.figure and not results:
                figures.clip(frames[0], waveforms[0]).save(args.figure, optimize=True)
            results[row.name] = scores(list(map(row.vary, scenes)), frames, waveforms) | {"seconds": seconds}
            cells = [form.format(results[row.name][key]) for key, form in COLUMNS.items()]
            if not args.json:
                print(f"| {row.name} | {' | '.join(cells)} |", flush=True)
    if args.json:
        said = {name: getattr(args, name) for name in ("prompts", "reference_prompts", "seed")}
        print(json.dumps(said | {"rows": results}, indent=1))


if __name__ == "__main__":
    main()
