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
import torch.nn.functional as F
from torch import Tensor
from torchaudio.functional import resample  # type: ignore[import-untyped]

from . import geometry
from .quote import quoted

Span = tuple[int, int]

FRAME_RATES = (0.1, 1000.0)  # frames per second, lowest and highest
SAMPLE_RATES = (1000, 1_000_000)  # Hz, lowest and highest: beyond those of any audio format
LARGEST_TERM = 1280  # of a ratio that torchaudio gets: common rates need no larger one (384 to 44.1 kHz is 1280:147)
ZERO_CROSSINGS, ROLLOFF = 6, 0.99  # torchaudio's defaults
BLOCK = 2**20  # numbers
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LOUDEST = 1e6  # of a waveform, which is meant to lie within -1 and 1: beyond it, sums overflow sooner or later
WINDOW, SHORTEST_PAUSE, QUIET = 0.02, 0.2, 0.15  # seconds, seconds, part of the range of loudness
AUDIBLE_GAP = 0.1  # seconds; the halves of an Ovi latent differ by 0.03 at most


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor is free of NaN and infinity.

    amin() and amax() copy nothing, whatever the strides, where isfinite() would need as much memory again: videos are
    gigabytes.
    """
    return not tensor.numel() or (math.isfinite(tensor.amin()) and math.isfinite(tensor.amax()))


def check_finite(tensor: Tensor, what: str) -> None:
    """Raise ValueError, naming the tensor as `what`, for NaN or infinity in it."""
    if not is_finite(tensor):
        raise ValueError(f"The {what} contains NaN or infinity; check the file or the node that it comes from.")


def frame_rate(fps: Any, what: str = "video") -> float:
    """Return a frame rate as a float. Raises ValueError, naming the video as `what`, for an impossible one."""
    lowest, highest = FRAME_RATES
    try:
        rate = float(fps)
        got = f"{rate:g}"
    except (TypeError, ValueError, OverflowError):
        rate, got = math.nan, quoted(fps)
    if not lowest <= rate <= highest:
        raise ValueError(
            f"The {what} has {got} frames per second, but needs {lowest:g} to {highest:g}; check the file or the node "
            "that it comes from."
        )
    return rate


def retimed(frames: int, fps: float, what: str = "video") -> Tensor:
    """Return the indices [N] of the frames that show a video of `frames` at `fps` at 24 fps: the nearest each time.

    Raises ValueError, naming the video as `what`, for an impossible frame rate.
    """
    fps = frame_rate(fps, what)
    times = torch.arange(math.ceil(frames * geometry.FPS / fps) + 1, dtype=torch.float64) / geometry.FPS
    nearest = (times * fps + 0.5).long()
    return nearest[nearest < frames]


def at_24(frames: Tensor, fps: float, count: int | None = None, what: str = "video") -> Tensor:
    """Return all frames of a video at `fps`, or the first `count`, as shown at 24 fps; a view where it is at 24.

    Raises ValueError, naming the video as `what`, for an impossible frame rate.
    """
    if fps == geometry.FPS:
        return frames[:count]
    return frames[retimed(len(frames), fps, what)[:count]]


def sample_rate(audio: Any, what: str = "audio") -> int:
    """Return the sample rate of an AUDIO. Raises ValueError, naming the audio as `what`, for an impossible one."""
    rate: Any = audio.get("sample_rate") if isinstance(audio, Mapping) else None
    lowest, highest = SAMPLE_RATES
    try:
        whole = int(rate)
    except (TypeError, ValueError, OverflowError):
        whole = 0
    if whole != rate or not lowest <= whole <= highest:
        raise ValueError(
            f"The {what} has a sample rate of {quoted(rate)}, but needs a whole number from {lowest} to "
            f"{highest} Hz; check the file or the node that it comes from."
        )
    return whole


def recording(audio: Any, what: str = "audio") -> tuple[Tensor, int]:
    """Return the waveform [C, S], which may have no samples, and the sample rate of an AUDIO.

    Raises ValueError, naming the audio as `what`, unless it is one recording of finite numbers at a possible rate.
    """
    waveform = audio.get("waveform") if isinstance(audio, Mapping) else None
    if not isinstance(waveform, Tensor):
        raise ValueError(f"The {what} has no waveform; load it with 'Load Audio'.")
    if waveform.ndim != 3 or waveform.shape[1] == 0:
        raise ValueError(
            f"The {what} has a waveform of shape {list(waveform.shape)}, but needs [1, channels, samples]; load it "
            "with 'Load Audio'."
        )
    if len(waveform) != 1:
        raise ValueError(f"The {what} must be one recording, got a batch of {len(waveform)}.")
    if waveform.dtype not in FLOATS or waveform.layout != torch.strided:
        raise ValueError(
            f"The {what} has a waveform of {waveform.dtype}, but needs 16 to 64 bits of floating point, -1 to 1; load "
            "it with 'Load Audio'."
        )
    rate = sample_rate(audio, what)
    check_finite(waveform, what)
    if waveform.numel() and max(-waveform.amin(), waveform.amax()) > LOUDEST:
        raise ValueError(f"The {what} has samples beyond {LOUDEST:g}, but needs -1 to 1; check what it comes from.")
    return waveform[0], rate


def fills_a_latent(audio: Mapping[str, Any]) -> bool:
    """Return whether audio is long enough for one latent."""
    return audio["waveform"].shape[-1] / audio["sample_rate"] * geometry.AUDIO_LATENT_RATE >= 1


def mono(audio: Any, new_rate: int, what: str = "audio") -> Tensor:
    """Mix the channels of audio evenly and resample it: [S].

    Raises ValueError, naming the audio as `what`, where `recording` does, and for audio too short for one latent.
    """
    waveform, rate = recording(audio, what)
    if not fills_a_latent(audio):
        raise ValueError(
            f"The {what} lasts {waveform.shape[1] / rate:.3f} s, but at least {1 / geometry.AUDIO_LATENT_RATE:.3f} s "
            "are needed; check what it was loaded from."
        )
    return resampled(waveform.float().mean(0), rate, new_rate)


def cut(audio: Any, start: float, seconds: float, new_rate: int, what: str) -> Tensor:
    """Take `seconds` of audio from `start` on, mixed down, resampled and within -1 and 1: [S].

    Raises ValueError, naming the audio as `what`, where `mono` does, and for audio that ends before.
    """
    wave = mono(audio, new_rate, what)
    first, after = round(start * new_rate), round((start + seconds) * new_rate)
    if after > len(wave):
        raise ValueError(
            f"The {what} lasts {len(wave) / new_rate:.2f} s, but {start:g} to {start + seconds:g} s of it are used: "
            f"choose a longer one, or lower {what}_start or {what}_seconds."
        )
    return wave[first:after].clamp(-1, 1)


def resampled(wave: Tensor, rate: int, new_rate: int) -> Tensor:
    """Resample a wave [..., S] of float32: [..., ceil(S * new_rate / rate)].

    torchaudio holds one filter for each new sample until the two rates are in phase again: 1.9 billion numbers from
    44101 to 44100 Hz. For such rates this computes the same filters block by block, so that memory is bounded and time
    grows only with the length of the wave.
    """
    if max(rate, new_rate) // math.gcd(rate, new_rate) <= LARGEST_TERM:
        return resample(wave, rate, new_rate, ZERO_CROSSINGS, ROLLOFF)
    cutoff = ROLLOFF * min(1.0, new_rate / rate)  # in zero crossings per sample
    reach = math.ceil(ZERO_CROSSINGS / cutoff)
    taps = torch.arange(2 * reach + 2, device=wave.device)
    padded = F.pad(wave, (reach, reach + 1))
    indices = torch.arange(-(-wave.shape[-1] * new_rate // rate), device=wave.device)
    blocks = []
    for block in indices.split(max(1, BLOCK // len(taps))):
        position = block[:, None] * rate  # in 1 / new_rate of a sample
        crossings = (taps - reach - position % new_rate / new_rate) * cutoff
        crossings = crossings.clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)
        window = (crossings * (torch.pi / 2 / ZERO_CROSSINGS)).cos().square()
        filters = cutoff * crossings.sinc() * window
        blocks.append((padded[..., position // new_rate + taps] * filters).sum(-1))
    return torch.cat(blocks, dim=-1)


def clipped(audio: Any, frames: int, what: str = "audio") -> dict[str, Any]:
    """Return the audio of a clip's `frames`, as it is: its own rate, its own channels, no sample changed.

    Raises ValueError, naming the audio as `what`, where `recording` does.
    """
    waveform, rate = recording(audio, what)
    return {"waveform": waveform[None, :, : round(geometry.seconds(frames) * rate)], "sample_rate": rate}


def pauses(wave: Tensor, rate: int) -> list[tuple[float, float]]:
    """Return the begins and ends, in seconds, of the pauses in a wave [S].

    A pause is a stretch of `SHORTEST_PAUSE` or more that is hardly louder than the quietest tenth of the wave: its
    loudness, in windows of `WINDOW`, stays in the lowest `QUIET` of the range up to that of the loudest tenth.
    """
    size = round(WINDOW * rate)
    if len(wave) < size:
        return []
    loudness = wave[: len(wave) // size * size].view(-1, size).square().mean(1).sqrt()
    quietest, loudest = loudness.quantile(torch.tensor([0.1, 0.9]).to(loudness)).tolist()
    if loudest <= 2 * quietest:  # music or noise that is loud throughout has none
        return []
    quiet = loudness <= quietest + QUIET * (loudest - quietest)
    found = [(first * size / rate, after * size / rate) for first, after in _zeros(~quiet)]
    return [(start, end) for start, end in found if end - start >= SHORTEST_PAUSE]


def before_padding(audio: Any, frames: int, overlap: int, what: str) -> dict[str, Any]:
    """Return the audio of the last `overlap` of a clip's `frames`, up to one latent before the end.

    In the time of the last latent Ovi Decode may have padded the audio with silence, which a clip that continues this
    one would preserve as a gap. Raises ValueError, naming the audio as `what`, where `recording` does.
    """
    waveform, rate = recording(audio, what)
    start = round(geometry.seconds(frames - overlap) * rate)
    end = round((geometry.seconds(frames) - 1 / geometry.AUDIO_LATENT_RATE) * rate)
    return {"waveform": waveform[None, :, start:end], "sample_rate": rate}


def preserved_note(video_mask: Tensor, audio_mask: Tensor) -> str:
    """Say in one line which frames a mask [F] over video latents and which seconds one [L] over audio latents keep."""
    if video_mask.all() and audio_mask.all():
        return "Preserved: nothing"
    rate = geometry.AUDIO_LATENT_RATE
    frames = [(max(geometry.frames(first) + 1, 1), geometry.frames(after)) for first, after in _zeros(video_mask)]
    seconds = [(first / rate, after / rate) for first, after in _zeros(audio_mask)]
    of_video = " and ".join(f"{first} to {last}" if first < last else f"{last}" for first, last in frames)
    of_audio = " and ".join(f"{first:.2f} to {end:.2f}" for first, end in seconds)
    video = f"frames {of_video} of {geometry.frames(len(video_mask))}" if frames else "no frames"
    audio = f"audio {of_audio} of {len(audio_mask) / rate:.2f} s" if seconds else "no audio"
    return f"Preserved: {video}, {audio}"


def gap_notes(audio_latents: int, seconds: float) -> list[str]:
    """Say by how much the audio is longer or shorter than a video of `seconds`, if that is audible."""
    lasts = audio_latents / geometry.AUDIO_LATENT_RATE
    gap = seconds - lasts
    if abs(gap) <= AUDIBLE_GAP:
        return []
    rest = f"{gap:.2f} s of silence follow" if gap > 0 else f"its last {-gap:.2f} s are cut"
    return [f"The audio lasts {lasts:.2f} s, the video {seconds:.2f} s: {rest}"]


def peak_notes(audio: Mapping[str, Any]) -> list[str]:
    """Say that an AUDIO is too loud for the audio VAE, if that is so."""
    peak = audio["waveform"].abs().max().item()
    return [f"The audio peaks at {peak:.2f}: everything beyond 1 is clipped"] if peak > 1 else []


def _zeros(mask: Tensor) -> list[Span]:
    """Return the spans where a mask [L] is 0."""
    spans, position = [], 0
    for regenerated, run in groupby(mask.tolist()):
        after = position + len(list(run))
        if not regenerated:
            spans.append((position, after))
        position = after
    return spans
