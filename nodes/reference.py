"""Ovi Reference and Ovi Remake: what of a clip is preserved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy.nested_tensor import NestedTensor
from comfy_api.latest import io
from torch import Tensor

from ..ovi import geometry, image, media
from ..ovi.native.joint import JointLatent, preserved_note, regenerate_between
from ..ovi.native.latent import latent_parts
from ..ovi.native.vae import require_audio_vae, require_video_vae
from .inputs import (
    REGENERATED,
    batch_input,
    fit_input,
    fps_input,
    regenerated_inputs,
    seconds_input,
    size_inputs,
)
from .notes import show

NOTHING = "nothing"


class OviReference(io.ComfyNode):
    """Create a joint latent that preserves the images, video and audio it gets."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare images, video, audio and what to preserve in, a LATENT out."""
        return io.Schema(
            node_id="OviReference",
            display_name="Ovi Reference",
            category="Ovi/latent",
            description="Creates a latent that preserves the images, video or audio you connect; the rest is generated "
            "to match. Use it for audio to a video, a video to audio, a voice that continues, a last frame, or to "
            "regenerate a part of a clip. Experimental: Ovi was trained with a first frame as its only reference.",
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
                fit_input("images and frames"),
                fps_input(),
                io.Int.Input(
                    "keep_frames",
                    default=0,
                    min=0,
                    max=geometry.MAX_SIZE,
                    tooltip="How many frames of the video to preserve, from its start. Latents hold 4n + 1 frames, so "
                    "other numbers are rounded down. 0 preserves all.",
                ),
                seconds_input(
                    "keep_seconds",
                    "How many seconds of the audio to preserve, from its start: 0.04 or more, rounded down to whole "
                    "audio latents of 0.032 seconds. 0 preserves all.",
                ),
                io.Combo.Input(
                    "remake",
                    options=[NOTHING, *REGENERATED],
                    default=NOTHING,
                    tooltip="What to regenerate between remake_start and remake_end, although it is connected.",
                ),
                *regenerated_inputs(),
                batch_input(),
                io.Vae.Input("vae", optional=True, tooltip="The Wan 2.2 VAE, for images and video."),
                io.Vae.Input("audio_vae", optional=True, tooltip="From 'Load Ovi Audio VAE', for the audio."),
                io.Image.Input("start_image", optional=True, tooltip="One image, the first frame."),
                io.Image.Input("end_image", optional=True, tooltip="One image, the last four frames."),
                io.Image.Input(
                    "video", optional=True, tooltip="Frames of a video, which begins at the start of the clip."
                ),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="Audio that begins at the start of the clip. It is mixed down to mono.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    tooltip="Joint latent of video and audio, with a noise mask that preserves what is connected."
                ),
                io.Audio.Output(
                    "own_audio",
                    display_name="own_audio",
                    tooltip="The connected audio itself, cut to the clip: at its own rate, in all its channels. "
                    "Connect it to 'Create Video' in place of the decoded one.",
                ),
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
        """Encode what is connected, mask what is preserved, and show on the node what that is."""
        has_images = start_image is not None or end_image is not None or video is not None
        if not has_images and audio is None:
            raise ValueError(
                "Ovi Reference has nothing to preserve: connect an image, a video or audio (a video file without an "
                "audio track has no audio), or use 'Empty Ovi Latent'."
            )
        if has_images:
            require_video_vae(vae, "Ovi Reference has images")
        if audio is not None:
            require_audio_vae(audio_vae, "Ovi Reference has audio")
        if start_image is not None and video is not None:
            raise ValueError(
                "Ovi Reference has both a start image and a video, but the clip can start with only one: disconnect "
                "the other."
            )
        joint = JointLatent(width, height, length, batch_size)
        notes: list[str] = []
        if start_image is not None:
            joint.preserve_start_image(vae, start_image, fit)
        if video is not None:
            notes += joint.preserve_video(vae, video, fps, fit, keep_frames)
        if end_image is not None:
            joint.preserve_end_image(vae, end_image, fit)
        if audio is not None:
            notes += joint.preserve_audio(audio_vae, audio, keep_seconds)
        if remake != NOTHING:
            of_video, of_audio = REGENERATED[remake]
            regenerate_between(
                joint.video_mask, joint.audio_mask, remake_start, remake_end, video=of_video, audio=of_audio
            )
        own_audio = None if audio is None else media.clipped(audio, length)
        return io.NodeOutput(joint.latent(), own_audio, ui=show(cls, joint.notes(notes)))


class OviRemake(io.ComfyNode):
    """Mask a part of a finished clip, to regenerate it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare a LATENT and what to regenerate in, a LATENT out."""
        return io.Schema(
            node_id="OviRemake",
            display_name="Ovi Remake",
            category="Ovi/latent",
            description="Masks a finished clip so that a sampler regenerates a part of it and preserves the rest: new "
            "audio for the same video, new video for the same audio, or a few seconds of both. Experimental: Ovi was "
            "trained with a first frame as its only reference.",
            search_aliases=["ovi inpaint", "ovi noise mask", "ovi second pass", "freeze audio", "keep audio"],
            is_experimental=True,
            inputs=[
                io.Latent.Input("samples", tooltip="Joint latent from a sampler. Its own mask, if any, is replaced."),
                io.Combo.Input("remake", options=list(REGENERATED), default="audio", tooltip="What to regenerate."),
                *regenerated_inputs(),
            ],
            outputs=[
                io.Latent.Output(tooltip="The same latent, with a noise mask that preserves what is not regenerated.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, samples: dict[str, Any], remake: str, remake_start: float, remake_end: float) -> io.NodeOutput:
        """Create the masks, and show on the node what they preserve."""
        video_mask, audio_mask = (torch.zeros_like(part[:, :1]) for part in latent_parts(samples))
        video, audio = REGENERATED[remake]
        regenerate_between(video_mask, audio_mask, remake_start, remake_end, video=video, audio=audio)
        masked = samples | {"noise_mask": NestedTensor((video_mask, audio_mask))}
        return io.NodeOutput(masked, ui=show(cls, [preserved_note(video_mask, audio_mask)]))
