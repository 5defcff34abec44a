"""What of a clip is given in training, as the nodes preserve it: clean, at timestep 0, and without a loss.

Masks are 0 where a latent is given and 1 where it is generated: [F] over video latents and [L] over audio latents.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import geometry

Masks = tuple[Tensor, Tensor]  # video [F], audio [L]

SHORTEST = geometry.seconds(geometry.FRAMES_PER_LATENT)  # of a passage, in seconds


def prefix(video_latents: int, audio_latents: int, place: float) -> Masks:
    """Return masks of a clip that begins with the end of another, as Ovi Continue prepares it.

    `place` from 0 to 1 says how many video latents are given: 1 up to all but the last. The audio is given up to one
    latent before their end. A clip of one video latent has no room for another's end.
    """
    video, audio = torch.ones(video_latents), torch.ones(audio_latents)
    shared = min(1 + int(place * (video_latents - 1)), video_latents - 1)
    if shared:
        seconds = geometry.seconds(geometry.frames(shared))
        video[:shared] = 0
        audio[: math.floor(seconds * geometry.AUDIO_LATENT_RATE - 1)] = 0
    return video, audio


def between(
    video_latents: int, audio_latents: int, start: float, end: float, *, video: bool = True, audio: bool = True
) -> Masks:
    """Return masks of a clip of which a passage is generated, as Ovi Remake prepares it: from `start` to `end` seconds.

    `video` and `audio` say in which modalities; the other one is given.
    """
    masks = torch.zeros(video_latents), torch.zeros(audio_latents)
    spans = geometry.video_latents_between(start, end), geometry.audio_latents_between(start, end)
    for mask, (first, after), generated in zip(masks, spans, (video, audio), strict=True):
        if generated:
            mask[first:after] = 1
    return masks


def passage(
    video_latents: int, audio_latents: int, place: float, length: float, kind: float, *, one: bool = False
) -> Masks:
    """Return masks of a clip of which a passage is generated: in both modalities, the video or the audio, by thirds.

    `place`, `length` and `kind` from 0 to 1 say where it is, how long, and in which. `one`: it has one modality only.
    """
    whole = geometry.seconds(geometry.frames(video_latents))
    lasts = SHORTEST + length * max(0.0, whole - SHORTEST)
    start = place * max(0.0, whole - lasts)
    end = min(start + lasts, whole)
    return between(
        video_latents, audio_latents, start, end, video=one or kind < 2 / 3, audio=one or not 1 / 3 <= kind < 2 / 3
    )
