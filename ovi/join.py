"""Clips one after another, the end of each over the beginning of the next.

Frames are [T, H, W, C] at 24 per second, waves [C, S]. The frame where a clip begins gives the sample where its sound
begins, each time counted from the start, so that picture and sound never drift apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, pad
from torchaudio.functional import resample  # type: ignore[import-untyped]

from . import geometry

FADE = 0.1  # seconds in which the sound of one clip gives way to that of the next


def overlap_frames(seconds: float) -> int:
    """The frames nearest to `seconds` that latents hold from the start of a clip: 4n + 1, so 25 for a second."""
    frames = seconds * geometry.FPS
    return geometry.frames(round((frames - 1) / geometry.FRAMES_PER_LATENT) + 1)


def starts(lengths: Sequence[int], overlap: int) -> list[int]:
    """The frames where clips of `lengths` begin, and at last the frame where the last one ends."""
    *begins, end = accumulate((length - overlap for length in lengths), initial=0)
    return [*begins, end + overlap]


def join_frames(clips: Sequence[Tensor], overlap: int) -> Tensor:
    """Join clips of frames; in the overlap, where both show the same, one dissolves into the other.

    The joined clip has the dtype and the device of the first.
    """
    *begins, total = starts([len(clip) for clip in clips], overlap)
    joined = clips[0].new_empty(total, *clips[0].shape[1:])
    joined[: len(clips[0])] = clips[0]
    weights = (torch.arange(1, overlap + 1) / (overlap + 1)).view(-1, 1, 1, 1).to(joined)
    for clip, start in zip(clips[1:], begins[1:], strict=True):
        joined[start : start + overlap].lerp_(clip[:overlap].to(joined), weights)
        joined[start + overlap : start + len(clip)] = clip[overlap:]
    return joined


def alike(sounds: Sequence[Mapping[str, Any] | None], sample_rate: int) -> list[Tensor]:
    """ComfyUI's AUDIOs, of which some are there, as waves [C, S] at one rate with one number of channels.

    They get the dtype and the device of the first. A sound of one channel is the same in all of them, a missing one is
    empty. Raises ValueError for other numbers of channels that differ.
    """
    first: Tensor = next(sound["waveform"] for sound in sounds if sound is not None)
    waves = [
        first.new_zeros(1, 0)
        if sound is None
        else resample(sound["waveform"][0].float(), sound["sample_rate"], sample_rate).to(first)
        for sound in sounds
    ]
    counts = {len(wave) for wave in waves}
    if len(counts - {1}) > 1:
        raise ValueError(f"The clips' sounds have {' and '.join(map(str, sorted(counts)))} channels: mix them alike.")
    return [wave.expand(max(counts), -1) for wave in waves]


def join_waves(waves: Sequence[Tensor], lengths: Sequence[int], overlap: int, sample_rate: int) -> Tensor:
    """Join the sounds of clips of `lengths` frames, cut or filled up with silence to these.

    They cross in the middle of the overlap: a clip's very ends are where decoded sound is least sure.
    """
    *begins, total = starts(lengths, overlap)

    def sample(frame: int) -> int:
        return round(geometry.seconds(frame) * sample_rate)

    joined = waves[0].new_zeros(len(waves[0]), sample(total))
    for wave, length, begin in zip(waves, lengths, begins, strict=True):
        start, end = sample(begin), sample(begin + length)
        fitted = pad(wave, (0, end - start - wave.shape[1]))
        first = 0  # sample of the clip from which on it is heard alone
        if begin:
            shared = sample(begin + overlap) - start
            fade = min(round(FADE * sample_rate), shared)
            first = (shared + fade) // 2
            crossing = joined[:, start + first - fade : start + first]
            crossing.copy_(cross(crossing, fitted[:, first - fade : first]))
        joined[:, start + first : end] = fitted[:, first:]
    return joined


def cross(old: Tensor, new: Tensor) -> Tensor:
    """Fade from one wave [C, S] to another with equal power throughout, whatever they have in common.

    Gains cos and sin keep the power of unlike sounds, but raise that of like ones: with a correlation r it is
    cos² + sin² + 2 r cos sin, which is divided out. Equal sounds thus come out unchanged.
    """
    angles = torch.linspace(0, torch.pi / 2, new.shape[1], device=new.device)
    fall, rise = angles.cos(), angles.sin()
    alike = cosine_similarity(old.flatten(), new.flatten(), dim=0).clamp(min=0)
    return (old * fall + new * rise) / (1 + 2 * alike * fall * rise).sqrt()
