"""Samples to train on, and trainers of the golden model."""

from __future__ import annotations

import torch

from ovi.flow import Sample, Settings
from ovi.lora import Lora, add_lora
from ovi.tools.trainer import Trainer

from . import golden_model

SETTINGS = Settings(batch=2, lr=1e-3, warmup=2, split=0.5, split_steps=4, first_frame=0.5, text_dropout=0.5)
EMPTY = torch.zeros(0, 64)
LAYERS = 2  # of the golden model, the first ones, which is deep enough


def clips(n=3, persons=0, frames=2, latents=9):
    """Return samples of random latents and texts, by default in the sizes of the golden model, with some persons."""
    draw = torch.Generator().manual_seed(1)

    def drawn(*shapes):
        return [torch.randn(shape, generator=draw) for shape in shapes]

    plain = [Sample(*drawn((48, frames, 4, 4), (20, latents), (5, 64))) for _ in range(n)]
    faces, voices = [(48, 1, 4, 4)] * persons, [(20, 3 + j) for j in range(persons)]
    return [sample._replace(images=drawn(*faces), voices=drawn(*voices)) for sample in plain]


def tensors(sample):
    """Return what a file of a clip holds."""
    return {name: value for name, value in sample._asdict().items() if name in ("video", "audio", "context")}


def gap(one, other):
    """Return by how much tensors differ, as a share of the others of their names."""
    flat, exact = (torch.cat([of[name].detach().flatten() for name in one]) for of in (one, other))
    return (flat - exact).norm() / exact.norm()


def trainer(settings=SETTINGS, steps=6, rank=0, persons=0, samples=None, added=None, model=None, **options):
    """Return a trainer of a model (None: the golden one's first layers), or of LoRAs on it, `added` as `Lora` says."""
    torch.manual_seed(0)  # what LoRAs start from
    model = golden_model.load(layers=LAYERS) if model is None else model
    if not rank:
        model.requires_grad_(True)
    if rank:
        options["lora"] = Lora(rank, **added or {})
        add_lora(model, options["lora"], "cpu")
    return Trainer(model, samples or clips(persons=persons), settings, steps, **options)
