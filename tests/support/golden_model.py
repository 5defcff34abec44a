"""The tiny fusion model of the golden data, and its cases, in this project's layouts."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ovi.config import OviConfig
from ovi.model import OviModel

from . import GOLDEN

MODEL = GOLDEN / "model.safetensors"


def metadata(path: Path = MODEL) -> dict[str, str]:
    """The safetensors metadata of a file."""
    with safe_open(path, "pt") as file:
        return file.metadata()


def load(dtype: torch.dtype = torch.float32) -> OviModel:
    """The golden model, in plain PyTorch."""
    sd = load_file(MODEL)
    model = OviModel(OviConfig.from_state_dict(sd, metadata=metadata()), dtype=dtype)
    model.load_state_dict(sd)
    return model.eval().requires_grad_(False)


def pad(context: torch.Tensor, length: int) -> torch.Tensor:
    """Text [T, text_dim] → [1, length, text_dim], padded with zeros."""
    return torch.nn.functional.pad(context, (0, 0, 0, length - len(context)))[None]
