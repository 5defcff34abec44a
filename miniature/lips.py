"""What is seen in clips of the talking world, and how the lips agree with the audio.

Frames are [N, T, H, W, 3] from 0 to 1, waveforms [N, samples] at 16 kHz, times seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from . import speech
from .codecs import SPEECH, AudioCodec
from .world import COLOURS, FPS, RATE

SWING = 0.1  # how much a mouth opens or closes at least, as a share of its range in the clip ...
STILL = 0.02  # ... and of the box around it: less is noise
UPPER = slice(8, 40)  # the rows where faces are told apart, above most of the mouth
LOOKS = list(product(COLOURS, speech.RADII, speech.SIDES))
VOICED = slice(1, 9)  # the bands of vowels
LAGS = torch.arange(-40, 41) / 100  # seconds


@dataclass(frozen=True)
class Seen:
    """What is seen in a clip."""

    look: tuple[str, str, str]  # colour, size and side of the face
    opening: Tensor  # of the mouth in each frame, [T]: the share of the box around it that is dark
    openings: tuple[float, ...]  # when it opens


@dataclass(frozen=True)
class Sync:
    """How the lips of a clip agree with an audio."""

    correlation: float  # of the mouth's opening with the loudness
    lag: float  # of the audio behind the lips, where the correlation is largest
    to_vowels: tuple[float, ...]  # from each opening to the nearest vowel
    to_openings: tuple[float, ...]  # from each vowel to the nearest opening


def look(frames: Tensor) -> list[Seen]:
    """Find the face in clips, and follow its mouth."""
    still = frames[:, ::6].median(1).values  # a few frames tell the face
    faces = torch.stack([speech.face(*each) for each in LOOKS]).to(frames)
    away = (still[:, None, UPPER] - faces[:, UPPER]).abs().flatten(2).mean(2)
    looks = [LOOKS[i] for i in away.argmin(1).tolist()]
    boxes = torch.stack([_box(size, side) for _, size, side in looks]).to(frames)
    skin = torch.tensor([COLOURS[colour] for colour, _, _ in looks]).mean(1).to(frames)
    dark = (1 - frames.mean(-1) / skin[:, None, None, None]).clamp(0, 1)
    opening = (torch.einsum("nthw,nhw->nt", dark, boxes) / boxes.sum((1, 2))[:, None]).cpu()
    return [Seen(each, one, openings(one.tolist())) for each, one in zip(looks, opening, strict=True)]


def _box(size: str, side: str) -> Tensor:
    """Return a mask [H, W] of the box around a mouth that is wide open."""
    row, column, height, width = speech.mouth(size, side)
    rows, columns = speech.grid()
    return (((rows - row).abs() < height + 1) & ((columns - column).abs() < 1.1 * width)).float()


def openings(opening: Sequence[float]) -> tuple[float, ...]:
    """Return when a mouth opens that is as open as this in each frame: halfway on its way up."""
    least = max(SWING * (max(opening) - min(opening)), STILL)
    turns = _turns(opening, least)
    times = []
    for low, high in zip(turns[::2], turns[1::2], strict=False):
        half = (opening[low] + opening[high]) / 2
        above = next(i for i in range(low + 1, high + 1) if opening[i] >= half)
        part = (half - opening[above - 1]) / (opening[above] - opening[above - 1])
        times.append((above - 1 + part) / FPS)
    return tuple(times)


def _turns(values: Sequence[float], least: float) -> list[int]:
    """Return where values turn, at a low first and a high next: what lies between differs by `least` at least."""
    turns, extreme, sign = [], 0, -1
    for i, value in enumerate(values):
        beyond = sign * (value - values[extreme])
        if beyond > 0:
            extreme = i
        elif beyond <= -least:
            turns.append(extreme)
            extreme, sign = i, -sign
    return [*turns, extreme]


def loudness(waveforms: Tensor) -> Tensor:
    """Measure how loud vowels are, [N, parts]: in each part of the audio codec and its neighbours."""
    levels = AudioCodec(SPEECH).to(waveforms.device).loudness(waveforms)[:, VOICED].square().sum(1).sqrt()
    return F.avg_pool1d(levels[:, None], 3, 1, 1)[:, 0].cpu()


def synchrony(seen: Seen, loud: Tensor, vowels: Sequence[float]) -> Sync:
    """Compare the lips of a clip with the loudness [parts] and the vowels of an audio."""
    times = torch.arange(len(seen.opening)) / FPS
    lagging = (times + LAGS[:, None]).clamp(0, times[-1])
    correlations = _correlations(seen.opening, _at(loud, lagging))
    return Sync(
        correlation=correlations[len(LAGS) // 2].item(),
        lag=LAGS[correlations.argmax()].item(),
        to_vowels=tuple(nearest(time, vowels) for time in seen.openings),
        to_openings=tuple(nearest(time, seen.openings) for time in vowels),
    )


def nearest(time: float, others: Sequence[float]) -> float:
    """Return the distance to the nearest of other times, infinite where there are none."""
    return min((abs(time - other) for other in others), default=math.inf)


def _at(loud: Tensor, times: Tensor) -> Tensor:
    """Interpolate the loudness [parts], of the parts' middles, at times."""
    place = (times * RATE / SPEECH.step - 0.5).clamp(0, len(loud) - 1.001)
    before = place.floor().long()
    return torch.lerp(loud[before], loud[before + 1], place - before)


def _correlations(one: Tensor, others: Tensor) -> Tensor:
    """Correlate [T] with each of [N, T]; what does not change correlates with nothing."""
    one, others = one - one.mean(), others - others.mean(1, keepdim=True)
    return (others @ one) / (one.norm() * others.norm(dim=1)).clamp(min=1e-6)
