"""Ovi Decode."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui
from comfy_execution.graph import ExecutionBlocker

from ..ovi import geometry, media
from ..ovi.native.latent import latent_parts
from ..ovi.native.vae import decode_audio, decode_video, require_audio_vae, require_video_vae
from ..ovi.spectrogram import spectrogram
from .notes import show

MAX_TILE = 4096  # pixels


class OviDecode(io.ComfyNode):
    """Decode a joint latent to frames and audio of the same duration."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare a LATENT and two VAEs in, IMAGE and AUDIO out."""
        return io.Schema(
            node_id="OviDecode",
            display_name="Ovi Decode",
            category="Ovi",
            description="Decodes video and audio to the same duration, for 'Create Video'. Connect only one VAE to "
            "decode only the video or only the audio. The clips of a batch follow one another.",
            search_aliases=["ovi vae decode", "decode audio video"],
            inputs=[
                io.Latent.Input("samples", tooltip="Joint latent from a sampler."),
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
                io.Int.Input(
                    "tile_size",
                    default=0,
                    min=0,
                    max=MAX_TILE,
                    step=geometry.SIZE_MULTIPLE,
                    tooltip="0 decodes whole frames. If this step runs out of memory, decode in tiles of this many "
                    "pixels: 512 is a good value.",
                ),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="The frames, for 'Create Video'."),
                io.Audio.Output("audio", display_name="audio", tooltip="The audio, for 'Create Video'."),
            ],
            hidden=[io.Hidden.unique_id],
        )

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
        if vae is None and audio_vae is None:
            raise ValueError("Ovi Decode has no VAE connected; it needs the video VAE, the audio VAE, or both.")
        if vae is not None:
            require_video_vae(vae)
        if audio_vae is not None:
            require_audio_vae(audio_vae)
        video, audio = latent_parts(samples)
        frames = geometry.frames(video.shape[2])
        seconds = geometry.seconds(frames, media.frame_rate(fps))
        notes, preview = [f"{frames} frames, {seconds:.2f} s"], {}
        images: Any = ExecutionBlocker("Ovi Decode has no images: no video VAE is connected to it.")
        decoded: Any = ExecutionBlocker("Ovi Decode has no audio: no audio VAE is connected to it.")
        if audio_vae is not None:
            waveforms = [decode_audio(audio_vae, part, seconds) for part in audio.split(1)]
            decoded = {"waveform": torch.cat(waveforms, dim=-1), "sample_rate": audio_vae.audio_sample_rate}
            notes += media.gap_notes(audio.shape[2], seconds)
            preview = ui.PreviewImage(spectrogram(decoded["waveform"], decoded["sample_rate"])).as_dict()
        if vae is not None:
            clips = [decode_video(vae, part, tile_size) for part in video.split(1)]
            images = torch.cat(clips) if len(clips) > 1 else clips[0]  # gigabytes: a single clip is not copied
        return io.NodeOutput(images, decoded, ui=preview | show(cls, notes).as_dict())
