"""Less of a training on the card: the weights of frozen blocks, and the activations between blocks, in RAM.

The weights are moved by accelerate's hooks, each layer's as it runs, in the forward pass and again where its block is
recomputed for the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint as recomputed

from ..model import OviModel
from .frozen import FrozenLinear


def place(model: OviModel, device: torch.device | str, blocks: int, dtype: torch.dtype | None = None) -> None:
    """Bring a model from RAM to a device and a dtype (None: its own), in place.

    The linear layers of the last `blocks` blocks stay in RAM and are on the device only while they run. They must not
    be trained. Raises ValueError for more blocks than there are, and where accelerate is missing.
    """
    count = model.config.num_layers
    if not 0 <= blocks <= count:
        raise ValueError(f"--offload-blocks is {blocks}, but must be from 0 to {count}, the model's number of blocks.")
    if not blocks:
        model.to(device, dtype)
        return
    try:
        from accelerate.hooks import AlignDevicesHook, add_hook_to_module
    except ModuleNotFoundError as error:
        raise ValueError("--offload-blocks needs the Python package accelerate: run pip install accelerate.") from error
    model.to(dtype)
    in_ram = set(last_layers(model, blocks))
    for module in model.modules():
        if module in in_ram:
            add_hook_to_module(module, AlignDevicesHook(torch.device(device), offload=True))
        else:
            for name, weight in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(weight.to(device), requires_grad=weight.requires_grad))


def last_layers(model: OviModel, blocks: int) -> Iterator[nn.Module]:
    """Iterate over the linear layers, quantised or not, of the last blocks of both towers."""
    for tower in (model.video_model, model.audio_model):
        for block in tower.blocks[model.config.num_layers - blocks :]:
            yield from (layer for layer in block.modules() if isinstance(layer, (nn.Linear, FrozenLinear)))


def recompute_blocks(layers: int, *, on_cpu: bool = False, pin: bool = False) -> dict[str, Any]:
    """Return `transformer_options` that recompute a block's activations for its gradient instead of storing them.

    With `on_cpu` a block's inputs are stored in RAM; `pin` takes memory there from which a CUDA device copies faster.
    """

    def replace(args: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
        others = {name: value for name, value in args.items() if name != "img"}

        def run(*tokens: Tensor) -> Any:
            return extra["original_block"]({**others, "img": tokens})["img"]

        with save_on_cpu(pin_memory=pin) if on_cpu else nullcontext():
            return {"img": recomputed(run, *args["img"], use_reentrant=False)}

    return {"patches_replace": {"dit": {("double_block", i): replace for i in range(layers)}}}
