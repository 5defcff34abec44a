"""Durations and sizes of a clip, in the units of people (frames, seconds, pixels) and of the two latents.

A video latent is [B, 48, F, height / 16, width / 16]: the first latent frame holds one frame, each later one four.
An audio latent is [B, 20, L]: 31.25 latents are one second, each is 512 samples at 16 kHz. Sizes are (width, height).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

FPS = 24.0  # frames per second of every released variant
FRAMES_PER_LATENT = 4  # the video VAE's stride in time
PIXELS_PER_LATENT = 16  # the video VAE's stride in space
MAX_SIZE = 16384  # pixels and frames: ComfyUI's own limit of sizes and lengths
SIZE_MULTIPLE = 32  # pixels: the stride times the model's patch of 2
VIDEO_CHANNELS = 48  # of the video latent
AUDIO_CHANNELS = 20  # of the audio latent
SAMPLE_RATE = 16_000  # Hz
SAMPLES_PER_LATENT = 512  # audio samples of one audio latent
AUDIO_LATENT_RATE = SAMPLE_RATE / SAMPLES_PER_LATENT  # 31.25 audio latents per second


class Variant(NamedTuple):
    """What a released checkpoint was trained on: pixels of a frame, frames, and what marks the audio in prompts."""

    area: int
    frames: int
    audio_tag: Literal["AUDCAP", "Audio:"]


VARIANTS = {
    "720x720_5s": Variant(area=720 * 720, frames=121, audio_tag="AUDCAP"),
    "960x960_5s": Variant(area=960 * 960, frames=121, audio_tag="Audio:"),
    "960x960_10s": Variant(area=960 * 960, frames=241, audio_tag="Audio:"),
}


def video_latents(frames: int) -> int:
    """Return the latent frames that hold `frames`; those beyond 4n + 1 are lost."""
    return (frames - 1) // FRAMES_PER_LATENT + 1


def frames(video_latents: int) -> int:
    """Return the frames that `video_latents` decode to."""
    return (video_latents - 1) * FRAMES_PER_LATENT + 1


def nearest_frames(seconds: float) -> int:
    """Return the number of frames, 4n + 1 as latents hold from the start of a clip, nearest to `seconds`: 1 → 25."""
    return frames(round((seconds * FPS - 1) / FRAMES_PER_LATENT) + 1)


def audio_latents(frames: int, fps: float = FPS) -> int:
    """Return the audio latents of a clip: 157 for the 121 frames of a 5-second clip, 314 for 241."""
    return round((frames - 1) * AUDIO_LATENT_RATE / fps + 1)


def latents_during_frame(video_latent: int) -> tuple[int, int]:
    """Return the audio latents nearest to the time of a video latent at 24 fps: the first, and the first one after."""
    first, after = frames(video_latent), frames(video_latent + 1)  # of the frames that the video latent holds
    return round(max(0, first) * AUDIO_LATENT_RATE / FPS), round(after * AUDIO_LATENT_RATE / FPS)


def audio_offset(video_latent: int) -> float:
    """Return when a video latent of four frames begins at 24 fps, in audio latents after the last frame of latent 0.

    It is -3.9 for latent 0 itself, which at the start of a clip is a single frame.
    """
    return frames(video_latent) * AUDIO_LATENT_RATE / FPS


def middle(video_latents: Sequence[int]) -> float:
    """Return when the middle of a row of video latents is, at 24 fps, in seconds from the start of the clip."""
    count = len(video_latents)
    first = frames(video_latents[count // 2])  # of the later half
    return max(0.0, first + FRAMES_PER_LATENT / 2 * (count % 2)) / FPS


def video_latents_between(start: float, end: float) -> tuple[int, int]:
    """Return the video latents that show any part of the time from `start` to `end` seconds: first, first after."""
    first, last = math.floor(start * FPS), math.ceil(end * FPS) - 1  # frames
    return math.ceil(first / FRAMES_PER_LATENT), math.ceil(last / FRAMES_PER_LATENT) + 1


def audio_latents_between(start: float, end: float) -> tuple[int, int]:
    """Return the audio latents that cover the time from `start` to `end` seconds: first, first after."""
    return math.floor(start * AUDIO_LATENT_RATE), math.ceil(end * AUDIO_LATENT_RATE)


def audio_samples(audio_latents: int) -> int:
    """Return the samples at 16 kHz that `audio_latents` decode to."""
    return audio_latents * SAMPLES_PER_LATENT


def seconds(frames: int, fps: float = FPS) -> float:
    """Return how long `frames` last."""
    return frames / fps


def nearest_size(width: int, height: int, area: int | None = None) -> tuple[int, int]:
    """Return the (width, height) in multiples of 32 nearest to the given one, first scaled to `area` pixels if given.

    The Ovi release's rule, with its two roundings, half to even. Raises ValueError for a size that is not positive.
    """
    if width <= 0 or height <= 0:
        raise ValueError(f"Width and height must be positive, got {width}x{height}.")
    if area:
        scale = math.sqrt(area / (width * height))
        width, height = round(width * scale), round(height * scale)
    return _nearest_multiple(width), _nearest_multiple(height)


def fit_note(width: int, height: int, frames: int) -> str:
    """Say in one line which checkpoints were trained on such a clip, or what to change. See `fits`."""
    if fitting := fits(width, height, frames):
        return f"Fits {' and '.join(fitting)}"
    if sized := fits(width, height):
        return f"Over {max(VARIANTS[name].frames for name in sized)} frames: needs context windows"
    nearest = min(VARIANTS.values(), key=lambda variant: abs(math.log(width * height / variant.area)))
    return "{}x{} fits no checkpoint: try {}x{}".format(width, height, *nearest_size(width, height, nearest.area))


def fits(width: int, height: int, frames: int = 0) -> list[str]:
    """Return the variants that were trained on clips like this one: at most 10 % from its area, and as many frames."""
    return [
        name
        for name, variant in VARIANTS.items()
        if abs(width * height / variant.area - 1) <= 0.1 and frames <= variant.frames
    ]


def _nearest_multiple(pixels: int) -> int:
    return max(SIZE_MULTIPLE, round(pixels / SIZE_MULTIPLE) * SIZE_MULTIPLE)


def check_size(width: int, height: int) -> None:
    """Raise ValueError, naming the nearest good ones, unless width and height are positive multiples of 32."""
    good_width, good_height = (_nearest_in(value, SIZE_MULTIPLE, SIZE_MULTIPLE) for value in (width, height))
    if [width] != good_width or [height] != good_height:
        raise ValueError(
            f"Width and height must be multiples of {SIZE_MULTIPLE}, got {width}x{height}:"
            f" use width {_either(good_width)} and height {_either(good_height)}."
        )


def check_length(frames: int) -> None:
    """Raise ValueError, naming the nearest good ones, unless `frames` is 4n + 1."""
    good = _nearest_in(frames, 1, FRAMES_PER_LATENT)
    if [frames] != good:
        raise ValueError(f"The length must be {FRAMES_PER_LATENT}n + 1 frames, got {frames}: use {_either(good)}.")


def _nearest_in(value: int, first: int, step: int) -> list[int]:
    """Return `value` if it is one of first, first + step, ..., else the two of them around it (the first two below)."""
    below = max(first, value - (value - first) % step)
    return [value] if below == value else [below, below + step]


def _either(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))
