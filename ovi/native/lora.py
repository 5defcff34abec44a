"""LoRAs on either tower of an Ovi MODEL.

ComfyUI's adapters read and apply what is in the file. An adapter that cannot change a weight says so in the log alone,
when the model is sampled; here each is asked before, on the meta device, and what it cannot do is named.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import GLoRAAdapter, LoHaAdapter, LoKrAdapter, LoRAAdapter, OFTAdapter, WeightAdapterBase
from torch import Size, Tensor

from ..checkpoint import AUDIO, VIDEO
from ..lora import NO_LAYER, Names
from ..model import OviModel
from .model import require_ovi

NAMED = 10  # keys at most that the node names for one reason; the log names all
SHOWN = 200  # characters at most of a key
TINY, HUGE = 1e-12, 1e30  # a patch changes a weight by more than the one and less than the other
NUMBERS = (".alpha", ".reshape_weight")  # parts of an adapter that it holds as numbers
TWICE = "the file has another tensor for the same"
UNREAD = "no part of a LoRA that ComfyUI reads"
UNPAIRED = "another part of this layer's LoRA is missing"
MAGNITUDE = "PEFT's DoRA divides by another norm than ComfyUI's"
SIZE = "not the size of Ovi's layer"
ZERO = "all zeros or empty, changes nothing"
OUT_OF_REACH = "ComfyUI lets no LoRA change this weight"
ADVICE = "choose a LoRA that was trained on Wan 2.2 5B or Ovi; docs/lora.md lists the names that are read"

Group = dict[str, tuple[str, Tensor]]  # the tensors for one weight, by the end of their names, with their keys


def apply(
    model: ModelPatcher, sd: Mapping[str, Tensor], video_strength: float, audio_strength: float
) -> tuple[ModelPatcher, list[str]]:
    """Return a clone of an Ovi MODEL with a LoRA on its towers, and notes on what was patched and what was not.

    Raises ValueError for a model that is not Ovi, for a LoRA of which nothing changes Ovi, and where one of its tensors
    holds NaN or infinity or makes a weight infinite.
    """
    require_ovi(model, "Load Ovi LoRA")
    if not (math.isfinite(video_strength) and math.isfinite(audio_strength)):
        raise ValueError(f"A strength has to be a number, but is {video_strength} (video), {audio_strength} (audio).")
    if not isinstance(sd, Mapping):
        raise ValueError(f"A LoRA is tensors by name, but this file holds one {type(sd).__name__}; {ADVICE}.")
    patches, left = _read(sd, model)
    for key, reason in left.items():
        logging.warning("Load Ovi LoRA: not loaded: %s (%s)", _shown(key), _shown(reason))
    if not patches:
        why = "; ".join(_lines(left, 1, sd)) or "the file is empty"
        raise ValueError(f"Nothing of this LoRA changes Ovi: {why}; {ADVICE}.")
    model = model.clone()
    done = []
    for tower, prefix, strength in (("video", VIDEO, video_strength), ("audio", AUDIO, audio_strength)):
        of_tower = {f"diffusion_model.{key}": patch for key, patch in patches.items() if key.startswith(prefix)}
        if strength:
            model.add_patches(of_tower, strength)
            done.append(f"{len(of_tower)} {tower} weights at {strength:g}")
        else:
            done.append(f"{tower} unchanged")
    rest = f"; {len(left)} tensors not loaded" if left else ""
    notes = [f"Patched: {', '.join(done)}{rest}", *(f"Not loaded: {line}" for line in _lines(left, NAMED))]
    return model, notes


def _read(sd: Mapping[str, Any], model: ModelPatcher) -> tuple[dict[str, Any], dict[str, str]]:
    """Return ComfyUI's patches by weight (published key name), and why each key that is not in them is left out."""
    weights = OviModel(model.model.diffusion_model.config, device="meta").state_dict()
    names = Names(weights)
    groups: dict[str, Group] = {}
    left: dict[str, str] = {}
    for key, value in sd.items():
        if reason := _sort(names, key, value, groups):
            left[str(key)] = reason
    patches: dict[str, Any] = {}
    for weight, group in groups.items():
        left |= {key: UNREAD for key, _ in group.values()}
        _convert_bias(group)
        if reason := _scale_obstacle(group, weights[weight].shape):
            left[group.pop(".dora_scale")[0]] = reason
        try:
            of_group = comfy.lora.load_lora({f"x{end}": t for end, (_, t) in group.items()}, {"x": weight}, False)
        except KeyError:
            left |= {key: UNPAIRED for key, _ in group.values()}
            continue
        for target, patch in of_group.items():
            parts = _parts(patch, group)
            reason = TWICE if target in patches else _obstacle(patch, parts, target, weights, model)
            if reason is None:
                patches[target] = patch
            for key, _ in parts.values():
                if reason is None:
                    del left[key]
                else:
                    left[key] = reason
    return patches, left


def _sort(names: Names, key: Any, value: Any, groups: dict[str, Group]) -> str | None:
    """Put an entry of a file with the others for its weight. Return why it is no part of a LoRA of Ovi, or None."""
    if not isinstance(key, str):
        return NO_LAYER
    try:
        weight, end = names.place(key)
    except ValueError as error:
        return str(error)
    if end == ".alpha" and isinstance(value, (int, float)):
        value = torch.tensor(value if abs(value) < torch.finfo(torch.float32).max else math.nan)
    if not isinstance(value, Tensor):
        return f"not a tensor but {type(value).__name__}"
    if end == ".alpha" and (value.numel() != 1 or value.is_complex()):
        return "not a single number"
    if end not in NUMBERS and not value.is_floating_point():
        return f"of {value.dtype}, but a floating-point dtype is needed"
    if end.startswith(".lora_magnitude_vector"):
        return MAGNITUDE
    if end in groups.setdefault(weight, {}):
        return TWICE
    groups[weight][end] = key, value.detach()  # an object of its own: a pickle may hold one tensor under two names
    return None


def _convert_bias(group: Group) -> None:
    """Turn PEFT's bias of a pair, added before the pair is scaled, into a difference of the layer's bias, in place."""
    for end, down in ((".lora_B.bias", ".lora_A.weight"), (".lora_up.bias", ".lora_down.weight")):
        rank = group[down][1].shape[:1].numel() if down in group else 0
        if rank and end in group and ".diff_b" not in group:
            key, bias = group.pop(end)
            scale = group[".alpha"][1].item() / rank if ".alpha" in group else 1.0
            group[".diff_b"] = key, bias.float() * scale


def _scale_obstacle(group: Group, shape: Size) -> str | None:
    """Return why the DoRA scale of a weight of this shape is left out, None where it is not or there is none.

    ComfyUI would scale the wrong axis by one of fewer dimensions, and each element by one as large as the weight.
    """
    if ".dora_scale" not in group:
        return None
    scale = group[".dora_scale"][1]
    if not any(scale.shape == tuple(n if i == axis else 1 for i, n in enumerate(shape)) for axis in (0, 1)):
        return SIZE
    return ZERO if _peak(scale) < TINY else None


def _parts(patch: Any, group: Group) -> Group:
    """Return the tensors of the file that a patch of ComfyUI's holds."""
    adapter = isinstance(patch, WeightAdapterBase)
    held = {id(value) for value in (patch.weights if adapter else patch[1])}
    return {end: part for end, part in group.items() if id(part[1]) in held or (adapter and end in NUMBERS)}


def _obstacle(patch: Any, parts: Group, target: str, weights: Mapping[str, Tensor], model: ModelPatcher) -> str | None:
    """Return why a patch does not change its weight, None where it does. Raises ValueError for NaN and infinity.

    ComfyUI patches no parameter of a module that contains modules (the heads' modulation); with dynamic VRAM, none but
    those of layers (not the blocks' modulation).
    """
    if target not in weights:
        return NO_LAYER
    if target.endswith("head.modulation") or (target.endswith(".modulation") and model.is_dynamic()):
        return OUT_OF_REACH
    if not _applies(patch, target, weights[target].shape):
        return SIZE
    peaks = {end: _peak(tensor) for end, (_, tensor) in parts.items()}
    for end, (key, _) in parts.items():
        if not math.isfinite(peaks[end]):
            raise ValueError(
                f"{_shown(key)} of this LoRA holds NaN or infinity; the file is damaged: download it again."
            )
    least, most = _bounds(patch, peaks)
    if most >= HUGE:
        key = parts[max(peaks, key=lambda end: peaks[end])][0]
        raise ValueError(
            f"{_shown(key)} of this LoRA is so large that it gives infinity; the file is damaged: download it again."
        )
    replaces = ".dora_scale" in peaks or (isinstance(patch, tuple) and patch[0] == "set")
    return ZERO if least < TINY and not replaces else None


def _bounds(patch: Any, peaks: Mapping[str, float]) -> tuple[float, float]:
    """Return about how much a patch changes a weight, and the largest number on the way there.

    Both come from the largest absolute value of each of its tensors. ComfyUI multiplies by alpha last.
    """
    sizes = {end: peak for end, peak in peaks.items() if end not in (*NUMBERS, ".dora_scale")}
    alpha = peaks.get(".alpha", 1.0)
    if isinstance(patch, (LoRAAdapter, LoHaAdapter, LoKrAdapter)):  # products of all their tensors
        size = math.prod(sizes.values())
        if isinstance(patch, LoKrAdapter) and {".lokr_w1", ".lokr_w2"} <= sizes.keys():
            alpha = 1.0  # not used without a rank
    elif isinstance(patch, GLoRAAdapter):  # weight @ a1 @ a2 + b1 @ b2
        a1, a2, b1, b2 = (sizes[f".{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
        size = max(a1 * a2, b1 * b2)
    elif isinstance(patch, OFTAdapter):  # ComfyUI reads the scale beside its blocks, but does not use it
        size, alpha = sizes[".oft_blocks"], alpha or 1.0  # alpha, a bound of their norm, is none where it is 0
    else:
        size, alpha = max(sizes.values()), 1.0
    return min(size, size * alpha), max(size, size * alpha, peaks.get(".dora_scale", 0.0))


def _applies(patch: Any, key: str, shape: Size) -> bool:
    """Return whether ComfyUI, asked for a weight of this shape with a patch, changes it and leaves its shape.

    On the meta device this takes no arithmetic. Alphas are 0 there: adapters compare them with norms, which have no
    value on it.
    """
    if isinstance(patch, WeightAdapterBase):
        patch = type(patch)(patch.loaded_keys, tuple(_meta(value) for value in patch.weights))
    else:
        patch = patch[0], tuple(_meta(value) for value in patch[1])
    with torch.inference_mode(False), torch.no_grad():
        weight = torch.empty(shape, device="meta")
        try:
            out = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], weight, key)
        except Exception:  # noqa: BLE001 - any kind: it would come while sampling
            return False
        # Adapters write in place, which PyTorch counts; one that pads makes a new weight first, which counts once.
        return out.shape == shape and out._version > (out is not weight) and _fits(patch, shape)


def _fits(patch: Any, shape: Size) -> bool:
    """Return whether a patch that ComfyUI applies is of this shape: ComfyUI reshapes any with as many elements."""
    if isinstance(patch, tuple):
        return patch[0] != "set" or patch[1][0].shape == shape
    v, rows = patch.weights, shape[0]
    if isinstance(patch, LoRAAdapter):
        return v[0].shape[0] == rows
    if isinstance(patch, LoHaAdapter):  # either half, for it broadcasts; of a Tucker decomposition, a is transposed
        for a, b, core in ((v[0], v[1], v[5]), (v[3], v[4], v[6])):
            kernel = 1 if core is None else core.shape[2:].numel()
            if (a.shape[core is not None], b.shape[1] * kernel) != (rows, shape[1:].numel()):
                return False
    if isinstance(patch, LoKrAdapter):
        w1 = v[3] if v[0] is None else v[0]
        w2_rows = v[5].shape[v[7] is not None] if v[1] is None else v[1].shape[0]
        return w1.ndim == 2 and w1.shape[0] * w2_rows == rows
    if isinstance(patch, GLoRAAdapter):  # the product is b1 @ b2, in files of old b2 @ b1
        return rows in (v[2].shape[0], v[3].shape[0])
    return True


def _meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta")
    return 0.0 if isinstance(value, (int, float)) else value


def _peak(tensor: Tensor) -> float:
    """Return the largest absolute value, 0 of an empty tensor, NaN where one is NaN."""
    return tensor.float().abs().max().item() if tensor.numel() else 0.0


def _lines(left: Mapping[str, str], named: int, sd: Mapping[str, Any] | None = None) -> list[str]:
    """Return a line for each reason: the first keys that were left out for it, with their shapes in `sd`."""
    of_reason: dict[str, list[str]] = {}
    for key, reason in left.items():
        of_reason.setdefault(reason, []).append(key)
    lines = []
    for reason, keys in of_reason.items():
        told = [_shown(key) + _shape((sd or {}).get(key)) for key in keys[:named]]
        more = f" and {len(keys) - named} more" if len(keys) > named else ""
        lines.append(f"{', '.join(told)}{more} ({_shown(reason)})")
    return lines


def _shape(value: Any) -> str:
    return f" {list(value.shape)}" if isinstance(value, Tensor) else ""


def _shown(text: str) -> str:
    """Return text of a file as it can be printed, and not at any length."""
    text = text[:SHOWN] + "..." * (len(text) > SHOWN)
    return text if text.isprintable() else ascii(text)
