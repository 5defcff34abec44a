"""Ovi Guide: an image, frames or audio at any time of a clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..ovi import geometry
from ..ovi.image import Fit
from ..ovi.native.joint import JointLatent
from ..ovi.native.vae import require_audio_vae, require_video_vae
from .inputs import fit_input, fps_input
from .notes import show


class OviGuide(io.ComfyNode):
    """Preserve an image, a stretch of frames or of audio at any time of a clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare a LATENT, media and their place in, a LATENT out."""
        return io.Schema(
            node_id="OviGuide",
            display_name="Ovi Guide",
            category="Ovi/latent",
            description="Preserves an image, some frames or some audio at any time of a clip; the rest is generated to "
            "match. One node for each guide, in a row. Experimental: Ovi was trained with a first frame as its only "
            "reference.",
            search_aliases=["ovi keyframe", "ovi add guide", "guide frame", "middle frame", "ovi first last frame"],
            is_experimental=True,
            inputs=[
                io.Latent.Input(
                    "latent",
                    tooltip="From 'Empty Ovi Latent' or any other node that creates a joint latent, or from the guide "
                    "before.",
                ),
                io.Int.Input(
                    "frame",
                    default=0,
                    min=-geometry.MAX_SIZE,
                    max=geometry.MAX_SIZE,
                    tooltip="Where the guide begins: 0 is the first frame, 24 is one second later, -1 is the last "
                    "frame. A latent holds four frames, so an image fills the four around its own: 40 becomes 37 to "
                    "40.",
                ),
                fit_input("images and frames"),
                fps_input(),
                io.Vae.Input("vae", optional=True, tooltip="The Wan 2.2 VAE, for images and video."),
                io.Vae.Input("audio_vae", optional=True, tooltip="From 'Load Ovi Audio VAE', for the audio."),
                io.Image.Input("image", optional=True, tooltip="One image, or frames of a video."),
                io.Audio.Input("audio", optional=True, tooltip="Audio that begins there. It is mixed down to mono."),
            ],
            outputs=[
                io.Latent.Output(
                    tooltip="The same latent with the guide in it, and a noise mask that preserves it. Connect to a "
                    "sampler or to the next guide."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        latent: dict[str, Any],
        frame: int,
        fit: Fit,
        fps: float,
        vae: Any = None,
        audio_vae: Any = None,
        image: Tensor | None = None,
        audio: Mapping[str, Any] | None = None,
    ) -> io.NodeOutput:
        """Encode the guide, and show on the node what it fills."""
        if image is None and audio is None:
            raise ValueError("Ovi Guide has neither an image nor audio: connect one of them, or both.")
        joint = JointLatent.of(latent)
        notes: list[str] = []
        if image is not None:
            require_video_vae(vae, "Ovi Guide has an image")
            notes.append(joint.guide_video(vae, image, fps, fit, frame))
        if audio is not None:
            require_audio_vae(audio_vae, "Ovi Guide has audio")
            notes += joint.guide_audio(audio_vae, audio, frame)
        return io.NodeOutput(latent | joint.latent(), ui=show(cls, notes))
