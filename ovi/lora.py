"""LoRAs of Ovi: which weights the layers of a LoRA file are for, and LoRA layers for training.

A LoRA of Wan 2.2 5B names the layers of the video tower as Wan does (`blocks.0.self_attn.q`); a LoRA of Ovi puts the
tower before that (`video_model.blocks.0.self_attn.q`). Training tools add prefixes of their own to either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

from torch import Tensor, nn

from .checkpoint import VIDEO
from .model import OviModel

PREFIXES = ("diffusion_model.", "transformer.", "")
LORA_LAYER = re.compile(r"\.blocks\.\d+\.(self_attn|cross_attn|ffn)\.")  # what training adds LoRAs to
KOHYA_PREFIX = "lora_unet_"  # then the layer's name with underscores for dots
_MODULATION = re.compile(r"(blocks\.\d+\.modulation)\.modulation$")  # `blocks.0.modulation` in Wan
_DIFFUSERS = (
    (re.compile(r"\.self_attn\.(?=[qkvo]$)"), ".attn1.to_"),
    (re.compile(r"\.cross_attn\.(?=[qkvo]$)"), ".attn2.to_"),
    (re.compile(r"(?<=\.to_)o$"), "out.0"),
    (re.compile(r"\.ffn\.0$"), ".ffn.net.0.proj"),
    (re.compile(r"\.ffn\.2$"), ".ffn.net.2"),
)


def key_map(weights: Iterable[str]) -> dict[str, str]:
    """Return, by a layer's name in any known naming of LoRAs, the weight (published key name) that it is for."""
    return {name: weight for weight in weights for name in _names(weight.removesuffix(".weight"))}


def strangers(lora: Iterable[str], names: Mapping[str, str]) -> list[str]:
    """Return the keys of a LoRA that begin with none of `names`, those of `key_map`."""
    return [key for key in lora if not any(layer in names for layer in _beginnings(key))]


def _beginnings(key: str) -> Iterator[str]:
    """Iterate over what a key begins with: "a.b.c" → "a", "a.b", "a.b.c"."""
    return accumulate(key.split("."), lambda beginning, part: f"{beginning}.{part}")


def _names(layer: str) -> Iterator[str]:
    layers = [layer]
    if layer.startswith(VIDEO):
        wan = _MODULATION.sub(r"\1", layer.removeprefix(VIDEO))
        diffusers = wan
        for pattern, name in _DIFFUSERS:
            diffusers = pattern.sub(name, diffusers)
        layers += [wan, diffusers]
    for name in layers:
        yield from (prefix + name for prefix in PREFIXES)
        yield KOHYA_PREFIX + name.replace(".", "_")


class LoraLinear(nn.Module):
    """A frozen linear layer plus a trained product of two low-rank matrices, zero at first."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, device=base.weight.device)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, device=base.weight.device)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] → [..., outputs]."""
        return self.base(x) + self.lora_B(self.lora_A(x.to(self.lora_A.weight.dtype))).to(x.dtype)


def add_lora(model: OviModel, rank: int) -> None:
    """Freeze a model and add LoRAs to the attentions and feed-forwards of both towers, in place."""
    model.requires_grad_(False)
    layers = {name: layer for name, layer in model.named_modules() if LORA_LAYER.search(name)}
    for name, layer in layers.items():
        if isinstance(layer, nn.Linear):
            model.set_submodule(name, LoraLinear(layer, rank))
