"""Video and audio at the rates of Ovi's latents, and which latents a time or a mask covers.

Frames are ComfyUI's IMAGE [T, H, W, C]; audio is ComfyUI's AUDIO, a waveform [B, C, S] and a sample rate. Spans are
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
    """Return the indices [N] of the frames that show a video of `frames` at `fps` at 24 fps: the nearest each time."""
    times = torch.arange(math.ceil(frames * geometry.FPS / fps) + 1, dtype=torch.float64) / geometry.FPS
    nearest = (times * fps + 0.5).long()
    return nearest[nearest < frames]


def at_24(frames: Tensor, fps: float, count: int | None = None) -> Tensor:
    """Return all frames of a video at `fps`, or the first `count`, as shown at 24 fps; a view where it is at 24."""
    if fps == geometry.FPS:
        return frames[:count]
    return frames[retimed(len(frames), fps)[:count]]


def fills_a_latent(audio: Mapping[str, Any]) -> bool:
    """Return whether audio is long enough for one latent."""
    return audio["waveform"].shape[-1] / audio["sample_rate"] * geometry.AUDIO_LATENT_RATE >= 1


def mono(audio: Mapping[str, Any], sample_rate: int) -> Tensor:
    """Mix the channels of audio evenly and resample it: [S].

    Raises ValueError for a batch of several, for audio too short for one latent, and for NaN or infinity.
    """
    waveform: Tensor = audio["waveform"]
    seconds = waveform.shape[-1] / audio["sample_rate"]
    if len(waveform) != 1:
        raise ValueError(f"The audio must be one recording, got a batch of {len(waveform)}.")
    if not fills_a_latent(audio):
        raise ValueError(
            f"The audio lasts {seconds:.3f} s, but at least {1 / geometry.AUDIO_LATENT_RATE:.3f} s are needed; "
            "check what it was loaded from."
        )
    if not torch.isfinite(waveform).all():
        raise ValueError("The audio contains NaN or infinity; check what it was loaded from.")
    return resample(waveform[0].float().mean(0), audio["sample_rate"], sample_rate)


def before_padding(audio: Mapping[str, Any], frames: int, overlap: int) -> dict[str, Any]:
    """Return the audio of the last `overlap` of a clip's `frames`, up to one latent before the end.

    In the time of the last latent Ovi Decode may have padded the audio with silence, which a clip that continues this
    one would preserve as a gap.
    """
    rate = audio["sample_rate"]
    start = round(geometry.seconds(frames - overlap) * rate)
    end = round((geometry.seconds(frames) - 1 / geometry.AUDIO_LATENT_RATE) * rate)
    return {"waveform": audio["waveform"][..., start:end], "sample_rate": rate}


def video_latents_between(start: float, end: float) -> Span:
    """Return the video latents that show any part of the time from `start` to `end` seconds."""
    first, last = math.floor(start * geometry.FPS), math.ceil(end * geometry.FPS) - 1  # frames
    return math.ceil(first / geometry.FRAMES_PER_LATENT), math.ceil(last / geometry.FRAMES_PER_LATENT) + 1


def audio_latents_between(start: float, end: float) -> Span:
    """Return the audio latents that cover the time from `start` to `end` seconds."""
    return math.floor(start * geometry.AUDIO_LATENT_RATE), math.ceil(end * geometry.AUDIO_LATENT_RATE)


def video_note(mask: Tensor) -> str:
    """Say which frames a mask [F] over video latents preserves."""
    spans = [(geometry.frames(first) + 1, geometry.frames(after)) for first, after in _preserved(mask)]
    listed = [f"{max(first, 1)} to {last}" for first, last in spans]
    return _note("Video", "frames", listed, str(geometry.frames(len(mask))))


def audio_note(mask: Tensor) -> str:
    """Say which seconds a mask [L] over audio latents preserves."""
    rate = geometry.AUDIO_LATENT_RATE
    listed = [f"{first / rate:.2f} to {after / rate:.2f}" for first, after in _preserved(mask)]
    return _note("Audio", "seconds", listed, f"{len(mask) / rate:.2f}")


def _preserved(mask: Tensor) -> list[Span]:
    """Return the spans where a mask is 0."""
    spans, position = [], 0
    for regenerated, run in groupby(mask.tolist()):
        after = position + len(list(run))
        if not regenerated:
            spans.append((position, after))
        position = after
    return spans


def _note(modality: str, unit: str, spans: list[str], total: str) -> str:
    if not spans:
        return f"{modality}: all {total} {unit} are generated"
    return f"{modality}: {unit} {' and '.join(spans)} of {total} are preserved"
