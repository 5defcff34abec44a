"""Samples to train on."""

from __future__ import annotations

import torch

from ovi.flow import Sample


def clips(n=3, persons=0):
    """Return samples of random latents and texts, in the sizes of the golden model, with a number of persons."""
    draw = torch.Generator().manual_seed(1)

    def latents(*shapes):
        return [torch.randn(shape, generator=draw) for shape in shapes]

    plain = [Sample(*latents((48, 2, 4, 4), (20, 9), (5, 64))) for _ in range(n)]
    faces, voices = [(48, 1, 4, 4)] * persons, [(20, 3 + j) for j in range(persons)]
    return [sample._replace(images=latents(*faces), voices=latents(*voices)) for sample in plain]


def tensors(sample):
    """Return what a file of a clip holds."""
    return {name: value for name, value in sample._asdict().items() if name in ("video", "audio", "context")}
