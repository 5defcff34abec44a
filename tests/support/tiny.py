"""Tiny random weights under the release's file and key names, to test the wiring; what they generate is noise."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from spandrel.architectures.ESRGAN import ESRGAN
from torch import Tensor

from . import GOLDEN

KEYS = GOLDEN / "full_model_keys.json"
TEXT_DIM = 64  # the width of the text encoder in stand_ins/

OVI = "diffusion_models/Wan2_2-5B-Ovi_960x960_fp8_e4m3fn_scaled_KJ.safetensors"
DREAMID = "diffusion_models/dreamid_omni.fp8_e4m3fn.safetensors"
TEXT_ENCODER = "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors"
LANGUAGE_MODEL = "text_encoders/qwen3.5_4b_bf16.safetensors"
VIDEO_VAE = "vae/wan2.2_vae.safetensors"
AUDIO_VAE = "vae/v1-16.pth"
VOCODER = "vae/best_netG.pt"
LORA = "loras/Wan2_2_5B_FastWanFullAttn_lora_rank_128_bf16.safetensors"
UPSCALER = "upscale_models/RealESRGAN_x2.pth"
INTERPOLATOR = "frame_interpolation/film_net_fp16.safetensors"

SMALL = {  # what a CPU does in seconds, by node type
    "EmptyOviLatent": {"width": 256, "height": 160, "length": 49},
    "OviImageToVideo": {"width": 192, "height": 192, "length": 49},
    "OviReference": {"width": 192, "height": 192, "length": 49},
    "OviContinue": {"length": 49},
    "OviScheduler": {"steps": 4},
    "KSampler": {"steps": 4},
}

Draw = Callable[[Sequence[int], float], Tensor]


def everything(models: Path) -> None:
    """Write one of each into ComfyUI's folder of models, under the names that the shipped workflows ask for."""
    for folder in ("diffusion_models", "text_encoders", "vae", "loras", "upscale_models", "frame_interpolation"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    for name in (TEXT_ENCODER, LANGUAGE_MODEL):
        (models / name).touch()  # stand_ins/ loads a tiny one for an empty file
    ovi_model(models / OVI)
    shutil.copy(models / OVI, models / DREAMID)
    video_vae(models / VIDEO_VAE)
    audio_vae(models / AUDIO_VAE, models / VOCODER)
    lora(models / LORA)
    upscaler(models / UPSCALER)
    interpolator(models / INTERPOLATOR)


def fit(prompt: dict[str, Any]) -> None:
    """Fit a prompt (API form), in place, to these weights and a CPU."""
    for node in prompt.values():
        smaller = SMALL.get(node["class_type"], {})
        assert smaller.keys() <= node["inputs"].keys()
        node["inputs"] |= smaller


def ovi_model(
    path: Path,
    *,
    dim: int = 256,
    ffn: int = 256,
    layers: int = 12,
    text_dim: int = TEXT_DIM,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> None:
    """Write twin towers with the release's keys and narrower shapes; their velocities are near unit size.

    Twelve layers are the fewest with a block 11 to skip. What shapes cannot tell stays as in the release: heads of 128
    channels, 512 text tokens, both towers of one size.
    """
    conv_hidden = 256 * math.ceil(dim * 8 // 3 / 256)
    narrow = {3072: dim, 6 * 3072: 6 * dim, 14336: ffn, 4096: text_dim, 8192: conv_hidden}
    draw = _draw(seed, dtype)
    weights = {}
    for key, shape in json.loads(KEYS.read_text())["keys"].items():
        parts = key.split(".")
        if parts[1] == "blocks" and int(parts[2]) >= layers:
            continue
        shape = [narrow.get(size, size) for size in shape]
        if "norm" in parts[-2] and parts[-1] == "weight":
            weights[key] = 1 + draw(shape, 0.1)
        elif len(shape) == 1:
            weights[key] = draw(shape, 0.05)
        else:
            weights[key] = draw(shape, _unit(shape))
    save_file(weights, path)


def video_vae(path: Path, *, seed: int = 0) -> None:
    """Write a random autoencoder of the `taew2_2` kind: core's VAELoader opens it, its latent grid is the true one."""
    draw = _draw(seed, torch.float32)
    weights = {}
    for key, shape in _taew_shapes().items():
        weights[key] = draw(shape, _unit(shape)) if key.endswith(".weight") else torch.zeros(shape)
    weights["encoder.17.weight"] *= 5  # latents near unit size
    weights["decoder.22.bias"] += 0.5  # frames around grey
    save_file(weights, path)


def audio_vae(vae: Path, vocoder: Path, *, seed: int = 0) -> None:
    """Write MMAudio's 16 kHz VAE and its vocoder at full size, as published: neither normalised nor folded.

    bfloat16 halves the 1.1 GB; the audio is noise of a standard deviation near 0.1.
    """
    from ovi.audio_vae import MEL_BANDS, lowpass_filter, vae_shapes, vocoder_shapes

    draw = _draw(seed, torch.bfloat16)
    encoders = {key: draw(shape, 0.7) for key, shape in vae_shapes().items()}
    encoders["data_mean"] = torch.full((1, MEL_BANDS, 1), -2.0)
    encoders["data_std"] = torch.ones(1, MEL_BANDS, 1)
    generator: dict[str, Tensor] = {}
    for key, shape in vocoder_shapes().items():
        if key.endswith(".filter"):
            generator[key] = lowpass_filter()
        elif len(shape) == 1:
            generator[key] = draw(shape, 0.05)
        else:
            gain = {"ups": 1.0, "conv_post": 0.13}.get(key.split(".")[0], 0.5)
            generator[f"{key}_g"] = torch.full((shape[0], 1, 1), gain)
            generator[f"{key}_v"] = draw(shape, 1.0)
    torch.save(encoders, vae)
    torch.save({"generator": generator}, vocoder)


def lora(path: Path, *, dim: int = 256, rank: int = 4, seed: int = 0) -> None:
    """Write a LoRA of one layer of the video tower, in Wan's names, that says how it is to be sampled."""
    draw = _draw(seed, torch.bfloat16)
    shapes = {"lora_up": [dim, rank], "lora_down": [rank, dim]}
    weights = {f"diffusion_model.blocks.0.self_attn.q.{end}.weight": draw(shape, 0.1) for end, shape in shapes.items()}
    sampling = {"steps": 6, "shift": 6.0, "cfg": 1.0, "audio_cfg": 1.0, "sampler": "unipc"}
    save_file(weights, path, {"ovi_sampling": json.dumps(sampling)})


def upscaler(path: Path) -> None:
    """Write a random upscaler of the kind and scale of RealESRGAN_x2."""
    torch.manual_seed(0)
    model = ESRGAN(in_nc=12, num_filters=8, num_blocks=1, shuffle_factor=2)
    torch.save(model.state_dict(), path)


def interpolator(path: Path, *, width: int = 4) -> None:
    """Write a frame interpolator of the RIFE kind whose weights are zero: it gives the mean of two frames."""
    head = {"cnn0": (16, 3, 3, 3), "cnn1": (16, 16, 3, 3), "cnn2": (16, 16, 3, 3), "cnn3": (16, width, 4, 4)}
    shapes = {f"encode.{name}.weight": shape for name, shape in head.items()}
    shapes |= {f"encode.{name}.bias": (width if name == "cnn3" else 16,) for name in head}
    for block in range(5):
        inputs = (20 if block else 7) + 2 * width
        convolutions = {"conv0.0.0": (width // 2, inputs, 3, 3), "conv0.1.0": (width, width // 2, 3, 3)}
        convolutions |= {f"convblock.{i}.conv": (width, width, 3, 3) for i in range(8)}
        for name, shape in convolutions.items():
            shapes[f"blocks.{block}.{name}.weight"] = shape
            shapes[f"blocks.{block}.{name}.bias"] = shape[:1]
        shapes |= {f"blocks.{block}.convblock.{i}.beta": (1, width, 1, 1) for i in range(8)}
        shapes |= {f"blocks.{block}.lastconv.0.weight": (width, 52, 4, 4), f"blocks.{block}.lastconv.0.bias": (52,)}
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, path)


def _taew_shapes() -> dict[str, tuple[int, ...]]:
    """Keys and shapes of core's TAEHV with 48 latent channels: 16 times smaller in space, 4 times in time."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, inner: int, outer: int, kernel: int = 3, *, bias: bool = False) -> None:
        shapes[f"{name}.weight"] = (outer, inner, kernel, kernel)
        if bias:
            shapes[f"{name}.bias"] = (outer,)

    def memory_blocks(part: str, numbers: range, width: int) -> None:
        for number in numbers:
            for layer, inner in ((0, 2 * width), (2, width), (4, width)):
                conv(f"{part}.{number}.conv.{layer}", inner, width, bias=True)

    conv("encoder.0", 3 * 2 * 2, 64, bias=True)
    for first, frames in ((2, 2), (7, 2), (12, 1)):
        conv(f"encoder.{first}.conv", 64 * frames, 64, 1)
        conv(f"encoder.{first + 1}", 64, 64)
        memory_blocks("encoder", range(first + 2, first + 5), 64)
    conv("encoder.17", 64, 48, bias=True)
    conv("decoder.1", 48, 256, bias=True)
    for first, width, outer, frames in ((3, 256, 128, 1), (9, 128, 64, 2), (15, 64, 64, 2)):
        memory_blocks("decoder", range(first, first + 3), width)
        conv(f"decoder.{first + 4}.conv", width, width * frames, 1)
        conv(f"decoder.{first + 5}", width, outer)
    conv("decoder.22", 64, 3 * 2 * 2, bias=True)
    return shapes


def _unit(shape: Sequence[int]) -> float:
    """The scale of a weight that keeps the size of what it multiplies."""
    return float(math.prod(shape[1:])) ** -0.5


def _draw(seed: int, dtype: torch.dtype) -> Draw:
    """Return `draw(shape, scale)`: normal numbers of that standard deviation from one seeded stream."""
    generator = torch.Generator().manual_seed(seed)
    return lambda shape, scale: torch.randn(tuple(shape), generator=generator, dtype=dtype) * scale
