"""Samples to train on."""

from __future__ import annotations

import torch

from ovi.flow import Sample


def clips(n=3):
    """Return samples of random latents and texts, in the sizes of the golden model."""
    draw = torch.Generator().manual_seed(1)
    shapes = (48, 2, 4, 4), (20, 9), (5, 64)
    return [Sample(*(torch.randn(shape, generator=draw) for shape in shapes)) for _ in range(n)]
