"""Ovi checkpoints: every published layout, brought to the published key names.

The published names begin with `video_model.` or `audio_model.`. Files differ from them in a prefix of the host, in a
video tower without its prefix, in towers of their own files, and in how the block modulation is named. Layouts are told
by keys and shapes, never by file name. Tensors are passed on as they are, with what goes with a quantised one
(`.weight_scale`, `.comfy_quant`, ...).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .config import OviConfig
from .model import OviModel

WHERE = (
    "get model.safetensors, model_960x960.safetensors or model_960x960_10s.safetensors "
    "from huggingface.co/chetwinlow1/Ovi, or a conversion of them"
)
HOST_PREFIXES = ("model.diffusion_model.", "diffusion_model.")  # ComfyUI's ModelSave, and files made for its loaders
VIDEO, AUDIO = "video_model.", "audio_model."
_BARE_TOWER = ("blocks.", "patch_embedding.", "text_embedding.", "time_embedding.", "time_projection.", "head.")
_FLAT_MODULATION = re.compile(r"(blocks\.\d+\.modulation)$")
_AUDIO_MARK = "patch_embedding.2.w1.weight"  # the audio tower's patch embedding is a stack of convolutions
_FUSION_MARK = "blocks.0.cross_attn.k_fusion.weight"
_QUANTISED = (".comfy_quant", ".weight_scale", ".scale_weight", ".weight_scale_2", ".input_scale", ".scale_input")
_SCALARS = {"scaled_fp8", "iter", "step"}  # markers that belong to no layer

# What other files hold, told by one key each.
_OTHER_MODELS = (
    ("a Stable Diffusion checkpoint", "input_blocks.0.0.weight"),
    ("a Wan video model without Ovi's audio tower", "blocks.0.self_attn.norm_q.weight"),
    ("a Wan video VAE", "decoder.conv1.weight"),
    ("an MMAudio VAE", "decoder.mid.block_1.conv1.weight"),
    ("a UMT5 text encoder", "shared.weight"),
)


def to_published(sd: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the published key names, as a new dict.

    Takes one tower as well as both; `merge` puts towers together. Raises ValueError for what is not Ovi.
    """
    sd = _without_host_prefix(sd)
    audio_alone = _AUDIO_MARK in sd
    out = {}
    for key, tensor in sd.items():
        if key.startswith(_BARE_TOWER):
            key = (AUDIO if audio_alone else VIDEO) + key
        out[_FLAT_MODULATION.sub(r"\1.modulation", key)] = tensor
    if not any(key.endswith(_FUSION_MARK) for key in out):
        raise ValueError(f"This file is {_describe(sd)}, but an Ovi checkpoint is needed: {WHERE}.")
    return out


def merge(first: Mapping[str, Tensor], second: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Both towers under the published key names, from one file that has both or from two that have one each, in either
    order.

    Raises ValueError where a tower is missing or given twice.
    """
    parts = [to_published(sd) for sd in (first, second) if sd is not None]
    out: dict[str, Tensor] = {}
    for tower, prefix in (("video", VIDEO), ("audio", AUDIO)):
        having = [part for part in parts if any(key.startswith(prefix) for key in part)]
        if not having:
            other = "audio" if tower == "video" else "video"
            raise ValueError(
                f"There is only the {other} tower of Ovi here and no {tower} tower; "
                f"choose the {tower} tower's file as the second file, or {WHERE}."
            )
        if len(having) > 1:
            raise ValueError(
                f"Both files hold an Ovi {tower} tower; choose one file with both towers, or one for each tower."
            )
        out |= {key: tensor for key, tensor in having[0].items() if key.startswith(prefix)}
    for part in parts:
        out |= {key: tensor for key, tensor in part.items() if key in _SCALARS}
    return out


def check(sd: Mapping[str, Tensor], config: OviConfig) -> None:
    """Refuse a state dict with published key names that is not complete and sound.

    Raises ValueError, naming the tensor, where one is missing, has a wrong shape (the weight of a quantised layer may
    be packed), is unknown, or where a norm, a modulation or a bias holds NaN or infinity.
    """
    expected = OviModel(config, device="meta").state_dict()
    if missing := [key for key in expected if key not in sd]:
        raise ValueError(f"The Ovi checkpoint has no {_some(missing)}; get a complete file.")
    quantised = {key.rsplit(".", 1)[0] for key in sd if key.endswith(_QUANTISED)}
    for key, tensor in sd.items():
        layer, name = key.rpartition(".")[::2]
        if key not in expected:
            if layer not in quantised and key not in _SCALARS:
                raise ValueError(f"The Ovi checkpoint has an unknown tensor {key}; is it a model of another kind?")
        elif tensor.shape != expected[key].shape and not (layer in quantised and name == "weight"):
            raise ValueError(
                f"{key} has shape {list(tensor.shape)}, but {list(expected[key].shape)} is needed; "
                "the file is damaged or of another model."
            )
        elif (tensor.ndim == 1 or name == "modulation") and not torch.isfinite(tensor.float()).all():
            raise ValueError(f"{key} holds NaN or infinity; the file is damaged: get it again.")


def _without_host_prefix(sd: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for prefix in HOST_PREFIXES:
        inside = {key.removeprefix(prefix): tensor for key, tensor in sd.items() if key.startswith(prefix)}
        if inside:
            return inside
    return sd


def _describe(sd: Mapping[str, Tensor]) -> str:
    """What a file that is not Ovi holds, in words."""
    for what, mark in _OTHER_MODELS:
        if any(key == mark or key.endswith("." + mark) for key in sd):
            return what
    return f"no model that is known here (its first tensor is {next(iter(sd), 'missing')})"


def _some(keys: Iterable[str]) -> str:
    first, *others = keys
    return f"tensor {first}" + (f" (nor {len(others)} others)" if others else "")
