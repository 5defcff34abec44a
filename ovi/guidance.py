"""Guidance on joint latents, and which blocks the negative pass skips.

In the Ovi release: guided = negative + cfg * (positive - negative) with a scale for each modality, and one block that
the negative pass skips in both towers ("skip layer guidance", block 11 of 30). DreamID-Omni adds for its person
references cfg' * (positive - without), where `without` is the positive pass with zeros in the place of one kind of
references: of the images for the video, of the voices for the audio. Synchrony guidance adds scale * (positive - cut),
where `cut` is the positive pass in which neither tower attends to the other, as LTX-2 does it under the name of
modality guidance. The coefficients add up to 1, so all of this holds for velocities and for denoised latents alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SKIP_BLOCKS = "11"  # the Ovi release's
SKIP_KEY = "ovi_skip"  # transformer_options entry: a Skip
AUTO = "auto"
DIRECTIONS = (AUTO, "video", "audio")  # what synchrony guidance changes: whatever is generated, or one modality


@dataclass(frozen=True)
class SigmaRange:
    """A part of the schedule: the steps whose sigma is at most `first` and at least `last`; by default all of it."""

    first: float = math.inf
    last: float = 0.0

    @classmethod
    def from_percents(cls, percents: tuple[float, float], percent_to_sigma: Callable[[float], float]) -> SigmaRange:
        """Return the range from a start to an end in 0 to 1 of a model's schedule, as ComfyUI's own nodes count.

        Raises ValueError where it ends before it starts.
        """
        start, end = percents
        if start > end:
            raise ValueError(f"The range from {start:g} to {end:g} ends before it starts; give the smaller one first.")
        return cls(percent_to_sigma(start) if start > 0 else math.inf, percent_to_sigma(end))

    def contains(self, sigmas: Tensor) -> bool:
        """Return whether a step at `sigmas` [B] is in it; reads the device only if it is not `WHOLE`."""
        return self == WHOLE or self.last <= sigmas[0].item() <= self.first


WHOLE = SigmaRange()


@dataclass(frozen=True)
class Skip:
    """Blocks that the negative pass skips in a part of the schedule."""

    blocks: tuple[int, ...]
    range: SigmaRange

    def at(self, sigmas: Tensor) -> tuple[int, ...]:
        """Return the blocks to skip in a step at `sigmas` [B]."""
        return self.blocks if self.range.contains(sigmas) else ()


class Modalities(NamedTuple):
    """Which of the two modalities something holds for."""

    video: bool
    audio: bool


BOTH, NEITHER = Modalities(video=True, audio=True), Modalities(video=False, audio=False)


@dataclass(frozen=True)
class Synchrony:
    """Guidance towards video and audio that belong together, in a part of the schedule.

    `direction` is one of DIRECTIONS. The cut pass is the same for all of them: a tower that does not attend to the
    other does not depend on what the other attends to.
    """

    scale: float
    range: SigmaRange
    direction: str = AUTO

    def at(self, sigmas: Tensor, generated: Modalities) -> Modalities:
        """Return which modalities are guided by it in a step at `sigmas` [B], of those that are `generated` at all."""
        if not self.scale or not self.range.contains(sigmas):
            return NEITHER
        chosen = [modality and self.direction in (AUTO, name) for name, modality in generated._asdict().items()]
        return Modalities(*chosen)


def guide_parts(
    denoised: Tensor,
    positive: Tensor,
    negative: Tensor,
    video_size: int,
    audio_cfg: float,
    guided: Modalities = BOTH,
) -> Tensor:
    """Apply the audio's own scale to a guided result; a modality that is not `guided` gets the positive prediction.

    All are packed joint latents [B, 1, N] whose first `video_size` numbers are video: `denoised` as the sampler's own
    guidance left it, `positive` and `negative` as the model predicted them.
    """
    video, audio = (denoised if guided.video else positive)[..., :video_size], positive[..., video_size:]
    if guided.audio:
        below = negative[..., video_size:]
        audio = below + (audio - below) * audio_cfg
    return torch.cat([video, audio], dim=-1)


def guide_references(
    guided: Tensor,
    positive: Tensor,
    without_images: Tensor | None,
    without_voices: Tensor | None,
    video_size: int,
    video_cfg: float,
    audio_cfg: float,
) -> Tensor:
    """Push a guided result further towards the person references, each modality by its own scale.

    All are packed joint latents [B, 1, N] whose first `video_size` numbers are video: `guided` by the prompts,
    `positive` as the model predicted it, and the same with zeros for all reference images or all reference voices.
    These are None where no such pass was made, which leaves that modality as it is. DreamID-Omni's scales are 1.5 and
    2.0, beside 3.0 and 4.0 for the prompts.
    """
    if without_images is None and without_voices is None:
        return guided
    video, audio = guided[..., :video_size], guided[..., video_size:]
    if without_images is not None:
        video = video + video_cfg * (positive - without_images)[..., :video_size]
    if without_voices is not None:
        audio = audio + audio_cfg * (positive - without_voices)[..., video_size:]
    return torch.cat([video, audio], dim=-1)


def guide_synchrony(
    guided: Tensor, positive: Tensor, cut: Tensor, video_size: int, scale: float, towards: Modalities = BOTH
) -> Tensor:
    """Push a guided result towards video and audio that belong together.

    All are packed joint latents [B, 1, N] whose first `video_size` numbers are video: `guided` by whatever else,
    `positive` as the model predicted it, and `cut` the same without the fusion of the towers. A modality that is not
    in `towards` stays as it is.
    """
    pushed = guided + scale * (positive - cut)
    video, audio = (pushed if chosen else guided for chosen in towards)
    return torch.cat([video[..., :video_size], audio[..., video_size:]], dim=-1)


def parse_blocks(text: str, num_layers: int) -> tuple[int, ...]:
    """Parse block numbers such as "11" or "7, 9"; empty skips none.

    Raises ValueError for what is not a number from 1 to num_layers - 1: Ovi's block 0 is never skipped.
    """
    words = re.split(r"[\s,]+", text.strip()) if text.strip() else []
    for word in words:
        if not word.isdecimal() or not 0 < int(word) < num_layers:
            raise ValueError(
                f"'{word}' is not a block that can be skipped: give numbers from 1 to {num_layers - 1}, separated by "
                "commas (Ovi never skips block 0)."
            )
    return tuple(sorted({int(word) for word in words}))
