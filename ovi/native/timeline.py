"""Prompts for a part of a clip: which one each of core's context windows reads.

A timeline is several conditionings in one list, as 'Conditioning (Combine)' makes them, each with its time. Core's
windows can choose one of a list by the window's place among equal parts of the clip ('split_conds_to_windows'); here it
is chosen by the time of the window's middle. Where windows overlap, core blends what they give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from comfy.context_windows import IndexListContextHandler
from torch import Tensor

from .. import geometry

TIME_KEY = "ovi_seconds"  # in a CONDITIONING: the start and the end of its part of the clip

Conds = list[dict[str, Any]] | None


def check(conds: Mapping[str, Conds], model_options: Mapping[str, Any], video_latents: int, sigmas: Tensor) -> None:
    """Raise ValueError unless the windows of the first step read every prompt that has a time."""
    timed = [cond[TIME_KEY] for each in conds.values() for cond in each or () if TIME_KEY in cond]
    if not timed:
        return
    windows = _windows(model_options.get("context_handler"), video_latents, sigmas)
    if not windows:
        raise ValueError(
            "The prompt changes over time, but the clip is sampled in one piece, which reads one prompt: connect the "
            f"MODEL through 'Context Windows (Manual)' with dim 2 and a context_length below the {video_latents} "
            "latents of the clip, or use 'Ovi Text Encode'."
        )
    middles = sorted(geometry.middle(window.index_list) for window in windows)
    for start, end in timed:
        if not any(start <= middle < end for middle in middles):
            raise ValueError(
                f"No context window reads the prompt from {start:g} s: each reads the one of its middle, and these "
                f"are at {', '.join(f'{middle:.2f}' for middle in middles)} s; lengthen the prompt's part, or raise "
                "context_overlap for more windows."
            )


def _windows(handler: IndexListContextHandler | None, video_latents: int, sigmas: Tensor) -> list[Any]:
    """Return the windows of the first step, as core makes them, or none where it samples the clip in one piece."""
    if handler is None or video_latents <= handler.context_length:
        return []
    handler.set_step(sigmas[:1], {"transformer_options": {"sample_sigmas": sigmas}})
    sizes = torch.empty([*[1] * handler.dim, video_latents], device="meta")
    windows: list[Any] = handler.get_context_windows(None, sizes, {})
    return windows


def choose(
    executor: Any, model: Any, conds: list[Conds], x: Tensor, timestep: Tensor, model_options: Mapping[str, Any]
) -> list[Tensor]:
    """Wrap the prediction of a window: leave out the prompts of other times.

    Raises ValueError where none is left.
    """
    window = model_options["transformer_options"].get("context_window")
    if window is not None:
        middle = geometry.middle(window.index_list)
        conds = [_at(middle, each) for each in conds]
    predicted: list[Tensor] = executor(model, conds, x, timestep, model_options)
    return predicted


def _at(middle: float, conds: Conds) -> Conds:
    """Return the prompts that are for a time in seconds, or for any."""
    if not conds:
        return conds
    left = [cond for cond in conds if _is_for(middle, cond)]
    if not left:
        raise ValueError(
            f"No prompt is for the context window around {middle:.2f} s: connect all outputs of one 'Ovi Timeline', "
            "and turn off split_conds_to_windows."
        )
    return left


def _is_for(middle: float, cond: Mapping[str, Any]) -> bool:
    start, end = cond.get(TIME_KEY, (0.0, math.inf))
    return bool(start <= middle < end)
