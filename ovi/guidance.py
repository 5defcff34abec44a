"""Guidance on joint latents, and which blocks the negative pass skips.

Published: guided = negative + cfg * (positive - negative) with a scale for each modality, and in the negative pass one
block skipped in both towers ("skip layer guidance", block 11 of 30).
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

SKIP_BLOCKS = "11"  # published


def guide_parts(
    denoised: Tensor,
    positive: Tensor,
    negative: Tensor,
    video_size: int,
    audio_cfg: float,
    guided: tuple[bool, bool] = (True, True),
) -> Tensor:
    """Give the audio part of a guided result a scale of its own; a part that is not guided is the positive one.

    All are packed joint latents [B, 1, N] whose first `video_size` numbers are video: `denoised` as the sampler's own
    guidance left it, `positive` and `negative` as the model gave them. `guided` says so for video and audio.
    """
    video_guided, audio_guided = guided
    video, audio = (denoised if video_guided else positive)[..., :video_size], positive[..., video_size:]
    if audio_guided:
        below = negative[..., video_size:]
        audio = below + (audio - below) * audio_cfg
    return torch.cat([video, audio], dim=-1)


def parse_blocks(text: str, num_layers: int) -> tuple[int, ...]:
    """Read block numbers such as "11" or "7, 9"; empty skips none.

    Raises ValueError for what is not a number from 1 to num_layers - 1: Ovi's block 0 is never skipped.
    """
    words = re.split(r"[\s,]+", text.strip()) if text.strip() else []
    for word in words:
        if not word.isdecimal() or not 0 < int(word) < num_layers:
            raise ValueError(
                f"'{word}' is no block that can be skipped: give numbers from 1 to {num_layers - 1}, separated by "
                "commas (Ovi never skips block 0)."
            )
    return tuple(sorted({int(word) for word in words}))
