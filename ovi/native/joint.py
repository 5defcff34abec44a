"""The joint latent that a node builds: what of it is preserved, and from what media.

A mask is 0 where a latent is preserved and 1 where it is generated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import comfy.latent_formats
import comfy.model_management
import torch
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from .. import geometry, image, media
from .vae import encode


def empty_parts(width: int, height: int, length: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return zeros for a clip: video [B, 48, F, H, W] and audio [B, 20, L].

    Raises ValueError for a size or length that the latents cannot hold.
    """
    geometry.check_size(width, height)
    geometry.check_length(length)
    stride = geometry.PIXELS_PER_LATENT
    device = comfy.model_management.intermediate_device()
    video = torch.zeros(
        batch_size,
        geometry.VIDEO_CHANNELS,
        geometry.video_latents(length),
        height // stride,
        width // stride,
        device=device,
    )
    audio = torch.zeros(batch_size, geometry.AUDIO_CHANNELS, geometry.audio_latents(length), device=device)
    return video, audio


class JointLatent:
    """A clip to generate: `video` [B, 48, F, H, W] and `audio` [B, 20, L], with masks [B, 1, F, H, W] and [B, 1, L].

    `width` and `height` are in pixels, `length` in frames. At first everything is empty and generated.
    """

    def __init__(self, width: int, height: int, length: int, batch_size: int) -> None:
        self.width, self.height, self.length = width, height, length
        video, self.audio = empty_parts(width, height, length, batch_size)
        # Zero after normalisation, as an empty latent is: it matters where a sampler starts below sigma 1.
        self.video = comfy.latent_formats.Wan22().process_out(video)
        self.video_mask = torch.ones_like(self.video[:, :1])
        self.audio_mask = torch.ones_like(self.audio[:, :1])

    def latent(self) -> dict[str, Any]:
        """Return it as a LATENT."""
        return {
            "samples": NestedTensor((self.video, self.audio)),
            "noise_mask": NestedTensor((self.video_mask, self.audio_mask)),
        }

    def notes(self, on_media: Sequence[str] = ()) -> list[str]:
        """Say where no checkpoint was trained for such a clip, then what is preserved, and the notes on its media."""
        return [*self.misfit(), preserved_note(self.video_mask, self.audio_mask), *on_media]

    def misfit(self) -> list[str]:
        """Say that no checkpoint was trained for such a clip, where that is so."""
        size = self.width, self.height, self.length
        return [] if geometry.fits(*size) else [geometry.fit_note(*size)]

    def preserve_start_image(self, vae: Any, start_image: Tensor, fit: image.Fit) -> None:
        """Preserve an image [1, H, W, C] as the first frame, which the first latent holds alone."""
        fitted = image.fit_image(start_image, self.width, self.height, fit)
        self.video[:, :, :1] = encode(vae, fitted, "start image")
        self.video_mask[:, :, 0] = 0.0

    def preserve_end_image(self, vae: Any, end_image: Tensor, fit: image.Fit) -> None:
        """Preserve an image [1, H, W, C] as the last four frames, which the last latent holds.

        The VAE packs four frames into a latent only after a first one, so it encodes the image five times.
        """
        if self.length == 1 or not self.video_mask[:, :, -1].all():
            raise ValueError("There is no room for an end image: make the clip longer, or preserve less of the video.")
        still = image.fit_image(end_image, self.width, self.height, fit, "end image")
        encoded = encode(vae, still.expand(1 + geometry.FRAMES_PER_LATENT, -1, -1, -1), "end image")
        self.video[:, :, -1:] = encoded[:, :, 1:]
        self.video_mask[:, :, -1] = 0.0

    def preserve_video(
        self, vae: Any, frames: Any, fps: float, fit: image.Fit, keep_frames: int, what: str = "reference video"
    ) -> list[str]:
        """Encode frames [T, H, W, C] from the start of the clip and preserve the first `keep_frames` (0: all).

        Only whole latents are encoded and preserved: 4n + 1 frames. Returns notes on what was left out or retimed.
        Raises ValueError, naming the video as `what`, for anything else.
        """
        image.check_images(frames, what)
        fps = media.frame_rate(fps, what)
        length = len(media.retimed(len(frames), fps))
        if not 0 <= keep_frames <= length:
            raise ValueError(
                f"keep_frames is {keep_frames}, but the video has {length} frames: preserve fewer, or all (0)."
            )
        latents = geometry.video_latents(min(length, self.length))
        used = media.at_24(frames, fps, geometry.frames(latents))
        fitted = image.fit_frames(used, self.width, self.height, fit, what)
        self.video[:, :, :latents] = encode(vae, fitted, what)
        self.video_mask[:, :, : geometry.video_latents(keep_frames) if keep_frames else latents] = 0.0
        notes = []
        if fps != geometry.FPS:
            notes.append(f"The video's {len(frames)} frames at {fps:g} fps are used as {length} at 24 fps")
        if length > self.length:
            notes.append(f"The video has {length} frames: the first {self.length} are used")
        return notes

    def preserve_audio(self, vae: Any, audio: Any, keep_seconds: float, what: str = "audio") -> list[str]:
        """Encode audio from the start of the clip and preserve its first `keep_seconds` (0: all).

        The VAE gets no silence beyond the end of the audio, which Ovi would take for a pause to continue. Returns notes
        on what was left out or clipped. Raises ValueError, naming the audio as `what`, for anything else.
        """
        rate = vae.audio_sample_rate
        wave = media.mono(audio, rate, what)
        seconds, clip_seconds = len(wave) / rate, geometry.seconds(self.length)
        shortest = 1 / geometry.AUDIO_LATENT_RATE
        if not 0 <= keep_seconds <= seconds:
            raise ValueError(
                f"keep_seconds is {keep_seconds:.2f}, but the audio lasts {seconds:.2f} s: preserve less, or all (0)."
            )
        if 0 < keep_seconds < shortest:
            raise ValueError(
                f"keep_seconds is {keep_seconds:.2f}, but an audio latent lasts {shortest:.3f} s: preserve at least "
                "0.04 s, or all (0)."
            )
        room = self.audio.shape[2]
        used = wave[: math.ceil(room * rate / geometry.AUDIO_LATENT_RATE)]
        latent = encode(vae, used.view(1, -1, 1), what)[..., :room]
        self.audio[..., : latent.shape[2]] = latent
        preserved = int(keep_seconds * geometry.AUDIO_LATENT_RATE) if keep_seconds else latent.shape[2]
        self.audio_mask[..., :preserved] = 0.0
        notes = []
        if seconds > clip_seconds:
            notes.append(f"The audio lasts {seconds:.2f} s: the first {clip_seconds:.2f} s are used")
        if (peak := audio["waveform"].abs().max().item()) > 1:
            notes.append(f"The audio peaks at {peak:.2f}: everything beyond 1 is clipped")
        return notes


def regenerate_between(
    video_mask: Tensor, audio_mask: Tensor, start: float, end: float, *, video: bool, audio: bool
) -> None:
    """Set masks [B, 1, F, H, W] and [B, 1, L] to 1 between two times in seconds (end 0: the end of the clip).

    Raises ValueError for a time that starts before the clip or after it, or ends before it starts.
    """
    seconds = geometry.seconds(geometry.frames(video_mask.shape[2]))
    until = min(end or seconds, seconds)
    if not 0 <= start < until:
        raise ValueError(
            f"remake_start is {start:.2f} s, but must lie between 0 and the end of the part to regenerate, "
            f"{until:.2f} s (the clip lasts {seconds:.2f} s)."
        )
    if video:
        first, after = media.video_latents_between(start, until)
        video_mask[:, :, first:after] = 1.0
    if audio:
        first, after = media.audio_latents_between(start, until)
        audio_mask[..., first:after] = 1.0


def preserved_note(video_mask: Tensor, audio_mask: Tensor) -> str:
    """Say what the masks [B, 1, F, H, W] and [B, 1, L] preserve."""
    return media.preserved_note(video_mask[0, 0, :, 0, 0], audio_mask[0, 0])
