"""The weights of golden case E, drawn again by the recipe in its manifest, in the layouts of the release's files."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from ovi.audio_vae import lowpass_filter, vae_shapes, vocoder_shapes

SEED = 4242


def draw(key: str, shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
    """The recipe's normal numbers for a key, times `scale`."""
    generator = np.random.RandomState((zlib.crc32(key.encode()) + SEED) % 2**32)
    return torch.from_numpy(np.float32(scale) * generator.standard_normal(shape).astype(np.float32))


def draw_row(key: str, shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
    """One row of such numbers, seen as all rows: a tensor of the full size without its memory."""
    return draw(key, (1, *shape[1:]), scale).expand(shape)


def published_vae(draw=draw) -> dict[str, Tensor]:
    """v1-16.pth, never normalised; the recipe's mel statistics are in ComfyUI's code, here they are 0 and 1."""
    weights = {key: draw(key, shape, 0.7) for key, shape in vae_shapes().items() if key.endswith(".weight")}
    return weights | {
        "encoder.learnable_gain": torch.tensor(0.25),
        "decoder.learnable_gain": torch.tensor(-0.15),
        "data_mean": torch.zeros(1, 80, 1),
        "data_std": torch.ones(1, 80, 1),
    }


def published_vocoder(draw=draw) -> dict[str, Tensor]:
    """The `generator` entry of best_netG.pt, with weight norm under its old key names."""
    vocoder = {}
    for key, shape in vocoder_shapes().items():
        if key.endswith(".weight"):
            gain = 1.0 if key.startswith("ups.") else 0.2 if key.startswith("conv_post.") else 0.5
            vocoder[f"{key}_v"] = draw(key, shape)
            vocoder[f"{key}_g"] = gain + draw(f"{key}_g", (shape[0], 1, 1), 0.2 * gain)
        elif key.endswith(".filter"):
            vocoder[key] = lowpass_filter()
        else:
            vocoder[key] = draw(key, shape, 0.05 if key.endswith(".bias") else 0.3)
    return vocoder
