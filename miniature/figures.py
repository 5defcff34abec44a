"""Figures for the documentation and the demo: a clip on one page, and the course of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from miniature import judge, measure, speech, world
from ovi.spectrogram import spectrogram

INK, PAPER, GRID = (40, 40, 40), (255, 255, 255), (225, 225, 225)
MARK = (255, 90, 60)
LINES = ((30, 100, 200), (210, 70, 40), (40, 140, 60))
HEIGHT, MARGIN = 260, 44
LABEL, TICK = 28, 12  # pixels of the syllables' row and of the ticks' below a clip
FACE = 56  # columns of a frame that hold a face


def clip(frames: Tensor, waveform: Tensor, every: int = 3, zoom: int = 2) -> Image.Image:
    """Draw frames [T, H, W, 3] of the ball above the spectrogram of its waveform [samples], on one time axis.

    A frame's middle stands at its time. Lines through both mark bounces, ticks below mark onsets.
    """
    page, place = _page(frames[:, :, world.LEFT - 4 : world.RIGHT + 4], waveform, every, zoom, gap=0)
    _mark(page, map(place, measure.bounces(frames)), map(place, measure.onsets(waveform)))
    return page


def talk(frames: Tensor, waveform: Tensor, clip: judge.Observation, every: int = 3, zoom: int = 2) -> Image.Image:
    """Draw frames [T, H, W, 3] of a face above the spectrogram of its waveform [samples], on one time axis.

    Lines through both mark the vowels of the syllables that are heard, which stand beside them; ticks below mark where
    the mouth opens.
    """
    middle = round(speech.SIDES[clip.seen.look[2]])
    left = min(max(0, middle - FACE // 2), speech.WIDTH - FACE)
    page, place = _page(frames[:, :, left : left + FACE], waveform, every, zoom, gap=LABEL)
    _mark(page, map(place, clip.heard.onsets), map(place, clip.seen.openings))
    pen = ImageDraw.Draw(page)
    for time, syllable in zip(clip.heard.onsets, clip.heard.syllables, strict=True):
        pen.text((place(time) + 6, zoom * frames.shape[1] + 2), syllable, fill=INK, font_size=LABEL - 8)
    return page


def _page(
    frames: Tensor, waveform: Tensor, every: int, zoom: int, gap: int
) -> tuple[Image.Image, Callable[[float], float]]:
    """Draw some frames above a spectrogram, with a gap of some pixels; return where a time stands across the page."""
    shown = frames[::every].clamp(0, 1).mul(255).round().byte().numpy()
    strip = Image.fromarray(np.concatenate(list(shown), axis=1))
    strip = strip.resize((strip.width * zoom, strip.height * zoom), Image.Resampling.BICUBIC)
    seconds = len(shown) * every / world.FPS
    begin = every / 2 / world.FPS  # seconds on the page before the clip begins
    lead, samples = round(begin * world.RATE), round(seconds * world.RATE)
    spectrum = spectrogram(F.pad(waveform, (lead, samples - lead - len(waveform)))[None, None], world.RATE)[0]
    height = 96 * zoom
    page = Image.new("RGB", (strip.width, strip.height + gap + height + TICK), PAPER)
    page.paste(strip, (0, 0))
    drawn = Image.fromarray(spectrum.mul(255).byte().numpy()).resize((strip.width, height))
    page.paste(drawn, (0, strip.height + gap))
    return page, lambda time: (time + begin) / seconds * page.width


def _mark(page: Image.Image, lines: Iterable[float], ticks: Iterable[float]) -> None:
    """Draw lines through a page and ticks below it, at places across it."""
    pen = ImageDraw.Draw(page)
    for x in lines:
        pen.line([(x, 0), (x, page.height - TICK)], fill=MARK)
    for x in ticks:
        pen.line([(x, page.height - TICK + 2), (x, page.height)], fill=INK, width=3)


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
    return beside(pages)


def speaking(alone: Sequence[Mapping[str, float]], joint: Sequence[Mapping[str, float]]) -> Image.Image:
    """Plot the training of the miniature that speaks: of the audio tower alone, and of both towers."""
    return beside(
        [
            curves(alone, "the audio tower alone", ["audio", "syllables"]),
            curves(joint, "both towers", ["video", "audio", "correlation"]),
        ]
    )


def beside(pages: Sequence[Image.Image]) -> Image.Image:
    """Lay pages beside each other."""
    page = Image.new("RGB", (sum(one.width for one in pages), HEIGHT), PAPER)
    for i, one in enumerate(pages):
        page.paste(one, (i * one.width, 0))
    return page
