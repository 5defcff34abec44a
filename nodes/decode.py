"""From latents to picture and sound: OviDecode."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui
from comfy_execution.graph import ExecutionBlocker
from torch import Tensor
from torch.nn.functional import pad

from ..ovi import geometry, native
from ..ovi.spectrogram import spectrogram

MAX_TILE = 4096  # pixels


def decode_frames(vae: Any, latent: Tensor, tile_size: int) -> Tensor:
    """Frames [T, H, W, 3] of one clip's video latent [1, 48, F, h, w].

    Tiles, in pixels (0: none), cut the picture but never the time: joints in time flicker.
    """
    if tile_size:
        stride = vae.spacial_compression_decode()
        tile = tile_size // stride
        frames = vae.decode_tiled(latent, tile_x=tile, tile_y=tile, overlap=tile // 4)
    else:
        frames = vae.decode(latent)
    return frames.flatten(0, 1)


def decode_sound(vae: Any, latent: Tensor, seconds: float) -> Tensor:
    """Waveform [1, channels, samples] of a clip's audio latent [1, 20, L], cut or filled up to `seconds`."""
    waveform = vae.decode(latent).movedim(-1, 1)
    return pad(waveform, (0, round(seconds * vae.audio_sample_rate) - waveform.shape[-1]))


class OviDecode(io.ComfyNode):
    """A joint latent to frames and sound of the same length."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="OviDecode",
            display_name="Ovi Decode",
            category="Ovi",
            description="Decodes picture and sound to the same length, for 'Create Video'. Leave out a VAE to decode "
            "only the other. The clips of a batch follow one another, picture and sound in the same order.",
            search_aliases=["ovi vae decode", "decode audio video"],
            inputs=[
                io.Latent.Input("samples", tooltip="Joint latent from a sampler."),
                io.Vae.Input("vae", optional=True, tooltip="The Wan 2.2 VAE, for the picture."),
                io.Vae.Input("audio_vae", optional=True, tooltip="From 'Load Ovi Audio VAE', for the sound."),
                io.Float.Input(
                    "fps",
                    default=geometry.FPS,
                    min=1.0,
                    max=120.0,
                    step=1.0,
                    tooltip="Frames per second of the video that is made of the frames: the sound is cut, or padded "
                    "with silence, to its length. Ovi makes 24.",
                ),
                io.Int.Input(
                    "tile_size",
                    default=0,
                    min=0,
                    max=MAX_TILE,
                    step=geometry.SIZE_MULTIPLE,
                    tooltip="0 decodes whole frames. Another value decodes in tiles of so many pixels, for cards that "
                    "run out of memory here; 512 is a good one.",
                ),
            ],
            outputs=[
                io.Image.Output("images", display_name="images"),
                io.Audio.Output("audio", display_name="audio"),
            ],
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
        """Decode the sound first, since it is quick, and show its spectrogram on the node."""
        if vae is None and audio_vae is None:
            raise ValueError("Ovi Decode has no VAE connected; it needs the video VAE, the audio VAE, or both.")
        video, audio = native.latent_parts(samples)
        seconds = geometry.seconds(geometry.frames(video.shape[2]), fps)
        preview = None
        images: Any = ExecutionBlocker("Ovi Decode made no picture: no video VAE is connected to it.")
        sound: Any = ExecutionBlocker("Ovi Decode made no sound: no audio VAE is connected to it.")
        if audio_vae is not None:
            native.require_audio_vae(audio_vae)
            waveforms = [decode_sound(audio_vae, clip, seconds) for clip in audio.split(1)]
            sound = {"waveform": torch.cat(waveforms, dim=-1), "sample_rate": audio_vae.audio_sample_rate}
            preview = ui.PreviewImage(spectrogram(sound["waveform"], sound["sample_rate"]))
        if vae is not None:
            native.require_video_vae(vae)
            clips = [decode_frames(vae, clip, tile_size) for clip in video.split(1)]
            images = torch.cat(clips) if len(clips) > 1 else clips[0]  # no second copy of what is gigabytes
        return io.NodeOutput(images, sound, ui=preview)
