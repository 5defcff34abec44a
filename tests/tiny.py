"""Tiny random weights under the published file and key names, made on the spot: they prove the pipes and make noise.

    python tests/tiny.py COMFYUI MODELS

fills the folder MODELS of a ComfyUI with all of them. What needs ComfyUI's networks imports them when called.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

KEYS = Path(__file__).parent / "golden" / "full_model_keys.json"
TEXT_DIM = 64  # the width of the text encoder in stand_ins/

OVI = "diffusion_models/model_960x960.safetensors"
VIDEO_VAE = "vae/wan2.2_vae.safetensors"
AUDIO_VAE = "vae/v1-16.pth"
VOCODER = "vae/best_netG.pt"

Draw = Callable[..., Tensor]


def ovi_model(
    path: Path,
    *,
    dim: int = 256,
    ffn: int = 256,
    layers: int = 2,
    text_dim: int = TEXT_DIM,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> None:
    """Write a twin tower with the published keys and narrower shapes; its velocities are near unit size.

    What shapes cannot tell stays as published: heads of 128 channels, 512 text tokens, both towers of one size.
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
            weights[key] = draw(shape, _fan_in(shape) ** -0.5)
    _save(weights, path)


def video_vae(path: Path, *, seed: int = 0) -> None:
    """Write a random autoencoder of the `taew2_2` kind: core's VAELoader opens it, its latent grid is the true one."""
    from comfy.taesd.taehv import TAEHV

    draw = _draw(seed, torch.float32)
    weights = {}
    for key, shape in _shapes(lambda: TAEHV(48)):
        weights[key] = draw(shape, _fan_in(shape) ** -0.5) if len(shape) > 1 else torch.zeros(shape)
    weights["encoder.17.weight"] *= 5  # latents near unit size
    weights["decoder.22.bias"] += 0.5  # pictures around grey
    _save(weights, path)


def audio_vae(vae: Path, vocoder: Path, *, seed: int = 0) -> None:
    """Write MMAudio's 16 kHz VAE and its vocoder at full size, raw as published: neither normalised nor folded.

    bfloat16 halves the 1.1 GB; the sound is noise of a standard deviation near 0.1.
    """
    from comfy.ldm.mmaudio.vae.alias_free_torch import kaiser_sinc_filter1d
    from comfy.ldm.mmaudio.vae.autoencoder import AudioAutoencoder
    from comfy.ldm.mmaudio.vae.vae import DATA_MEAN_80D, DATA_STD_80D

    draw = _draw(seed, torch.bfloat16)
    low_pass = kaiser_sinc_filter1d(0.25, 0.3, 12)
    files: dict[str, dict[str, Tensor]] = {"vae": {}, "vocoder": {}, "mel_converter": {}}
    for key, shape in _shapes(lambda: AudioAutoencoder(mode="16k")):
        part, name = key.split(".", 1)
        file = files[part]
        if part == "vae":
            file[name] = draw(shape, 0.7) if len(shape) else torch.zeros(shape)
        elif name.endswith(".filter"):
            file[name] = low_pass
        elif len(shape) == 1:
            file[name] = draw(shape, 0.05)
        else:
            file[name + "_v"] = draw(shape, 1.0)
            gain = 1.0 if name.startswith("ups.") else 0.06 if name.startswith("conv_post.") else 0.5
            file[name + "_g"] = torch.full((shape[0], 1, 1), gain)
    files["vae"]["data_mean"] = torch.tensor(DATA_MEAN_80D).view(1, -1, 1)
    files["vae"]["data_std"] = torch.tensor(DATA_STD_80D).view(1, -1, 1)
    for path, content in ((vae, files["vae"]), (vocoder, {"generator": files["vocoder"]})):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)


def everything(models: Path) -> None:
    """Write one of each into ComfyUI's folder of models, under the names that the shipped workflows ask for."""
    ovi_model(models / OVI)
    video_vae(models / VIDEO_VAE)
    audio_vae(models / AUDIO_VAE, models / VOCODER)


def start(comfyui: Path, models: Path) -> subprocess.Popen[bytes]:
    """Start `everything` in a process of its own: importing ComfyUI's networks settles its devices for good."""
    return subprocess.Popen([sys.executable, __file__, str(comfyui), str(models)])


def _draw(seed: int, dtype: torch.dtype) -> Draw:
    """Return `draw(shape, scale)`: normal numbers of that standard deviation from one seeded stream."""
    generator = torch.Generator().manual_seed(seed)
    return lambda shape, scale: torch.randn(shape, generator=generator, dtype=dtype) * scale


def _fan_in(shape: list[int]) -> int:
    return math.prod(shape[1:])


def _shapes(build: Callable[[], torch.nn.Module]) -> list[tuple[str, list[int]]]:
    """Keys and shapes of a network, built without memory."""
    with torch.device("meta"):
        return [(key, list(value.shape)) for key, value in build().state_dict().items()]


def _save(weights: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(weights), path)


if __name__ == "__main__":
    comfyui, models = sys.argv[1:]
    sys.path.insert(0, comfyui)
    from comfy.cli_args import args

    args.cpu = True
    everything(Path(models))
