"""Ovi checkpoints: every known layout, converted to the key names of the Ovi release ("published" names).

The published names begin with `video_model.` or `audio_model.`. Files may differ in a prefix of the host or of what a
trainer wrapped the model in, in a video tower without its prefix, in having one file per tower, and in the names of the
block modulation and of the scales of a quantised layer. Layouts are detected by keys and shapes, never by file name.
Tensors are passed on unchanged. A quantised layer gets ComfyUI's own mark (see `quantised`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from . import quantised
from .config import OviConfig
from .files import shown
from .model import OviModel

WHERE = (
    "get model.safetensors, model_960x960.safetensors or model_960x960_10s.safetensors "
    "from huggingface.co/chetwinlow1/Ovi, or a conversion of them"
)
VIDEO, AUDIO = "video_model.", "audio_model."
_BARE_TOWER = ("blocks.", "patch_embedding.", "text_embedding.", "time_embedding.", "time_projection.", "head.")
_RENAMED = (
    (re.compile(r"(blocks\.\d+\.modulation)$"), r"\1.modulation"),
    (re.compile(r"\.scale_weight$"), ".weight_scale"),
    (re.compile(r"\.scale_input$"), ".input_scale"),
)
_AUDIO_MARK = "patch_embedding.2.w1.weight"  # the audio tower's patch embedding is a stack of convolutions
# What only Ovi has, and what stands before it: a prefix ("model.diffusion_model" in what ComfyUI saves), and the tower.
_FUSION_MARK = re.compile(r"(?:(.+?)\.)??(?:(?:video|audio)_model\.)?blocks\.[0-9]+\.cross_attn\.k_fusion\.weight")
_WRAPPER = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_STRAY = {"iter", "step"}  # counters of a training run, which belong to no layer

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
    layers = _unwrapped(quantised.from_metadata(metadata or {}))
    sd = _unwrapped(sd)
    marks = [found for found in map(_FUSION_MARK.fullmatch, sd) if found]
    if not marks:
        raise ValueError(f"This file is {_describe(sd)}, but an Ovi checkpoint is needed: {WHERE}.")
    prefixes = sorted({f"{found[1]}." if found[1] else "" for found in marks})
    if len(prefixes) > 1:
        raise ValueError(
            f"This file holds Ovi more than once: names of its tensors begin with {shown(prefixes)}; choose a file "
            "with one model."
        )
    sd = {
        **_inside(sd, prefixes[0]),
        **{f"{layer}{quantised.MARK}": mark for layer, mark in _inside(layers, prefixes[0]).items()},
    }
    tower = AUDIO if _AUDIO_MARK in sd else VIDEO
    out = {_published(key, tower): tensor for key, tensor in sd.items() if key not in _STRAY}
    quantised.mark_scaled_fp8(out)
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


def check(sd: Mapping[str, Tensor], config: OviConfig) -> None:
    """Check that a state dict with published key names is complete and valid.

    Raises ValueError, naming the tensor, where one is missing, has a wrong shape or dtype, is unknown, and where a
    norm, a modulation, a bias or a scale holds NaN or infinity.
    """
    expected = OviModel(config, device="meta").state_dict()
    if missing := [key for key in expected if key not in sd]:
        raise ValueError(f"The Ovi checkpoint has no {_some(missing)}; get a complete file.")
    of_layer = quantised.formats(sd)
    for key, tensor in sd.items():
        layer, _, name = key.rpartition(".")
        if key not in expected:
            if not (name in quantised.BESIDE and layer in of_layer and f"{layer}.weight" in expected):
                raise ValueError(f"The Ovi checkpoint has an unknown tensor {key}; is it a model of another kind?")
        elif name == "weight" and layer in of_layer:
            quantised.check_layer(sd, layer, of_layer[layer], expected[key].shape)
        elif tensor.shape != expected[key].shape:
            raise ValueError(
                f"{key} has shape {list(tensor.shape)}, but {list(expected[key].shape)} is needed; "
                "the file is damaged or of another model."
            )
        elif not tensor.is_floating_point():
            raise ValueError(
                f"{key} is of type {tensor.dtype}, but floating-point numbers are needed; the file is damaged or "
                "quantised in a way that is not known here."
            )
        elif (tensor.ndim == 1 or name == "modulation") and not torch.isfinite(tensor.float()).all():
            raise ValueError(f"{key} holds NaN or infinity; the file is damaged: download it again.")


def _unwrapped(entries: Mapping[str, T]) -> Mapping[str, T]:
    """Return the entries without the names of what a trainer wrapped the model, or parts of it, in."""
    out = {_WRAPPER.sub("", key): value for key, value in entries.items()}
    if len(out) < len(entries):
        raise ValueError(
            "This file holds tensors twice, with and without a wrapper's name; choose a file with one model."
        )
    return out


def _inside(entries: Mapping[str, T], prefix: str) -> Mapping[str, T]:
    """Return the entries under a prefix, without it; all entries where none has it."""
    inside = {key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)}
    return inside or entries


def _published(key: str, tower: str) -> str:
    """Return the published name of a key; a key without a tower belongs to `tower`."""
    if key.startswith(_BARE_TOWER):
        key = tower + key
    for pattern, name in _RENAMED:
        key = pattern.sub(name, key)
    return key


def _describe(sd: Mapping[str, Tensor]) -> str:
    """Describe a file that is not Ovi, in words."""
    for what, mark in _OTHER_MODELS:
        if any(key == mark or key.endswith("." + mark) for key in sd):
            return what
    return f"an unknown model (its first tensor is {next(iter(sd), 'missing')})"


def _some(keys: Iterable[str]) -> str:
    first, *others = keys
    return f"tensor {first}" + (f" (nor {len(others)} more)" if others else "")
