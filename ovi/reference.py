"""What is given of a clip before it is made: frames and sound in the rates of the latents, and which latents they keep.

Frames are ComfyUI's IMAGE [T, H, W, C]; sound is ComfyUI's AUDIO, a waveform [B, C, S] and a sample rate. Spans are
half open, (first, after), in latents of one modality.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torchaudio.functional import resample  # type: ignore[import-untyped]

from . import geometry

Span = tuple[int, int]


def retimed(frames: int, fps: float) -> Tensor:
    """Indices [N] of the frames that show a video of `frames` at `fps` at 24 frames a second, the nearest each time."""
    times = torch.arange(math.ceil(frames * geometry.FPS / fps) + 1, dtype=torch.float64) / geometry.FPS
    nearest = (times * fps + 0.5).long()
    return nearest[nearest < frames]


def at_24(frames: Tensor, fps: float, count: int | None = None) -> Tensor:
    """The frames that show a video at `fps` at 24 a second, all or the first `count`; a view where it is at 24."""
    if fps == geometry.FPS:
        return frames[:count]
    return frames[retimed(len(frames), fps)[:count]]


def fills_a_latent(audio: Mapping[str, Any]) -> bool:
    """Whether a sound is long enough to make a latent of."""
    return audio["waveform"].shape[-1] / audio["sample_rate"] * geometry.AUDIO_LATENT_RATE >= 1


def mono(audio: Mapping[str, Any], sample_rate: int) -> Tensor:
    """Mix the channels of a sound evenly and resample it: [S].

    Raises ValueError for several sounds in a batch, for one that is too short to make a latent of, and for NaN.
    """
    waveform: Tensor = audio["waveform"]
    seconds = waveform.shape[-1] / audio["sample_rate"]
    if len(waveform) != 1:
        raise ValueError(f"The audio must be one recording, got a batch of {len(waveform)}.")
    if not fills_a_latent(audio):
        raise ValueError(
            f"The audio lasts {seconds:.3f} s, but needs {1 / geometry.AUDIO_LATENT_RATE:.3f} s at least; "
            "check what it was loaded from."
        )
    if not torch.isfinite(waveform).all():
        raise ValueError("The audio holds NaN or infinity instead of sound; check what it was loaded from.")
    return resample(waveform[0].float().mean(0), audio["sample_rate"], sample_rate)


def video_span(start: float, end: float) -> Span:
    """The video latents that show anything of the time from `start` to `end` seconds."""
    first, last = math.floor(start * geometry.FPS), math.ceil(end * geometry.FPS) - 1  # frames
    return math.ceil(first / geometry.FRAMES_PER_LATENT), math.ceil(last / geometry.FRAMES_PER_LATENT) + 1


def audio_span(start: float, end: float) -> Span:
    """The audio latents that sound in the time from `start` to `end` seconds."""
    return math.floor(start * geometry.AUDIO_LATENT_RATE), math.ceil(end * geometry.AUDIO_LATENT_RATE)


def video_note(mask: Tensor) -> str:
    """Say which frames a mask [F] over video latents keeps."""
    spans = [(geometry.frames(first) + 1, geometry.frames(after)) for first, after in _kept(mask)]
    kept = [f"{max(first, 1)} to {last}" for first, last in spans]
    return f"Picture: {_listed('frames', kept)} of {geometry.frames(len(mask))}"


def audio_note(mask: Tensor) -> str:
    """Say which seconds a mask [L] over audio latents keeps."""
    rate = geometry.AUDIO_LATENT_RATE
    kept = [f"{first / rate:.2f} to {after / rate:.2f}" for first, after in _kept(mask)]
    return f"Sound: {_listed('seconds', kept)} of {len(mask) / rate:.2f}"


def _kept(mask: Tensor) -> list[Span]:
    """The spans where a mask is 0."""
    spans, position = [], 0
    for made, run in groupby(mask.tolist()):
        after = position + len(list(run))
        if not made:
            spans.append((position, after))
        position = after
    return spans


def _listed(unit: str, spans: list[str]) -> str:
    return f"kept are {unit} {' and '.join(spans)}" if spans else f"kept are no {unit}"
