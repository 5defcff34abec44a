"""Optimisers and learning rates of the training, by the names that `Settings` gives them.

AdamW is PyTorch's. The others come from libraries of their own, the extra `[train]` of this project.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..flow import Settings

PACKAGES = {"bitsandbytes": "adamw8bit", "prodigyopt": "prodigy"}


def optimizer(parameters: Sequence[nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    """Return the optimiser of some parameters. Raises ValueError where its library is missing."""
    options: dict[str, Any] = {"lr": settings.lr, "betas": settings.betas, "weight_decay": settings.weight_decay}
    try:
        if settings.optimizer == "adamw8bit":
            from bitsandbytes.optim import AdamW8bit

            return AdamW8bit(parameters, **options)
        if settings.optimizer == "prodigy":
            from prodigyopt import Prodigy

            return Prodigy(parameters, **options, decouple=True)
    except ModuleNotFoundError as error:
        if (name := PACKAGES.get(package := str(error.name).partition(".")[0])) is None:
            raise
        raise ValueError(
            f"The optimiser {name} needs the Python package {package}: run pip install {package}, or use adamw."
        ) from error
    return torch.optim.AdamW(parameters, **options, fused=True)


def learning_rate(settings: Settings, step: int, steps: int) -> float:
    """Return the learning rate of a step: rising, and then as the schedule says, zero at the last."""
    rising = min(1.0, (step + 1) / max(1, settings.warmup))
    if settings.schedule == "cosine":
        return settings.lr * min(rising, (1 + math.cos(math.pi * min(1.0, step / steps))) / 2)
    return settings.lr * min(rising, (steps - step) / max(1.0, settings.cooldown * steps))
