"""Picture and sound that are given, and what of them is kept: OviReference, OviRemake."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from comfy.nested_tensor import NestedTensor
from comfy_api.latest import io
from torch import Tensor

from ..ovi import geometry, image, native, reference
from .latent import Clip, batch_input, size_inputs
from .notes import show

REMAKES = ("nothing", "picture", "sound", "picture and sound")
MAX_SECONDS = 10_000.0


def keep_start_image(clip: Clip, vae: Any, start_image: Tensor, fit: image.Fit) -> None:
    """Keep an image as the first frame, which the first latent holds alone."""
    clip.video[:, :, :1] = vae.encode(image.fit_image(start_image, clip.width, clip.height, fit))
    clip.video_mask[:, :, 0] = 0.0


def keep_end_image(clip: Clip, vae: Any, end_image: Tensor, fit: image.Fit) -> None:
    """Keep an image as the last four frames, which the last latent holds.

    The VAE packs four frames into a latent only after a first one: it is shown the image five times.
    """
    if clip.length == 1 or not clip.video_mask[:, :, -1].all():
        raise ValueError("There is no room for an end image: make the clip longer, or keep less of the video.")
    still = image.fit_image(end_image, clip.width, clip.height, fit, "end image")
    clip.video[:, :, -1:] = vae.encode(still.expand(1 + geometry.FRAMES_PER_LATENT, -1, -1, -1))[:, :, 1:]
    clip.video_mask[:, :, -1] = 0.0


def keep_video(clip: Clip, vae: Any, video: Tensor, fps: float, fit: image.Fit, keep_frames: int) -> list[str]:
    """Give the clip the frames of a video and keep the first of them (0: all); return what is to be said about it.

    Only whole latents are given and kept: 4n + 1 frames.
    """
    length = len(reference.retimed(len(video), fps))
    if keep_frames > length:
        raise ValueError(f"keep_frames is {keep_frames}, but the video has {length} frames: keep fewer, or all (0).")
    latents = geometry.video_latents(min(length, clip.length))
    frames = reference.at_24(video, fps, geometry.frames(latents))
    clip.video[:, :, :latents] = vae.encode(image.fit_frames(frames, clip.width, clip.height, fit, "reference video"))
    clip.video_mask[:, :, : geometry.video_latents(keep_frames) if keep_frames else latents] = 0.0
    notes = []
    if fps != geometry.FPS:
        notes.append(f"The video's {len(video)} frames at {fps:g} per second are shown as {length} at 24")
    if length > clip.length:
        notes.append(f"The video has {length} frames: the first {clip.length} are used")
    return notes


def keep_audio(clip: Clip, vae: Any, audio: Mapping[str, Any], keep_seconds: float) -> list[str]:
    """Give the clip a sound and keep the first seconds of it (0: all); return what is to be said about it.

    The VAE is shown no silence beyond the end of the sound: Ovi would take it for a part of what it has to carry on.
    """
    rate = vae.audio_sample_rate
    wave = reference.mono(audio, rate)
    seconds, clip_seconds = len(wave) / rate, geometry.seconds(clip.length)
    if keep_seconds > seconds:
        raise ValueError(
            f"keep_seconds is {keep_seconds:.2f}, but the audio lasts {seconds:.2f} s: keep less, or all (0)."
        )
    room = clip.audio.shape[2]
    latent = vae.encode(wave[: math.ceil(room * rate / geometry.AUDIO_LATENT_RATE)].view(1, -1, 1))[..., :room]
    clip.audio[..., : latent.shape[2]] = latent
    kept = int(keep_seconds * geometry.AUDIO_LATENT_RATE) if keep_seconds else latent.shape[2]
    clip.audio_mask[..., :kept] = 0.0
    notes = []
    if seconds > clip_seconds:
        notes.append(f"The audio lasts {seconds:.2f} s: the first {clip_seconds:.2f} s are used")
    if (peak := audio["waveform"].abs().max().item()) > 1:
        notes.append(f"The audio peaks at {peak:.2f}: what is beyond 1 is clipped")
    return notes


def remake_span(video_mask: Tensor, audio_mask: Tensor, remake: str, start: float, end: float) -> None:
    """Have a part of a clip made anew: the picture, the sound or both, between two times in seconds (end 0: the end).

    Sets the masks, [B, 1, F, H, W] and [B, 1, L], to 1 there.
    """
    seconds = geometry.seconds(geometry.frames(video_mask.shape[2]))
    until = min(end or seconds, seconds)
    if start >= until:
        raise ValueError(
            f"What is remade begins at {start:.2f} s, but ends at {until:.2f} s: the clip lasts {seconds:.2f} s."
        )
    if "picture" in remake:
        first, after = reference.video_span(start, until)
        video_mask[:, :, first:after] = 1.0
    if "sound" in remake:
        first, after = reference.audio_span(start, until)
        audio_mask[..., first:after] = 1.0


def kept_notes(video_mask: Tensor, audio_mask: Tensor) -> list[str]:
    """Say what of a clip its masks keep."""
    return [reference.video_note(video_mask[0, 0, :, 0, 0]), reference.audio_note(audio_mask[0, 0])]


def span_inputs() -> list[io.Input]:
    """From when to when something is remade."""
    return [
        io.Float.Input(
            "remake_start",
            default=0.0,
            min=0.0,
            max=MAX_SECONDS,
            step=0.01,
            tooltip="Seconds from the start of the clip, where that which is remade begins.",
        ),
        io.Float.Input(
            "remake_end",
            default=0.0,
            min=0.0,
            max=MAX_SECONDS,
            step=0.01,
            tooltip="Seconds from the start of the clip, where that which is remade ends. 0 is the end of the clip.",
        ),
    ]


class OviReference(io.ComfyNode):
    """Any given images, video and sound to a joint latent that keeps them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="OviReference",
            display_name="Ovi Reference",
            category="Ovi",
            description="A latent for a clip of which images, video or sound are given: the given part is kept as it "
            "is, the rest is made to go with it. Sound for a video, video for a sound, a voice carried on, a last "
            "frame, a part made anew. Experimental: Ovi was trained with a given first frame only.",
            search_aliases=[
                "ovi video to audio",
                "ovi foley",
                "ovi audio to video",
                "ovi lip sync",
                "ovi voice",
                "ovi inpaint",
                "first last frame",
                "end image",
            ],
            is_experimental=True,
            inputs=[
                *size_inputs(),
                io.Combo.Input(
                    "fit",
                    options=list(image.FITS),
                    default="crop",
                    tooltip="How images and frames of another shape get the size: cropped from the centre, stretched, "
                    "padded with black, or refused.",
                ),
                io.Float.Input(
                    "fps",
                    default=geometry.FPS,
                    min=1.0,
                    max=1000.0,
                    step=0.001,
                    tooltip="Frames per second of the video given. Ovi works at 24: of another rate, the nearest "
                    "frame is taken each time.",
                ),
                io.Int.Input(
                    "keep_frames",
                    default=0,
                    min=0,
                    max=16384,
                    tooltip="How many frames of the video are kept, from its start: 4n + 1, a number between is "
                    "rounded down. 0 keeps all.",
                ),
                io.Float.Input(
                    "keep_seconds",
                    default=0.0,
                    min=0.0,
                    max=MAX_SECONDS,
                    step=0.01,
                    tooltip="How many seconds of the audio are kept, from its start. 0 keeps all.",
                ),
                io.Combo.Input(
                    "remake",
                    options=list(REMAKES),
                    default="nothing",
                    tooltip="What is made anew between remake_start and remake_end, though it is given.",
                ),
                *span_inputs(),
                batch_input(),
                io.Vae.Input("vae", optional=True, tooltip="The Wan 2.2 VAE, for images and video."),
                io.Vae.Input("audio_vae", optional=True, tooltip="From 'Load Ovi Audio VAE', for the audio."),
                io.Image.Input("start_image", optional=True, tooltip="One image, the first frame."),
                io.Image.Input("end_image", optional=True, tooltip="One image, the last four frames."),
                io.Image.Input("video", optional=True, tooltip="Frames from the start of the clip on."),
                io.Audio.Input(
                    "audio", optional=True, tooltip="Sound from the start of the clip on, mixed to one channel."
                ),
            ],
            outputs=[
                io.Latent.Output(tooltip="Joint latent of video and audio, with a noise mask that keeps what is given.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        width: int,
        height: int,
        length: int,
        fit: image.Fit,
        fps: float,
        keep_frames: int,
        keep_seconds: float,
        remake: str,
        remake_start: float,
        remake_end: float,
        batch_size: int,
        vae: Any = None,
        audio_vae: Any = None,
        start_image: Tensor | None = None,
        end_image: Tensor | None = None,
        video: Tensor | None = None,
        audio: Mapping[str, Any] | None = None,
    ) -> io.NodeOutput:
        """Encode what is given, mask what is kept, and say on the node what that is."""
        has_picture = start_image is not None or end_image is not None or video is not None
        if not has_picture and audio is None:
            raise ValueError(
                "Ovi Reference has nothing to keep: connect an image, a video or audio (a video file without sound "
                "has no audio), or use 'Empty Ovi Latent'."
            )
        if has_picture:
            if vae is None:
                raise ValueError("Ovi Reference has a picture but no VAE: connect 'Load VAE' to vae.")
            native.require_video_vae(vae)
        if audio is not None:
            if audio_vae is None:
                raise ValueError("Ovi Reference has audio but no VAE: connect 'Load Ovi Audio VAE' to audio_vae.")
            native.require_audio_vae(audio_vae)
        if start_image is not None and video is not None:
            raise ValueError("Ovi Reference has a start image and a video, which both begin the clip: take one away.")
        clip = Clip(width, height, length, batch_size)
        notes: list[str] = []
        if start_image is not None:
            keep_start_image(clip, vae, start_image, fit)
        if video is not None:
            notes += keep_video(clip, vae, video, fps, fit, keep_frames)
        if end_image is not None:
            keep_end_image(clip, vae, end_image, fit)
        if audio is not None:
            notes += keep_audio(clip, audio_vae, audio, keep_seconds)
        if remake != "nothing":
            remake_span(clip.video_mask, clip.audio_mask, remake, remake_start, remake_end)
        notes = [*kept_notes(clip.video_mask, clip.audio_mask), *notes, *geometry.trained_for(width, height, length)]
        return io.NodeOutput(clip.latent(), ui=show(cls, notes))


class OviRemake(io.ComfyNode):
    """A finished clip of which a part is made anew."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="OviRemake",
            display_name="Ovi Remake",
            category="Ovi",
            description="Masks a finished clip so that a sampler makes a part of it anew, all of it or a moment, and "
            "keeps the rest: other sound for the same picture, other picture for the same sound. Experimental: Ovi was "
            "trained with a given first frame only.",
            search_aliases=["ovi inpaint", "ovi noise mask", "ovi second pass", "freeze audio", "keep audio"],
            is_experimental=True,
            inputs=[
                io.Latent.Input("samples", tooltip="Joint latent from a sampler. A mask that it has is replaced."),
                io.Combo.Input("remake", options=list(REMAKES[1:]), default="sound", tooltip="What is made anew."),
                *span_inputs(),
            ],
            outputs=[io.Latent.Output(tooltip="The same latent, with a noise mask that keeps what is not remade.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, samples: dict[str, Any], remake: str, remake_start: float, remake_end: float) -> io.NodeOutput:
        """Make the masks, and say on the node what they keep."""
        video_mask, audio_mask = (torch.zeros_like(part[:, :1]) for part in native.latent_parts(samples))
        remake_span(video_mask, audio_mask, remake, remake_start, remake_end)
        masked = samples | {"noise_mask": NestedTensor((video_mask, audio_mask))}
        return io.NodeOutput(masked, ui=show(cls, kept_notes(video_mask, audio_mask)))
