"""Random weights, with which a model takes the time and the memory that it takes with trained ones."""

from __future__ import annotations

from torch import nn

from ovi.config import OviConfig

# A third of the Ovi release's width, with its ratios.
CONFIG = OviConfig(dim=1024, num_layers=4, num_heads=8, video_ffn_dim=4784, audio_ffn_dim=4784, audio_patch_dim=2816)


def draw(model: nn.Module) -> None:
    """Draw a model's weights, in place, so that its numbers stay near unit size."""
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.02)
