"""Which of Ovi's weights the layers of a LoRA are for.

A LoRA of Wan 2.2 5B names the layers of the video tower as Wan does (`blocks.0.self_attn.q`); one of Ovi has the tower
before that (`video_model.blocks.0.self_attn.q`). Before either stands what the training tool puts there. The numbers
themselves are ComfyUI's to read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

from .checkpoint import VIDEO

PREFIXES = ("diffusion_model.", "transformer.", "")
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
    """By a layer's name in a LoRA, in every published naming: the weight (published key name) that it is for."""
    return {name: weight for weight in weights for name in _names(weight.removesuffix(".weight"))}


def strangers(lora: Iterable[str], names: Mapping[str, str]) -> list[str]:
    """The keys of a LoRA whose layer has none of `names`, those of `key_map`."""
    return [key for key in lora if not any(name in names for name in accumulate(key.split("."), "{}.{}".format))]


def _names(layer: str) -> Iterator[str]:
    of_tool = [layer]
    if layer.startswith(VIDEO):
        wan = _MODULATION.sub(r"\1", layer.removeprefix(VIDEO))
        diffusers = wan
        for pattern, name in _DIFFUSERS:
            diffusers = pattern.sub(name, diffusers)
        of_tool += [wan, diffusers]
    for name in of_tool:
        yield from (prefix + name for prefix in PREFIXES)
        yield KOHYA_PREFIX + name.replace(".", "_")
