"""LoRAs on either tower of an Ovi MODEL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.lora
import comfy.lora_convert
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoRAAdapter
from torch import Size, Tensor

from .. import lora
from ..checkpoint import AUDIO, VIDEO
from ..model import OviModel
from .model import Ovi

NAMED = 10  # keys at most that the node names; the log names all


def apply(
    model: ModelPatcher, sd: Mapping[str, Tensor], video_strength: float, audio_strength: float
) -> tuple[ModelPatcher, list[str]]:
    """Return a clone of an Ovi MODEL with a LoRA on its towers, and notes on what was patched and what was not.

    Raises ValueError for a model that is not Ovi, and where nothing of the LoRA fits it.
    """
    if not isinstance(model.model, Ovi):
        raise ValueError(f"Load Ovi LoRA got {type(model.model).__name__}, but needs the MODEL of 'Load Ovi Model'.")
    weights = OviModel(model.model.diffusion_model.config, device="meta").state_dict()
    names = lora.key_map(weights)
    sd = comfy.lora_convert.convert_lora(sd)
    patches = comfy.lora.load_lora(sd, names)  # logs the keys that it does not load
    misfits = [
        key
        for key, patch in patches.items()
        if key not in weights or not _fits(patch, weights[key].shape) or _out_of_reach(key, model)
    ]
    for key in misfits:
        del patches[key]
    if not patches:
        first = next(iter(sd), None)
        what = "it is empty" if first is None else f"its first tensor is {first}, of shape {list(sd[first].shape)}"
        raise ValueError(f"Nothing of this LoRA fits Ovi ({what}); choose one that was trained on Wan 2.2 5B or Ovi.")
    model = model.clone()
    notes = []
    for tower, prefix, strength in (("Video", VIDEO, video_strength), ("Audio", AUDIO, audio_strength)):
        of_tower = {f"diffusion_model.{key}": patch for key, patch in patches.items() if key.startswith(prefix)}
        if strength:
            model.add_patches(of_tower, strength)
        notes.append(f"{tower} tower: {len(of_tower)} weights, strength {strength:g}")
    if left := lora.strangers(sd, names) + misfits:
        more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
        notes.append(f"Not loaded: {', '.join(left[:NAMED])}{more}")
    return model, notes


def _out_of_reach(key: str, model: ModelPatcher) -> bool:
    """Return whether ComfyUI cannot patch a weight: the heads' modulation and, with dynamic VRAM, the blocks' as well.

    ComfyUI patches no parameter of a module that contains modules; with dynamic VRAM only parameters of layers.
    """
    return key.endswith("head.modulation") or (key.endswith(".modulation") and model.is_dynamic())


def _fits(patch: Any, shape: Size) -> bool:
    """Return whether a LoRA's pair of matrices, or a difference, has the weight's size; other kinds give none."""
    if isinstance(patch, LoRAAdapter):
        up, down, _, mid, *_ = patch.weights
        numbers = up.shape[0] * down[0].numel() * (1 if mid is None else mid[0, 0].numel())
    elif isinstance(patch, tuple):
        numbers = patch[1][0].numel()
    else:
        return True
    return numbers == shape.numel()
