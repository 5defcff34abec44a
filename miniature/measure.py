"""What is to be seen and heard in a clip of the world: when a ball bounces, when it sounds, its colour, its pitch.

Pictures are [T, H, W, 3] from 0 to 1, sounds [samples] at 16 kHz, times in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from statistics import median

import torch
from torch import Tensor

from .codecs import OCTAVES, RATE, STEP, AudioCodec
from .world import COLOURS, FPS, PITCHES, SECONDS, background

BALL = 0.12  # how far a pixel differs from the empty stage where it is ball
HOP = 1.5  # pixels that a ball rises on both sides of a bounce, at least
RISE = 3.0  # times that a sound grows louder at an onset
QUIET = 0.015  # loudness that counts for nothing
WINDOW = 0.1  # seconds between a bounce and an onset that may be one event
END = SECONDS - 0.15  # seconds; what begins later may be cut off


def ball_heights(pictures: Tensor) -> Tensor:
    """The row of the ball's middle in each frame, [T], growing downwards; the last known where there is none."""
    ball = ((pictures - background()).abs().mean(-1) - BALL).clamp(min=0)
    mass = ball.sum((1, 2))
    rows = (ball.sum(2) * torch.arange(ball.shape[1])).sum(1) / mass.clamp(min=1e-6)
    for i in range(1, len(rows)):
        if mass[i] < 1:
            rows[i] = rows[i - 1]
    return rows


def bounces(pictures: Tensor) -> list[float]:
    """When the ball hits the floor: where its way down and its way up, both taken for straight, meet."""
    rows = ball_heights(pictures).tolist()
    found = []
    for i in range(2, len(rows) - 2):
        turns = rows[i] >= rows[i - 1] and rows[i] > rows[i + 1]
        if turns and rows[i] - max(min(rows[i - 2 : i]), min(rows[i + 1 : i + 3])) > HOP:
            down, up = rows[i - 1] - rows[i - 2], rows[i + 2] - rows[i + 1]
            meet = (rows[i + 1] - rows[i - 1] + down * (i - 1) - up * (i + 1)) / (down - up) if down > up else i
            found.append(min(max(meet, i - 1), i + 1) / FPS)
    return found


def onsets(sound: Tensor) -> list[float]:
    """When something begins to sound: where 8 ms are far louder than the 32 ms before."""
    loudness = sound[: len(sound) // STEP * STEP].view(-1, STEP).square().mean(1).sqrt()
    found: list[float] = []
    for i in range(1, len(loudness)):
        before = loudness[max(0, i - 5) : i - 1].min() if i > 1 else loudness.new_tensor(0.0)
        time = (i + 1) * STEP / RATE
        if loudness[i] > RISE * before.clamp(min=QUIET / RISE) and (not found or time - found[-1] > 0.1):
            found.append(time)
    return found


def colour(pictures: Tensor) -> str:
    """The colour that the ball is nearest to."""
    away = (pictures - background()).abs().mean(-1)
    pixels = pictures[away > 0.7 * away.max()]
    return min(COLOURS, key=lambda name: float((pixels.mean(0) - torch.tensor(COLOURS[name])).norm()))


def pitch(sound: Tensor) -> str:
    """The bell that is loudest."""
    loudness = AudioCodec().encode(sound[None])[0].unflatten(0, (len(OCTAVES), -1)).amax((1, 2))
    return max(PITCHES, key=lambda name: float(loudness[OCTAVES.index(PITCHES[name])]))


def matched(seen: Sequence[float], heard: Sequence[float]) -> list[tuple[float, float]]:
    """Bounces and onsets that are one event: the nearest pairs first, each in one pair at most."""
    near = sorted((abs(a - b), a, b) for a in seen for b in heard if abs(a - b) <= WINDOW)
    pairs: list[tuple[float, float]] = []
    for _, a, b in near:
        if all(a != other and b != heard_with for other, heard_with in pairs):
            pairs.append((a, b))
    return pairs


def alone(times: Sequence[float], paired: Collection[float]) -> int:
    """How many events have no partner, but for those at the clip's end, of which only one half may be there."""
    return sum(time < END and time not in paired for time in times)


def nearest(seen: Sequence[Sequence[float]], heard: Sequence[Sequence[float]], turn: int = 0) -> float:
    """Median distance from a bounce to the nearest onset, of the same clip or of the one so many places on."""
    turned = [heard[(i + turn) % len(heard)] for i in range(len(heard))]
    distances = [
        min(abs(a - b) for b in sound) for times, sound in zip(seen, turned, strict=True) if sound for a in times
    ]
    return median(distances) if distances else math.inf
