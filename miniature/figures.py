"""Figures for the documentation: a clip on one page, and the course of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from miniature import measure, world
from ovi.spectrogram import spectrogram

INK, PAPER, GRID = (40, 40, 40), (255, 255, 255), (225, 225, 225)
MARK = (255, 90, 60)
LINES = ((30, 100, 200), (210, 70, 40), (40, 140, 60))
HEIGHT, MARGIN = 260, 44


def clip(frames: Tensor, waveform: Tensor, every: int = 3, zoom: int = 2) -> Image.Image:
    """Draw frames [T, H, W, 3] of a clip above the spectrogram of its waveform [samples], on one time axis.

    A frame's middle stands at its time. Lines through both mark bounces, ticks below mark onsets.
    """
    shown = frames[::every, :, world.LEFT - 4 : world.RIGHT + 4].clamp(0, 1).mul(255).round().byte().numpy()
    strip = Image.fromarray(np.concatenate(list(shown), axis=1))
    strip = strip.resize((strip.width * zoom, strip.height * zoom), Image.Resampling.BICUBIC)
    seconds = len(shown) * every / world.FPS
    begin = every / 2 / world.FPS  # seconds on the page before the clip begins
    lead, samples = round(begin * world.RATE), round(seconds * world.RATE)
    spectrum = spectrogram(F.pad(waveform, (lead, samples - lead - len(waveform)))[None, None], world.RATE)[0]
    height = 96 * zoom
    page = Image.new("RGB", (strip.width, strip.height + height + 12), PAPER)
    page.paste(strip, (0, 0))
    drawn = Image.fromarray(spectrum.mul(255).byte().numpy()).resize((strip.width, height))
    page.paste(drawn, (0, strip.height))
    pen = ImageDraw.Draw(page)
    for time in measure.bounces(frames):
        x = (time + begin) / seconds * page.width
        pen.line([(x, 0), (x, page.height - 12)], fill=MARK)
    for time in measure.onsets(waveform):
        x = (time + begin) / seconds * page.width
        pen.line([(x, page.height - 10), (x, page.height)], fill=INK, width=3)
    return page


def curves(log: Sequence[Mapping[str, float]], title: str, names: Sequence[str]) -> Image.Image:
    """Plot values of a training log over the steps, from 0."""
    top = max(line[name] for line in log for name in names)
    page = Image.new("RGB", (420, HEIGHT), PAPER)
    pen = ImageDraw.Draw(page)
    last = int(log[-1]["step"])
    right, bottom = page.width - 12, page.height - 28

    def place(step: float, value: float) -> tuple[float, float]:
        return MARGIN + step / last * (right - MARGIN), bottom - value / top * (bottom - MARGIN)

    for part in range(5):
        value = top * part / 4
        pen.line([place(0, value), place(last, value)], fill=GRID)
        pen.text((6, place(0, value)[1] - 6), f"{value:.2g}", fill=INK)
    for step in range(0, last + 1, 1000):
        pen.text((place(step, 0)[0] - 10, bottom + 8), str(step), fill=INK)
    pen.text((MARGIN, 6), title, fill=INK)
    for i, name in enumerate(names):
        pen.line([place(line["step"], line[name]) for line in log], fill=LINES[i], width=2)
        pen.text((MARGIN + 120 * i, 22), name, fill=LINES[i])
    return page


def training(log: Sequence[Mapping[str, float]]) -> Image.Image:
    """Plot the losses, and the own/other gap: how much larger the audio's loss is with the video of another clip."""
    pages = [
        curves(log, "loss", ["video", "audio"]),
        curves(log, "own/other gap, at sigmas of video and audio", [name for name in log[0] if name.startswith("gap")]),
    ]
    page = Image.new("RGB", (sum(one.width for one in pages), HEIGHT), PAPER)
    for i, one in enumerate(pages):
        page.paste(one, (i * one.width, 0))
    return page
