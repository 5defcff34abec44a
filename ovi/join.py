"""Joining clips, the end of each over the beginning of the next, or one after the other with a cut.

Frames are [T, H, W, C] at 24 fps, waves [C, S]. The frame where a clip begins gives the sample where its audio begins,
always counted from the start of the joined clip, so that video and audio never drift apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, pad

from . import geometry, media

MOST_CLIPS = 100  # ComfyUI's own limit of inputs that grow
FADE = 0.1  # seconds of the crossfade from the audio of one clip to that of the next
CUT_FADE = 0.005  # seconds of each fade at a cut: too short to hear, long enough for no click


def parse_cuts(text: str, clips: int) -> set[int]:
    """Parse the numbers of clips that begin with a cut, such as "3" or "3, 5"; empty is none.

    Raises ValueError for what is not a number from 2 to `clips`: the first follows none.
    """
    words = re.split(r"[\s,]+", text.strip()) if text.strip() else []
    for word in words:
        if not word.isdecimal() or not 2 <= int(word) <= clips:
            raise ValueError(
                f"'{word}' in cuts is no clip that follows another: give numbers from 2 to {clips}, separated by "
                "commas."
            )
    return set(map(int, words))


def starts(lengths: Sequence[int], overlaps: Sequence[int]) -> list[int]:
    """Return the frames where clips of `lengths` begin, and last the frame where the last one ends.

    `overlaps` are the frames that each clip but the first shares with the one before.
    """
    begins = [0]
    for length, overlap in zip(lengths[:-1], overlaps, strict=True):
        begins.append(begins[-1] + length - overlap)
    return [*begins, begins[-1] + lengths[-1]]


def join_frames(clips: Sequence[Tensor], overlaps: Sequence[int]) -> Tensor:
    """Join clips of frames; in an overlap one dissolves into the other, and an overlap of 0 is a cut.

    The joined clip has the dtype and the device of the first.
    """
    *begins, total = starts([len(clip) for clip in clips], overlaps)
    joined = clips[0].new_empty(total, *clips[0].shape[1:])
    joined[: len(clips[0])] = clips[0]
    for clip, start, overlap in zip(clips[1:], begins[1:], overlaps, strict=True):
        weights = (torch.arange(1, overlap + 1) / (overlap + 1)).view(-1, 1, 1, 1).to(joined)
        joined[start : start + overlap].lerp_(clip[:overlap].to(joined), weights)
        joined[start + overlap : start + len(clip)] = clip[overlap:]
    return joined


def match_waves(tracks: Sequence[Any], sample_rate: int) -> list[Tensor]:
    """Return ComfyUI's AUDIOs as waves [C, S] of one rate and one number of channels; None becomes an empty wave.

    At least one is not None; all get its dtype and device. Mono is repeated in every channel. Raises ValueError for
    other numbers of channels that differ, and, naming the clip, where `media.recording` does.
    """
    parts = [
        None if track is None else media.recording(track, f"audio of clip {number}")
        for number, track in enumerate(tracks, start=1)
    ]
    first = next(part[0] for part in parts if part is not None)
    waves = [
        first.new_zeros(1, 0) if part is None else media.resampled(part[0].float(), part[1], sample_rate).to(first)
        for part in parts
    ]
    counts = {len(wave) for wave in waves}
    if len(counts - {1}) > 1:
        listed = " and ".join(map(str, sorted(counts)))
        raise ValueError(f"The clips' audio has {listed} channels: convert all to the same number first.")
    return [wave.expand(max(counts), -1) for wave in waves]


def join_waves(waves: Sequence[Tensor], lengths: Sequence[int], overlaps: Sequence[int], sample_rate: int) -> Tensor:
    """Join the audio of clips of `lengths` frames, each trimmed or padded with silence to its clip's duration.

    The crossfade is in the middle of the overlap: decoded audio is least reliable at the very ends of a clip. At a cut,
    where there is no overlap, the audio before it fades out and that after it fades in.
    """
    *begins, total = starts(lengths, overlaps)

    def sample(frame: int) -> int:
        return round(geometry.seconds(frame) * sample_rate)

    joined = waves[0].new_zeros(len(waves[0]), sample(total))
    for wave, length, begin, overlap in zip(waves, lengths, begins, [0, *overlaps], strict=True):
        start, end = sample(begin), sample(begin + length)
        fitted = pad(wave, (0, end - start - wave.shape[1]))
        first = 0  # the clip's first sample after the crossfade
        if overlap:
            shared = sample(begin + overlap) - start
            fade = min(round(FADE * sample_rate), shared)
            first = (shared + fade) // 2
            crossing = joined[:, start + first - fade : start + first]
            crossing.copy_(cross(crossing, fitted[:, first - fade : first]))
        elif begin:
            rise = torch.linspace(0, 1, min(round(CUT_FADE * sample_rate), start, end - start)).to(joined)
            joined[:, start - len(rise) : start] *= rise.flip(0)
            fitted = torch.cat([fitted[:, : len(rise)] * rise, fitted[:, len(rise) :]], dim=1)
        joined[:, start + first : end] = fitted[:, first:]
    return joined


def cross(old: Tensor, new: Tensor) -> Tensor:
    """Crossfade from one wave [C, S] to another at constant power, however correlated they are.

    The gains cos and sin preserve the power of uncorrelated waves, but raise that of correlated ones: with a
    correlation r it is cos² + sin² + 2 r cos sin, which is divided out. Two equal waves thus come out unchanged.
    """
    angles = torch.linspace(0, torch.pi / 2, new.shape[1], device=new.device)
    fall, rise = angles.cos(), angles.sin()
    correlation = cosine_similarity(old.flatten(), new.flatten(), dim=0).clamp(min=0)
    return (old * fall + new * rise) / (1 + 2 * correlation * fall * rise).sqrt()
