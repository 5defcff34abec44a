"""Guidance on joint latents, and which blocks the negative pass skips.

Published: guided = negative + cfg * (positive - negative) with a scale for each modality, and in the negative pass one
block skipped in both towers ("skip layer guidance", block 11 of 30).
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

SKIP_BLOCKS = "11"  # published


def guided_audio(denoised: Tensor, positive: Tensor, negative: Tensor, video_size: int, audio_cfg: float) -> Tensor:
    """Replace the audio part of a guided result by one with its own scale.

    All are packed joint latents [B, 1, N] whose first `video_size` numbers are video: `denoised` as the sampler's own
    guidance left it, `positive` and `negative` as the model gave them. Returns a new tensor; the video part is
    `denoised`'s.
    """
    positive, negative = positive[..., video_size:], negative[..., video_size:]
    return torch.cat([denoised[..., :video_size], negative + (positive - negative) * audio_cfg], dim=-1)


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
