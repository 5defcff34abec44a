"""The quality of the miniature's clips, measured: `python -m bench.quality --help`.

Needs COMFYUI_PATH. ComfyUI samples every row, each with one change to the first one. Bounces of the ball are found in
the video, onsets in the audio; errors are the distances between them. Next to the median distance to the nearest onset
stands the same for video and audio of different clips, which is chance. In the last rows colour and pitch come from
references, and those of the references count as right. `--talking` measures the talking world instead.

`--saving` looks for the best settings of the talking world with few passes, see bench/saving.py. `--turbo --lora FILE`
compares a LoRA for few steps with its teacher: for the ball, or with `--talking`. Rows can be shared among processes:
`--json --shard 0/4 > 0.json` and so on, then `--merge 0.json 1.json 2.json 3.json` with the same other options.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from bench import comfyui, shards, talking_table, turbo
from miniature import WEIGHTS, figures, measure, references, world
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
    """Measure every row, or some, and print them as they come."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=16, help="of the rows without references; 0 leaves them out")
    parser.add_argument("--reference-prompts", type=int, default=64, help="of those with references")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and of the noise")
    parser.add_argument("--named", default="", metavar="PATTERN", help="only rows whose name matches")
    parser.add_argument("--rows", type=int, help="only this many rows")
    parser.add_argument("--shard", type=shards.shard, default=(0, 1), metavar="I/N", help="of these, every N-th from I")
    parser.add_argument("--synchrony", action="store_true", help="the rows of synchrony guidance instead")
    parser.add_argument("--talking", action="store_true", help="the talking world's rows instead: see bench/talking.py")
    parser.add_argument("--saving", action="store_true", help="its rows for few passes; a third of the prompts chooses")
    parser.add_argument("--turbo", action="store_true", help="the rows of a LoRA for few steps and of its teacher")
    parser.add_argument("--model", type=Path, help="in place of the one that is shipped")
    parser.add_argument(
        "--lora",
        type=Path,
        help="that follows references; with --talking, one whose strength varies; with --saving or --turbo, one for "
        "few steps",
    )
    parser.add_argument("--with-lora", type=Path, help="a LoRA that all rows get")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--figure", type=Path, help="where to draw the first row's first clip, or the talking rows")
    parser.add_argument("--json", action="store_true", help="each row as a line of JSON instead of the table")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="FILE", help="read rows from such lines instead")
    args = parser.parse_args()
    if args.saving and args.prompts < 2:
        parser.error("--saving chooses by some prompts and measures others: give at least 2 --prompts")
    if not args.merge:
        comfyui.start(args.device)
    if args.talking or args.saving:
        talking_table.run(args)
        return
    if not args.json:
        print(HEAD)
    rows: dict[str, Mapping[str, Any]] = {}
    if args.merge:
        for line in shards.merged(args.merge):
            rows[line.name] = line.measured
            _print(line)
    else:
        _measure(args, rows)
    if args.turbo and not args.json:
        print("", *turbo.ball_lines(rows), sep="\n")


def _measure(args: argparse.Namespace, measured: dict[str, Mapping[str, Any]]) -> None:
    """Measure the rows of the ball; print each as it comes, in the table or as a line of JSON."""
    from bench.few_steps import turbo_rows
    from bench.rows import lora, reference_rows, rows, sampled, synchrony_rows
    from miniature.nodes import text_encoder
    from ovi import native

    path = args.model or MODEL
    first = world.HELD_OUT + 1000 * (1 + args.seed)
    plain = [world.scene(first + i) for i in range(args.prompts)]
    referring = [references.scene(first + i) for i in range(args.reference_prompts)]
    if args.turbo:
        table = turbo_rows(args.lora, first_frame=True)
    elif args.synchrony:
        table = synchrony_rows()
    else:
        table = [*rows(path), *reference_rows(args.lora or LORA)]
    with torch.inference_mode():
        clip = text_encoder(load_file(WEIGHTS / "umt5.safetensors"))
        model = native.load([str(path)])
        if args.with_lora:
            model = lora(args.with_lora)(model)
        for place, row in shards.chosen(table, args):
            scenes = plain if row.refer is None else referring
            if not scenes:
                continue
            began = time.perf_counter()
            frames, waveforms = sampled(model, row, scenes, clip, args.seed)
            seconds = time.perf_counter() - began
            if args.figure and not measured:
                figures.clip(frames[0], waveforms[0]).save(args.figure, optimize=True)
            found = scores(list(map(row.vary, scenes)), frames, waveforms) | {"seconds": seconds}
            measured[row.name] = {"scores": found, "first_bounces": first_bounces(frames)}
            line = shards.Line(place, row.name, dict(measured[row.name]))
            if args.json:
                print(shards.written(args, line), flush=True)
            else:
                _print(line)


def first_bounces(clips: Sequence[Tensor] | Tensor) -> list[float | None]:
    """Return when the ball hits the floor first in each clip, in seconds; None where it never does."""
    return [next(iter(measure.bounces(frames)), None) for frames in clips]


def _print(line: shards.Line) -> None:
    """Print a row of the table."""
    cells = [form.format(line.measured["scores"][key]) for key, form in COLUMNS.items()]
    print(f"| {line.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
