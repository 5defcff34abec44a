"""Guidance functions of ComfyUI's own nodes on joint latents: each gets the video and the audio apart.

They take statistics of what they get: norms, a spread, directions, frequencies. Of a packed latent [B, 1, N] these
would be of both modalities together, or of the wrong axes. The list is closed, since only for these functions is it
known what they compute; any other sees the packed latent.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

import comfy.utils
import torch
from torch import Tensor

from ..guidance import BOTH, NEITHER, Modalities

Function = Callable[[Mapping[str, Any]], Any]

# The module and the class of a node whose functions are known, and whether their statistics are those of a whole sample
# [B, C, positions, 1]; else they are those of frames [B, C, F, H, W] and of audio [B, C, L].
WHOLE_SAMPLES = {
    ("nodes_apg", "APG"): True,
    ("nodes_cfg", "CFGNorm"): False,
    ("nodes_cfg", "CFGZeroStar"): False,
    ("nodes_fresca", "FreSca"): False,
    ("nodes_mahiro", "Mahiro"): False,
    ("nodes_model_advanced", "RescaleCFG"): True,
    ("nodes_tcfg", "TCFG"): False,
}
# Where they are in model_options, and which of their arguments stands where they change nothing.
LISTS = {"sampler_pre_cfg_function": "conds_out", "sampler_post_cfg_function": "denoised"}
CFG_FUNCTION = "sampler_cfg_function"


class Scales(Protocol):
    """What is asked of Ovi Guidance: the audio's scale, and which modalities are guided in a step."""

    @property
    def audio_cfg(self) -> float: ...

    def at(self, sigma: Tensor) -> Modalities: ...


@dataclass(frozen=True)
class Apart:
    """A guidance function that runs for each modality, with the scale of that one.

    `unchanged` is the argument that it returns for a modality that is not guided in a step (None: it always runs).
    """

    functions: tuple[Function, Function]
    whole: bool
    scales: Scales | None
    unchanged: str | None

    def __call__(self, args: Mapping[str, Any]) -> Any:
        """Return what the function does, packed like its arguments."""
        x = args["input"]
        guided = BOTH if self.scales is None else self.scales.at(args["sigma"])
        if "conds" in args and args["conds"][1] is None:  # there is no negative prediction
            guided = NEITHER
        results = []
        for i, (function, run) in enumerate(zip(self.functions, guided, strict=True)):
            part = {key: self._part(value, x, i, args["model"].latent_format) for key, value in args.items()}
            if i == 1 and self.scales is not None:
                part["cond_scale"] = self.scales.audio_cfg
            results.append(function(part) if run or self.unchanged is None else part[self.unchanged])
        if isinstance(results[0], list):
            return [_pack(pair) for pair in zip(*results, strict=True)]
        return _pack(results)

    def _part(self, value: Any, x: Tensor, index: int, latent_format: Any) -> Any:
        """Return the modality at `index` of what is shaped as the packed latent `x`, and anything else as it is."""
        if isinstance(value, list):
            return [self._part(each, x, index, latent_format) for each in value]
        if not torch.is_tensor(value) or value.shape != x.shape:
            return value
        part = latent_format.unpack(value)[index]
        return part.flatten(2)[..., None] if self.whole else part


def separate(options: MutableMapping[str, Any], scales: Scales | None) -> None:
    """Replace the known guidance functions in a run's model_options; `scales` are those of Ovi Guidance, if any."""
    for key, unchanged in LISTS.items():
        if key in options:
            options[key] = [_apart(function, scales, unchanged) for function in options[key]]
    if CFG_FUNCTION in options:
        options[CFG_FUNCTION] = _apart(options[CFG_FUNCTION], scales, None)


def _apart(function: Function, scales: Scales | None, unchanged: str | None) -> Function:
    """Return a known function for each modality apart, and any other as it is."""
    if not isinstance(function, types.FunctionType):
        return function
    # Core names these modules by the path of the file, without its ending; an import names them with dots.
    folder, module = ["", *re.split(r"[/\\.]", function.__module__)][-2:]
    whole = WHOLE_SAMPLES.get((module, function.__qualname__.split(".")[0])) if folder == "comfy_extras" else None
    if whole is None:
        return function
    return Apart((_copy(function), _copy(function)), whole, scales, unchanged)


def _copy(function: types.FunctionType) -> types.FunctionType:
    """Return a function with outer variables of its own: APG keeps a mean of the steps there, shaped as what it got."""
    cells = tuple(types.CellType(cell.cell_contents) for cell in function.__closure__ or ())
    return types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)


def _pack(parts: Any) -> Tensor:
    packed: Tensor = comfy.utils.pack_latents(parts)[0]
    return packed
