"""Measurements on a clip of the world: when the ball bounces, when the bell rings, its colour, its pitch.

Frames are [T, H, W, 3] from 0 to 1, waveforms [samples] at 16 kHz, times in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from statistics import median

import torch
from torch import Tensor

from .codecs import BELLS, RATE, AudioCodec
from .world import COLOURS, FPS, PITCHES, SECONDS, Scene, background

BALL = 0.12  # a pixel belongs to the ball where its channels differ more than this from the empty stage, on average
HOP = 1.5  # pixels that the ball is higher on both sides of a bounce, at least
RISE = 3.0  # factor by which the audio gets louder at an onset, at least
QUIET = 0.015  # RMS below which there is no onset
WINDOW = 0.1  # seconds between a bounce and an onset that can be one event, at most
END = SECONDS - 0.15  # seconds; later events may be cut off


def ball_rows(frames: Tensor) -> Tensor:
    """Return the row of the ball's middle in each frame, [T], counted downwards; without a ball, the last one known."""
    ball = ((frames - background()).abs().mean(-1) - BALL).clamp(min=0)
    mass = ball.sum((1, 2))
    rows = (ball.sum(2) * torch.arange(ball.shape[1])).sum(1) / mass.clamp(min=1e-6)
    for i in range(1, len(rows)):
        if mass[i] < 1:
            rows[i] = rows[i - 1]
    return rows


def bounces(frames: Tensor) -> list[float]:
    """Return when the ball hits the floor: where straight lines along its way down and its way up meet."""
    rows = ball_rows(frames).tolist()
    times = []
    for i in range(2, len(rows) - 2):
        turns = rows[i] >= rows[i - 1] and rows[i] > rows[i + 1]
        if turns and rows[i] - max(min(rows[i - 2 : i]), min(rows[i + 1 : i + 3])) > HOP:
            down, up = rows[i - 1] - rows[i - 2], rows[i + 2] - rows[i + 1]
            meet = (rows[i + 1] - rows[i - 1] + down * (i - 1) - up * (i + 1)) / (down - up) if down > up else i
            times.append(min(max(meet, i - 1), i + 1) / FPS)
    return times


def onsets(waveform: Tensor) -> list[float]:
    """Return when a bell rings: where 8 ms are far louder than the quietest of the 32 ms before."""
    step = BELLS.step
    loudness = waveform[: len(waveform) // step * step].view(-1, step).square().mean(1).sqrt()
    times: list[float] = []
    for i in range(1, len(loudness)):
        before = loudness[max(0, i - 5) : i - 1].min() if i > 1 else loudness.new_tensor(0.0)
        time = (i + 1) * step / RATE
        if loudness[i] > RISE * before.clamp(min=QUIET / RISE) and (not times or time - times[-1] > 0.1):
            times.append(time)
    return times


def colour(frames: Tensor) -> str:
    """Return the name of the colour nearest to the ball's."""
    away = (frames - background()).abs().mean(-1)
    pixels = frames[away > 0.7 * away.max()]
    return min(COLOURS, key=lambda name: float((pixels.mean(0) - torch.tensor(COLOURS[name])).norm()))


def pitch(waveform: Tensor) -> str:
    """Return the name of the loudest bell's pitch."""
    loudness = AudioCodec().encode(waveform[None])[0].unflatten(0, (len(BELLS.centres), -1)).amax((1, 2))
    return max(PITCHES, key=lambda name: float(loudness[BELLS.centres.index(PITCHES[name])]))


def matched(bounces: Sequence[float], onsets: Sequence[float]) -> list[tuple[float, float]]:
    """Pair bounces with onsets that can be the same event: the nearest first, each in one pair at most."""
    near = sorted((abs(a - b), a, b) for a in bounces for b in onsets if abs(a - b) <= WINDOW)
    pairs: list[tuple[float, float]] = []
    for _, a, b in near:
        if all(a != bounce and b != onset for bounce, onset in pairs):
            pairs.append((a, b))
    return pairs


def unpaired(times: Sequence[float], paired: Collection[float]) -> int:
    """Count the events without a partner, except at the clip's end, where the partner may be cut off."""
    return sum(time < END and time not in paired for time in times)


def nearest_distance(bounces: Sequence[Sequence[float]], onsets: Sequence[Sequence[float]], shift: int = 0) -> float:
    """Return the median distance from a bounce to the nearest onset of the same clip, or of the clip `shift` places on.

    It is infinite where there are no such pairs.
    """
    shifted = [onsets[(i + shift) % len(onsets)] for i in range(len(onsets))]
    distances = [
        min(abs(a - b) for b in others) for times, others in zip(bounces, shifted, strict=True) if others for a in times
    ]
    return median(distances) if distances else math.inf


def scores(scenes: Sequence[Scene], frames: Tensor, waveforms: Tensor) -> dict[str, float]:
    """Measure clips of scenes: frames [N, T, H, W, 3] from 0 to 1, waveforms [N, samples] at 16 kHz.

    Distances are in milliseconds, missed and extra a share of the bounces, colour and pitch the share that is right,
    bounces a mean per clip.
    """
    seen, heard = list(map(bounces, frames)), list(map(onsets, waveforms))
    pairs = [matched(a, b) for a, b in zip(seen, heard, strict=True)]
    errors = [abs(a - b) for clip in pairs for a, b in clip]
    missed = sum(unpaired(times, {a for a, _ in clip}) for times, clip in zip(seen, pairs, strict=True))
    extra = sum(unpaired(times, {b for _, b in clip}) for times, clip in zip(heard, pairs, strict=True))
    count = sum(map(len, seen))
    colours = [colour(clip) == scene.colour for scene, clip in zip(scenes, frames, strict=True)]
    pitches = [pitch(clip) == scene.pitch for scene, clip in zip(scenes, waveforms, strict=True)]
    shuffled = [nearest_distance(seen, heard, shift) for shift in range(1, len(scenes))]
    return {
        "error_ms": 1000 * median(errors) if errors else float("nan"),
        "missed": missed / max(1, count),
        "extra": extra / max(1, count),
        "nearest_ms": 1000 * nearest_distance(seen, heard),
        "shuffled_ms": 1000 * median(shuffled),
        "colour": sum(colours) / len(colours),
        "pitch": sum(pitches) / len(pitches),
        "bounces": count / len(scenes),
    }
