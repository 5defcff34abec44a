"""The tiny fusion model of the golden data, and its cases, in this project's layouts."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ovi.config import OviConfig
from ovi.model import OviModel

from . import GOLDEN

MODEL = GOLDEN / "model.safetensors"
LAYERS = 3


def metadata(path: Path = MODEL) -> dict[str, str]:
    """The safetensors metadata of a file."""
    with safe_open(path, "pt") as file:
        return file.metadata()


def state(layers: int = LAYERS) -> dict[str, torch.Tensor]:
    """The golden model's tensors, of its first layers alone."""
    later = tuple(f".blocks.{i}." for i in range(layers, LAYERS))
    return {key: tensor for key, tensor in load_file(MODEL).items() if not any(part in key for part in later)}


def write(path: Path, layers: int = LAYERS) -> None:
    """Write the golden model, or its first layers."""
    save_file(state(layers), path, metadata())


def load(dtype: torch.dtype = torch.float32, layers: int = LAYERS) -> OviModel:
    """The golden model, or its first layers, in plain PyTorch."""
    sd = state(layers)
    model = OviModel(OviConfig.from_state_dict(sd, metadata=metadata()), dtype=dtype)
    model.load_state_dict(sd)
    return model.eval().requires_grad_(False)


def pad(context: torch.Tensor, length: int) -> torch.Tensor:
    """Text [T, text_dim] → [1, length, text_dim], padded with zeros."""
    return torch.nn.functional.pad(context, (0, 0, 0, length - len(context)))[None]
