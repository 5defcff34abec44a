"""Several LoRAs by name on one frozen model, of which one is active at a time, or none: several models in one.

Distillation has a student and a critic so; without a LoRA the same weights are their teacher.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from .lora import Lora, LowRank, adaptable
from .model import OviModel


class Adapters:
    """Named LoRAs on a model, which this freezes and changes in place."""

    def __init__(self, model: OviModel, lora: Lora, device: torch.device | str | None = None) -> None:
        """`lora` says which layers every LoRA is added to, and of which rank; `device` is as for `add_lora`."""
        self.active: str | None = None
        self._lora, self._device = replace(lora, dropout=0.0), device  # without random numbers in a pass
        self._layers = {name: AdaptedLinear(layer, self) for name, layer in adaptable(model, lora).items()}
        for name, layer in self._layers.items():
            model.set_submodule(name, layer)

    def add(self, name: str) -> dict[str, nn.Parameter]:
        """Add LoRAs under a name, which change nothing at first; return their weights, with the names of LoRA files."""
        for layer in self._layers.values():
            layer.loras[name] = LowRank(layer.base, self._lora, self._device)
        return {
            f"{place}.{part}": weight
            for place, layer in self._layers.items()
            for part, weight in layer.loras[name].named_parameters()
        }

    @contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """Let the LoRAs of a name, or none, be the ones that count.

        A backward pass that computes activations again needs those of its forward pass.
        """
        before, self.active = self.active, name
        try:
            yield
        finally:
            self.active = before


class AdaptedLinear(nn.Module):
    """A frozen linear layer with the LoRAs that `Adapters` adds to it."""

    def __init__(self, base: nn.Module, adapters: Adapters) -> None:
        super().__init__()
        self.base = base
        self.loras = nn.ModuleDict()
        self._adapters = adapters

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] → [..., outputs]."""
        y: Tensor = self.base(x)
        if self._adapters.active is None:
            return y
        lora = self.loras[self._adapters.active]
        assert isinstance(lora, LowRank)
        return y + lora.added(x)
