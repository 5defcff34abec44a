"""Ovi Decode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy_api.latest import io, ui

import nodes

from ..ovi import geometry, media
from ..ovi.native.latent import latent_parts
from ..ovi.native.vae import decode_audio, decode_video, require_audio_vae, require_video_vae
from ..ovi.spectrogram import spectrogram
from .inputs import mismatch, tile_size_input
from .notes import show

NO_VAE = "Ovi Decode has no VAE connected; it needs the video VAE, the audio VAE, or both."


def check_vaes(vae: Any, audio_vae: Any) -> None:
    """Raise ValueError unless at least one VAE is there, and each is the one that Ovi needs."""
    if vae is None and audio_vae is None:
        raise ValueError(NO_VAE)
    if vae is not None:
        require_video_vae(vae)
    if audio_vae is not None:
        require_audio_vae(audio_vae)


def check_users(prompt: Mapping[str, Any], node: str, vae: Any, audio_vae: Any) -> None:
    """Raise ValueError where a node of a prompt needs what this one does not decode, without a VAE for it.

    An optional input, such as the audio of Create Video, goes without.
    """
    for user in prompt.values():
        kind = user["class_type"]
        for name, value in user["inputs"].items():
            if vae is None and value == [node, 0]:
                raise ValueError(f"Ovi Decode has no video VAE connected, but its images go to {kind}: connect one.")
            if audio_vae is None and value == [node, 1] and is_required(kind, name):
                raise ValueError(f"Ovi Decode has no audio VAE connected, but its audio goes to {kind}: connect one.")


def is_required(kind: str, name: str) -> bool:
    """Whether nodes of a class cannot do without an input."""
    return name in nodes.NODE_CLASS_MAPPINGS[kind].INPUT_TYPES().get("required", {})


class OviDecode(io.ComfyNode):
    """Decode a joint latent to frames and audio of the same duration."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare a LATENT and two VAEs in, IMAGE and AUDIO out."""
        return io.Schema(
            node_id="OviDecode",
            display_name="Ovi Decode",
            category="Ovi/latent",
            description="Decodes video and audio to the same duration, for 'Create Video'. Connect only one VAE to "
            "decode only the video or only the audio. The clips of a batch follow one another.",
            search_aliases=["ovi vae decode", "decode audio video"],
            inputs=[
                io.Latent.Input("samples", lazy=True, tooltip="Joint latent from a sampler."),
                io.Vae.Input("vae", optional=True, tooltip="The Wan 2.2 VAE, for the video."),
                io.Vae.Input("audio_vae", optional=True, tooltip="From 'Load Ovi Audio VAE', for the audio."),
                io.Float.Input(
                    "fps",
                    default=geometry.FPS,
                    min=1.0,
                    max=120.0,
                    step=1.0,
                    tooltip="Frames per second of the video that you create from the frames. The audio is trimmed or "
                    "padded with silence to the same duration. Ovi generates 24.",
                ),
                tile_size_input(),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="The frames, for 'Create Video'."),
                io.Audio.Output("audio", display_name="audio", tooltip="The audio, for 'Create Video'."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def validate_inputs(cls, input_types: dict[str, str]) -> bool | str:
        """Say that no VAE is connected when the prompt is queued; ComfyUI leaves the sockets' types to this, too."""
        if not {"vae", "audio_vae"} & input_types.keys():
            return NO_VAE
        return mismatch(cls, input_types) or True

    @classmethod
    def check_lazy_status(cls, samples: Any = None, vae: Any = None, audio_vae: Any = None, **_: object) -> list[str]:
        """Look at the VAEs, and at what is to be decoded, before the latent is sampled."""
        check_vaes(vae, audio_vae)
        check_users(cls.hidden.prompt or {}, cls.hidden.unique_id, vae, audio_vae)
        return [] if samples is not None else ["samples"]

    @classmethod
    def execute(
        cls,
        samples: dict[str, Any],
        fps: float,
        tile_size: int,
        vae: Any = None,
        audio_vae: Any = None,
    ) -> io.NodeOutput:
        """Decode the audio first, since it is quick; show its spectrogram and the duration on the node."""
        check_vaes(vae, audio_vae)
        video, audio = latent_parts(samples)
        frames = geometry.frames(video.shape[2])
        seconds = geometry.seconds(frames, media.frame_rate(fps))
        absent = [f", no {what} VAE" for what, given in (("video", vae), ("audio", audio_vae)) if given is None]
        notes, preview = [f"{frames} frames, {seconds:.2f} s{''.join(absent)}"], {}
        images: Any = None
        decoded: Any = None
        if audio_vae is not None:
            waveforms = [decode_audio(audio_vae, part, seconds) for part in audio.split(1)]
            decoded = {"waveform": torch.cat(waveforms, dim=-1), "sample_rate": audio_vae.audio_sample_rate}
            notes = media.gap_notes(audio.shape[2], seconds) + notes
            preview = ui.PreviewImage(spectrogram(decoded["waveform"], decoded["sample_rate"])).as_dict()
        if vae is not None:
            clips = [decode_video(vae, part, tile_size) for part in video.split(1)]
            images = torch.cat(clips) if len(clips) > 1 else clips[0]  # gigabytes: a single clip is not copied
        return io.NodeOutput(images, decoded, ui=preview | show(cls, notes).as_dict())
