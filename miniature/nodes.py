"""Loaders of the miniature's text encoder and codecs, which stand where the graphs have the real ones.

Core's loaders open no UMT5 but the full-size one, and know no such codecs.
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

MIN_TOKENS = 32  # to which texts are padded: all that the miniature reads


class VideoModel(nn.Module):
    """The video codec with the scale of Wan 2.2's latents, which ComfyUI's Wan22 format takes off again."""

    def __init__(self) -> None:
        super().__init__()
        self.codec = VideoCodec()
        self.format = comfy.latent_formats.Wan22()

    def encode(self, pictures: Tensor) -> Tensor:
        """[B, 3, T, H, W] → [B, 48, F, H / 16, W / 16]."""
        return self.format.process_out(self.codec.encode(pictures))

    def decode(self, latents: Tensor) -> Tensor:
        """[B, 48, F, h, w] → [B, 3, T, 16 h, 16 w]."""
        return self.codec.decode(self.format.process_in(latents))


class AudioModel(nn.Module):
    """The audio codec, with channels."""

    def __init__(self) -> None:
        super().__init__()
        self.codec = AudioCodec()

    def encode(self, sounds: Tensor) -> Tensor:
        """[B, channels, samples] → [B, 20, L]."""
        return self.codec.encode(sounds.mean(1))

    def decode(self, latents: Tensor) -> Tensor:
        """[B, 20, L] → [B, 1, samples]."""
        return self.codec.decode(latents)[:, None]


def video_vae() -> comfy.sd.VAE:
    """The video codec as ComfyUI's VAE."""
    vae = _vae(VideoModel(), channels=48, dim=3, output=3)
    vae.upscale_ratio = (lambda frames: max(0, 4 * frames - 3), 16, 16)
    vae.upscale_index_formula = (4, 16, 16)
    vae.downscale_ratio = (lambda frames: max(0, (frames + 3) // 4), 16, 16)
    vae.downscale_index_formula = (4, 16, 16)
    return vae


def audio_vae() -> comfy.sd.VAE:
    """The audio codec as ComfyUI's VAE."""
    vae = _vae(AudioModel(), channels=20, dim=1, output=1)
    vae.audio_sample_rate = RATE
    vae.upscale_ratio = vae.downscale_ratio = 512
    vae.process_input = vae.process_output = lambda sounds: sounds
    vae.crop_input = False
    return vae


def _vae(model: nn.Module, *, channels: int, dim: int, output: int) -> comfy.sd.VAE:
    """A VAE of ComfyUI around a model of ours."""
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.ones(1)})  # the plainest kind that there is
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
    """A UMT5 of ComfyUI's own class from its weights, with its sentencepiece model beside them as "spiece_model"."""
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


class OviMiniatureText(io.ComfyNode):
    """In the place of core's CLIPLoader."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Only an output."""
        return io.Schema(
            node_id="OviMiniatureText",
            display_name="Load Miniature Text Encoder",
            category="Ovi/miniature",
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Load it from the folder of weights."""
        return io.NodeOutput(text_encoder(load_file(WEIGHTS / "umt5.safetensors")))


class OviMiniatureVideoVAE(io.ComfyNode):
    """In the place of core's VAELoader."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Only an output."""
        return io.Schema(
            node_id="OviMiniatureVideoVAE",
            display_name="Load Miniature Video VAE",
            category="Ovi/miniature",
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Make it."""
        return io.NodeOutput(video_vae())


class OviMiniatureAudioVAE(io.ComfyNode):
    """In the place of Load Ovi Audio VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Only an output."""
        return io.Schema(
            node_id="OviMiniatureAudioVAE",
            display_name="Load Miniature Audio VAE",
            category="Ovi/miniature",
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Make it."""
        return io.NodeOutput(audio_vae())


class Miniature(ComfyExtension):
    """The loaders of this folder."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All of them."""
        return [OviMiniatureText, OviMiniatureVideoVAE, OviMiniatureAudioVAE]
