"""The table of the talking world: its rows measured, or read from what other processes measured, and what they say."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import torch
from safetensors.torch import load_file

from bench import saving, shards, talking, turbo
from bench.talking import Measured, Result
from miniature import judge, speech, text, world


def run(args: argparse.Namespace) -> None:
    """Measure the rows and print them as they come, or read them from files; then print what they say.

    `args` are those of `bench.quality`; importing ComfyUI must be possible by now, but for reading.
    """
    measured = merged(shards.merged(args.merge)) if args.merge else sampled(args)
    if args.json:
        return
    if args.merge:
        print(talking.HEAD)
        for result in measured.rows.values():
            _print(result, measured)
    print("", *_conclusions(measured, args), sep="\n")
    if args.figure:
        drawn = saving.curve(measured) if args.saving else talking.picture(list(measured.rows.values()))
        drawn.save(args.figure, optimize=True)


def merged(lines: Sequence[shards.Line]) -> Measured:
    """Return the rows that `sampled` printed as lines of JSON."""
    measured = Measured()
    for line in lines:
        for part, saved in line.measured.items():
            getattr(measured, part)[line.name] = Result.read(line.name, saved)
    return measured


def sampled(args: argparse.Namespace) -> Measured:
    """Measure the rows; print each as it comes, in the table or as a line of JSON."""
    from bench.talking_rows import observed, table
    from miniature.nodes import text_encoder
    from ovi import native

    first_seed = world.HELD_OUT + 1000 * (1 + args.seed)
    scenes = [speech.scene(first_seed + i) for i in range(args.prompts)]
    chosen_by = max(1, len(scenes) // 3) if args.saving else 0
    parts = {"choosing": slice(chosen_by)} if args.saving else {}
    parts["rows"] = slice(chosen_by, None)
    measured = Measured()
    with torch.inference_mode():
        clip = text_encoder(load_file(text.TALKING))
        model, others = native.load([str(args.model or talking.MODEL)]), judge.others(scenes)
        if not args.json:
            print(talking.HEAD)
        for place, row in shards.chosen(table(args), args):
            seen = observed(model, row, scenes, clip, args.seed)
            verdicts = [judge.judge(*each) for each in zip(seen.scenes, seen.clips, others, strict=True)]
            results = {part: Result.of(row.name, verdicts[some], *seen[2:]) for part, some in parts.items()}
            for part, result in results.items():
                getattr(measured, part)[row.name] = result
            if args.json:
                saved = {part: result.saved() for part, result in results.items()}
                print(shards.written(args, shards.Line(place, row.name, saved)), flush=True)
            else:
                _print(results["rows"], measured)
    return measured


def _conclusions(measured: Measured, args: argparse.Namespace) -> Iterator[str]:
    """Say what the rows show."""
    rows = measured.rows
    if args.saving:
        yield from saving.lines(measured)
    elif args.turbo:
        yield from turbo.talking_lines(rows)
    else:
        yield from talking.comparisons(rows, talking.PAIRS)
        for cache in talking.CACHES:
            names = {each: talking.cache_name(cache, each) for each in talking.THRESHOLDS}
            most = talking.harmless(rows, next(iter(rows.values())), names)
            yield f"{cache}: {'no threshold is' if most is None else f'up to {most:g}'} harmless"


def _print(result: Result, measured: Measured) -> None:
    """Print a row, and chance below the first."""
    first = next(iter(measured.rows.values()))
    print(f"| {' | '.join(result.cells(first))} |", flush=True)
    if result is first:
        print(f"| {talking.by_chance(first)} |", flush=True)
