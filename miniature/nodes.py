"""Loaders of the miniature's text encoders and codecs, which replace core's in the graphs.

Of UMT5, core's loaders open only the full-size one, and they do not know such codecs. The worlds share the video codec.
"""

from __future__ import annotations

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from comfy.supported_models_base import ClipTarget
from comfy.text_encoders import wan
from comfy_api.latest import ComfyExtension, io
from safetensors.torch import load_file
from torch import Tensor, nn

from . import WEIGHTS
from .codecs import RATE, AudioCodec, VideoCodec
from .voice import VoiceCodec

WORLDS = {"ball": ("umt5.safetensors", AudioCodec), "talking": ("umt5_talking.safetensors", VoiceCodec)}
MIN_TOKENS = 32  # to which texts are padded: as many as the miniature reads


class VideoModel(nn.Module):
    """The video codec with latents on Wan 2.2's scale, which ComfyUI's Wan22 format normalises."""

    def __init__(self) -> None:
        super().__init__()
        self.codec = VideoCodec()
        self.format = comfy.latent_formats.Wan22()

    def encode(self, frames: Tensor) -> Tensor:
        """Encode [B, 3, T, H, W] → [B, 48, F, H / 16, W / 16]."""
        return self.format.process_out(self.codec.encode(frames))

    def decode(self, latents: Tensor) -> Tensor:
        """Decode [B, 48, F, h, w] → [B, 3, T, 16 h, 16 w]."""
        return self.codec.decode(self.format.process_in(latents))


class AudioModel(nn.Module):
    """An audio codec on waveforms with channels, the ball's unless another is given."""

    def __init__(self, codec: AudioCodec | None = None) -> None:
        super().__init__()
        self.codec = codec or AudioCodec()

    def encode(self, waveforms: Tensor) -> Tensor:
        """Encode the mean of the channels, [B, channels, samples] → [B, 20, L]."""
        return self.codec.encode(waveforms.mean(1))

    def decode(self, latents: Tensor) -> Tensor:
        """Decode [B, 20, L] → [B, 1, samples]."""
        return self.codec.decode(latents)[:, None]


def video_vae() -> comfy.sd.VAE:
    """Return the video codec as a VAE of ComfyUI."""
    vae = _vae(VideoModel(), channels=48, dim=3, output=3)
    vae.upscale_ratio = (lambda frames: max(0, 4 * frames - 3), 16, 16)
    vae.upscale_index_formula = (4, 16, 16)
    vae.downscale_ratio = (lambda frames: max(0, (frames + 3) // 4), 16, 16)
    vae.downscale_index_formula = (4, 16, 16)
    return vae


def audio_vae(codec: AudioCodec | None = None) -> comfy.sd.VAE:
    """Return an audio codec as a VAE of ComfyUI, the ball's unless another is given."""
    vae = _vae(AudioModel(codec), channels=20, dim=1, output=1)
    vae.audio_sample_rate = RATE
    vae.upscale_ratio = vae.downscale_ratio = 512
    vae.process_input = vae.process_output = lambda waveforms: waveforms
    vae.crop_input = False
    return vae


def _vae(model: nn.Module, *, channels: int, dim: int, output: int) -> comfy.sd.VAE:
    """Return a VAE of ComfyUI around a model.

    `channels` of its latents, their `dim` (time and space) and the channels of its `output` are ComfyUI's attributes.
    """
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.ones(1)})  # the simplest kind that ComfyUI has
    vae.first_stage_model = model.eval()
    vae.vae_dtype = torch.float32
    vae.latent_channels, vae.latent_dim, vae.output_channels = channels, dim, output
    vae.disable_offload = False
    vae.memory_used_encode = vae.memory_used_decode = lambda shape, dtype: 1e8
    vae.patcher = comfy.model_patcher.CoreModelPatcher(
        model, load_device=vae.device, offload_device=comfy.model_management.vae_offload_device()
    )
    return vae


def text_encoder(weights: dict[str, Tensor]) -> comfy.sd.CLIP:
    """Return a UMT5 of ComfyUI's own class with these weights; "spiece_model" among them is its sentencepiece model."""
    weights = dict(weights)
    spiece = weights.pop("spiece_model")
    bias = weights["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    inner, width = weights["encoder.block.0.layer.0.SelfAttention.q.weight"].shape
    config = {
        "d_model": width,
        "d_ff": len(weights["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"]),
        "d_kv": inner // bias.shape[1],
        "num_heads": bias.shape[1],
        "num_layers": 1 + max(int(key.split(".")[2]) for key in weights if key.startswith("encoder.block.")),
        "vocab_size": len(weights["shared.weight"]),
    }
    clip = comfy.sd.CLIP(
        ClipTarget(wan.WanT5Tokenizer, wan.te(dtype_t5=torch.float32)),
        tokenizer_data={"spiece_model": spiece, "umt5xxl_min_length": MIN_TOKENS},
        model_options={"umt5xxl_model_config": config},
    )
    clip.load_sd(weights)
    return clip


def world_input() -> io.Combo.Input:
    """Return the input that names the world."""
    return io.Combo.Input(
        "world",
        options=list(WORLDS),
        default="ball",
        optional=True,
        tooltip="What the miniature generates: a bouncing ball with a bell, or a talking face.",
    )


class OviMiniatureText(io.ComfyNode):
    """Loader of the text encoder, for core's CLIPLoader."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare the world and the text encoder."""
        return io.Schema(
            node_id="OviMiniatureText",
            display_name="Load Miniature Text Encoder",
            category="Ovi/miniature",
            inputs=[world_input()],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def execute(cls, world: str = "ball") -> io.NodeOutput:
        """Load the text encoder from the folder of weights."""
        return io.NodeOutput(text_encoder(load_file(WEIGHTS / WORLDS[world][0])))


class OviMiniatureVideoVAE(io.ComfyNode):
    """Loader of the video codec, for core's VAELoader."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare a node without inputs."""
        return io.Schema(
            node_id="OviMiniatureVideoVAE",
            display_name="Load Miniature Video VAE",
            category="Ovi/miniature",
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Return the VAE."""
        return io.NodeOutput(video_vae())


class OviMiniatureAudioVAE(io.ComfyNode):
    """Loader of the audio codec, for Load Ovi Audio VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare the world and the VAE."""
        return io.Schema(
            node_id="OviMiniatureAudioVAE",
            display_name="Load Miniature Audio VAE",
            category="Ovi/miniature",
            inputs=[world_input()],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls, world: str = "ball") -> io.NodeOutput:
        """Return the VAE."""
        return io.NodeOutput(audio_vae(WORLDS[world][1]()))


class Miniature(ComfyExtension):
    """The loaders of this folder."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """List the loaders."""
        return [OviMiniatureText, OviMiniatureVideoVAE, OviMiniatureAudioVAE]
