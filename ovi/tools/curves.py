"""The losses of a training, drawn and written for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from ..writing import complete

Losses = Sequence[tuple[float, float]]  # of each step: the video's, the audio's

WIDTH, HEIGHT, MARGIN = 800, 400, 60  # of the drawing, in pixels
POINTS = 400  # of a curve, at most
COLOURS = {"video": "#1f77b4", "audio": "#d62728"}


def plot(losses: Losses, path: Path) -> None:
    """Draw the losses of a training as an SVG: their means over as many steps as give a curve of `POINTS`."""
    every = max(1, math.ceil(len(losses) / POINTS))
    means = [_mean(losses[i : i + every]) for i in range(0, len(losses), every)]
    top = max(max(each) for each in means) or 1.0
    width, height = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
    lines = []
    for index, (name, colour) in enumerate(COLOURS.items()):
        places = (
            (MARGIN + width * (i + 0.5) / len(means), MARGIN + height * (1 - each[index] / top))
            for i, each in enumerate(means)
        )
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
        lines.append(_text(WIDTH - MARGIN, 20 * (index + 1), name, "end", colour))
    labels = [
        _text(MARGIN - 5, MARGIN, f"{top:.3g}", "end"),
        _text(MARGIN - 5, HEIGHT - MARGIN, "0", "end"),
        _text(MARGIN, HEIGHT - MARGIN + 20, "1"),
        _text(WIDTH - MARGIN, HEIGHT - MARGIN + 20, f"step {len(losses)}", "end"),
    ]
    frame = f'<rect x="{MARGIN}" y="{MARGIN}" width="{width}" height="{height}" fill="none" stroke="#888"/>'
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
    ground = '<rect width="100%" height="100%" fill="white"/>'
    with complete(path) as (part,):
        part.write_text("\n".join([start, ground, frame, *lines, *labels, "</svg>", ""]), encoding="utf-8")


def _mean(losses: Losses) -> tuple[float, float]:
    video, audio = (sum(values) / len(losses) for values in zip(*losses, strict=True))
    return video, audio


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "#444") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="13" fill="{colour}">{escape(text)}</text>'


def tensorboard(folder: Path, first: int) -> Callable[[Losses], None]:
    """Return a function that adds to the scalars in a folder what a training's losses have from step `first` on.

    Raises ValueError where TensorBoard's library is missing.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--tensorboard needs the Python package {str(error.name).partition('.')[0]}: run pip install tensorboard, "
            "or leave it out."
        ) from error
    writer = SummaryWriter(str(folder), purge_step=first + 1)
    written = first

    def add(losses: Losses) -> None:
        nonlocal written
        for step, (video, audio) in enumerate(losses[written:], written + 1):
            writer.add_scalar("loss/video", video, step)
            writer.add_scalar("loss/audio", audio, step)
        written = len(losses)
        writer.flush()

    return add
