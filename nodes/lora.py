"""LoRAs on either tower: OviLoraLoader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.utils
import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoRAAdapter
from comfy_api.latest import io
from torch import Size, Tensor

from ..ovi import lora, native
from ..ovi.checkpoint import AUDIO, VIDEO
from ..ovi.model import OviModel
from .notes import show

MAX_STRENGTH = 100.0  # ComfyUI's own limit
NAMED = 10  # keys at most that the node names; the log names all


def apply(
    model: ModelPatcher, sd: Mapping[str, Tensor], video_strength: float, audio_strength: float
) -> tuple[ModelPatcher, list[str]]:
    """A clone of an Ovi MODEL with a LoRA on its towers, and notes on what landed where and what did not.

    Raises ValueError for a model that is not Ovi, and where nothing of the LoRA fits it.
    """
    if not isinstance(model.model, native.Ovi):
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
    """Whether ComfyUI lets no LoRA change a weight: the heads' modulation and, with dynamic VRAM, the blocks', too.

    It patches no parameter of a module that has others in it, and with dynamic VRAM those of layers alone.
    """
    return key.endswith("head.modulation") or (key.endswith(".modulation") and model.is_dynamic())


def _fits(patch: Any, shape: Size) -> bool:
    """Whether a LoRA's pair of matrices, or a difference, has the size of the weight; other kinds tell no size."""
    if isinstance(patch, LoRAAdapter):
        up, down, _, mid, *_ = patch.weights
        numbers = up.shape[0] * down[0].numel() * (1 if mid is None else mid[0, 0].numel())
    elif isinstance(patch, tuple):
        numbers = patch[1][0].numel()
    else:
        return True
    return numbers == shape.numel()


class OviLoraLoader(io.ComfyNode):
    """A LoRA of Wan 2.2 5B or of Ovi."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        strength = {"default": 1.0, "min": -MAX_STRENGTH, "max": MAX_STRENGTH, "step": 0.01}
        return io.Schema(
            node_id="OviLoraLoader",
            display_name="Load Ovi LoRA",
            category="Ovi",
            description="Puts a LoRA on Ovi, with a strength for each tower: one of Wan 2.2 5B changes the picture, "
            "one of Ovi picture and sound. Shows what landed.",
            search_aliases=["ovi lora", "wan 2.2 5b lora", "lora loader"],
            inputs=[
                io.Model.Input("model", tooltip="From 'Load Ovi Model', or from another LoRA loader."),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="A LoRA in models/loras that was trained on Wan 2.2 5B or on Ovi; LoRAs of Wan's 14B "
                    "models do not fit.",
                ),
                io.Float.Input("video_strength", tooltip="How much the picture changes; 0 for not at all.", **strength),
                io.Float.Input("audio_strength", tooltip="How much the sound changes; 0 for not at all.", **strength),
            ],
            outputs=[io.Model.Output(tooltip="For 'Ovi Guidance', another LoRA loader or a sampler.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model: ModelPatcher, lora_name: str, video_strength: float, audio_strength: float
    ) -> io.NodeOutput:
        """Load the file and patch a clone of the model."""
        path = folder_paths.get_full_path_or_raise("loras", lora_name)
        sd = comfy.utils.load_torch_file(path, safe_load=True)
        patched, notes = apply(model, sd, video_strength, audio_strength)
        return io.NodeOutput(patched, ui=show(cls, notes))
