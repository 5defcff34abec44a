"""Ovi checkpoints: every known layout, converted to the key names of the Ovi release ("published" names).

The published names begin with `video_model.` or `audio_model.`. Files may differ in a prefix of the host, in a video
tower without its prefix, in having one file per tower, and in the names of the block modulation and of the scales of a
quantised layer. Layouts are detected by keys and shapes, never by file name. Tensors are passed on unchanged. A
quantised layer gets ComfyUI's own mark: beside `.weight` and its `.weight_scale`, JSON in `.comfy_quant`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

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
_RENAMED = (
    (re.compile(r"(blocks\.\d+\.modulation)$"), r"\1.modulation"),
    (re.compile(r"\.scale_weight$"), ".weight_scale"),
    (re.compile(r"\.scale_input$"), ".input_scale"),
)
_AUDIO_MARK = "patch_embedding.2.w1.weight"  # the audio tower's patch embedding is a stack of convolutions
_FUSION_MARK = "blocks.0.cross_attn.k_fusion.weight"
_STRAY = {"iter", "step"}  # counters of a training run, which belong to no layer

# Quantisation: scales and formats beside a layer's weight, as ComfyUI names them, and what older files have instead.
_QUANTISED = ("comfy_quant", "weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale")
_PACKED = ("nvfp4", "mxfp8", "convrot_w4a4")  # formats whose weight is not of the layer's own shape
_SCALED_FP8 = "scaled_fp8"  # marks a file whose fp8 weights have scales; of 2 elements: multiply in full precision
_FP8_FORMATS = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}
QUANTIZATION_KEY = "_quantization_metadata"  # safetensors metadata entry (JSON), in place of `.comfy_quant` tensors

# Other kinds of files, each recognised by one key.
_OTHER_MODELS = (
    ("a Stable Diffusion checkpoint", "input_blocks.0.0.weight"),
    ("a Wan video model without Ovi's audio tower", "blocks.0.self_attn.norm_q.weight"),
    ("a Wan video VAE", "decoder.conv1.weight"),
    ("an MMAudio VAE", "decoder.mid.block_1.conv1.weight"),
    ("a UMT5 text encoder", "shared.weight"),
)

T = TypeVar("T")


def to_published(sd: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """Return the same tensors under the published key names, as a new dict.

    `metadata` is that of the safetensors file. One tower works as well as both; `merge` combines towers. Raises
    ValueError for what is not Ovi.
    """
    layers = _quantised_layers(metadata or {})
    sd = _without_host_prefix(sd)
    sd = {**sd, **{f"{layer}.comfy_quant": _json_tensor(conf) for layer, conf in _without_host_prefix(layers).items()}}
    tower = AUDIO if _AUDIO_MARK in sd else VIDEO
    out = {_published(key, tower): tensor for key, tensor in sd.items() if key not in _STRAY}
    if not any(key.endswith(_FUSION_MARK) for key in out):
        raise ValueError(f"This file is {_describe(sd)}, but an Ovi checkpoint is needed: {WHERE}.")
    _mark_scaled_fp8(out)
    return out


def merge(first: Mapping[str, Tensor], second: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return both towers in one dict, from one file that has both or from two that have one each, in either order.

    Keys are published names. Raises ValueError where a tower is missing or given twice.
    """
    parts = [first] if second is None else [first, second]
    held = {
        tower: sum(any(key.startswith(prefix) for key in part) for part in parts)
        for tower, prefix in (("video", VIDEO), ("audio", AUDIO))
    }
    for tower, files in held.items():
        if files > 1:
            raise ValueError(
                f"Both files hold an Ovi {tower} tower; choose one file with both towers, or one for each tower."
            )
    for tower, files in held.items():
        if not files:
            raise ValueError(
                f"There is no {tower} tower of Ovi here, only the other one; "
                f"choose the {tower} tower's file as the second file, or {WHERE}."
            )
    return {key: tensor for part in parts for key, tensor in part.items()}


def assemble(
    files: Iterable[tuple[Mapping[str, Tensor], Mapping[str, str] | None]],
) -> tuple[dict[str, Tensor], dict[str, str], OviConfig]:
    """Return a whole model, from the tensors and metadata of its file or two: published names, metadata, config.

    Raises ValueError where they are not a complete, valid Ovi model.
    """
    parts: list[Mapping[str, Tensor]] = []
    metadata: dict[str, str] = {}
    for sd, of_file in files:
        parts.append(to_published(sd, of_file))
        metadata |= of_file or {}
    model = merge(*parts)
    config = OviConfig.from_state_dict(model, metadata=metadata)
    check(model, config)
    return model, metadata, config


def formats(sd: Mapping[str, Tensor]) -> dict[str, str]:
    """Return ComfyUI's name of the format of each quantised layer. Raises ValueError where a mark names none."""
    mark = ".comfy_quant"
    found = {}
    for key, tensor in sd.items():
        if key.endswith(mark):
            try:
                found[key.removesuffix(mark)] = json.loads(tensor.numpy().tobytes())["format"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{key} names no format; the file is damaged: download it again.") from error
    return found


def check(sd: Mapping[str, Tensor], config: OviConfig) -> None:
    """Check that a state dict with published key names is complete and valid.

    Raises ValueError, naming the tensor, where one is missing, has a wrong shape, is unknown, or where a norm, a
    modulation or a bias holds NaN or infinity.
    """
    expected = OviModel(config, device="meta").state_dict()
    if missing := [key for key in expected if key not in sd]:
        raise ValueError(f"The Ovi checkpoint has no {_some(missing)}; get a complete file.")
    of_layer = formats(sd)
    for key, tensor in sd.items():
        layer, _, name = key.rpartition(".")
        if key not in expected:
            if not (name in _QUANTISED and layer in of_layer and f"{layer}.weight" in expected):
                raise ValueError(f"The Ovi checkpoint has an unknown tensor {key}; is it a model of another kind?")
        elif tensor.shape != expected[key].shape and not (name == "weight" and of_layer.get(layer) in _PACKED):
            raise ValueError(
                f"{key} has shape {list(tensor.shape)}, but {list(expected[key].shape)} is needed; "
                "the file is damaged or of another model."
            )
        elif (tensor.ndim == 1 or name == "modulation") and not torch.isfinite(tensor.float()).all():
            raise ValueError(f"{key} holds NaN or infinity; the file is damaged: download it again.")


def _without_host_prefix(entries: Mapping[str, T]) -> Mapping[str, T]:
    """Return the entries under a host's prefix, without it; all entries where there is no such prefix."""
    for prefix in HOST_PREFIXES:
        if inside := {key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)}:
            return inside
    return entries


def _published(key: str, tower: str) -> str:
    """Return the published name of a key; a key without a tower belongs to `tower`."""
    if key.startswith(_BARE_TOWER):
        key = tower + key
    for pattern, name in _RENAMED:
        key = pattern.sub(name, key)
    return key


def _quantised_layers(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """Return, by layer, the quantisation that the metadata of a safetensors file declares."""
    if QUANTIZATION_KEY not in metadata:
        return {}
    try:
        return dict(json.loads(metadata[QUANTIZATION_KEY])["layers"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"The file's {QUANTIZATION_KEY} does not list its layers; the file is damaged: download it again."
        ) from error


def _mark_scaled_fp8(sd: dict[str, Tensor]) -> None:
    """Add formats to the layers of a scaled fp8 file, which has only scales, and drop the file's own mark."""
    mark = sd.pop(_SCALED_FP8, None)
    how = {"full_precision_matrix_mult": True} if mark is not None and mark.numel() == 2 else {}
    for key, tensor in list(sd.items()):
        layer = key.removesuffix(".weight")
        if tensor.dtype in _FP8_FORMATS and f"{layer}.weight_scale" in sd and f"{layer}.comfy_quant" not in sd:
            sd[f"{layer}.comfy_quant"] = _json_tensor({"format": _FP8_FORMATS[tensor.dtype], **how})


def _json_tensor(value: Mapping[str, object]) -> Tensor:
    """Return JSON as ComfyUI's checkpoints store it: a tensor of bytes."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _describe(sd: Mapping[str, Tensor]) -> str:
    """Describe a file that is not Ovi, in words."""
    for what, mark in _OTHER_MODELS:
        if any(key == mark or key.endswith("." + mark) for key in sd):
            return what
    return f"no model that is known here (its first tensor is {next(iter(sd), 'missing')})"


def _some(keys: Iterable[str]) -> str:
    first, *others = keys
    return f"tensor {first}" + (f" (nor {len(others)} more)" if others else "")
