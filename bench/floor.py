"""The lowest cost of a forward pass: its matrix products, convolutions and attentions, back to back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ovi.model import OviModel, sdpa


def floor(model: OviModel, *arguments: Any) -> Callable[[], None]:
    """Record the layers and attentions that model(*arguments) runs; return a function that runs these alone.

    They work on random numbers, one tensor for each shape, so that nothing passes from one to the next.
    """
    calls: list[Callable[[], Tensor]] = []
    inputs: dict[tuple[Any, ...], Tensor] = {}

    def stand_in(x: Tensor, role: str = "") -> Tensor:
        return inputs.setdefault((role, x.shape), torch.randn_like(x.contiguous()))

    def note_layer(module: nn.Module, args: tuple[Tensor]) -> None:
        calls.append(partial(type(module).forward, module, stand_in(*args)))

    def note_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, **_: Any) -> Tensor:
        calls.append(partial(sdpa, stand_in(q, "q"), stand_in(k, "k"), stand_in(v, "v"), heads))
        return sdpa(q, k, v, heads)

    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv3d))]
    attentions = [m for m in model.modules() if hasattr(m, "attention")]
    hooks = [layer.register_forward_pre_hook(note_layer) for layer in layers]
    for module in attentions:
        module.attention = note_attention
    model(*arguments)
    for hook in hooks:
        hook.remove()
    for module in attentions:
        module.attention = sdpa

    def run() -> None:
        for call in calls:
            call()

    return run
