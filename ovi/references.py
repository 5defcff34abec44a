"""Person references: a face and a voice of each person of a clip, as in DreamID-Omni (arXiv 2602.12160).

Each is a latent without noise. In their tower they stand as further latent frames after the clip's, in front of the
patch embedding: first all of the clip, then person 1, person 2 and so on. All tokens attend to them, without a mask;
they are told the timestep of the clip though they are clean; what the model predicts for them is cut off. `rope` says
at which positions they stand, which is what binds a face to a voice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class References(NamedTuple):
    """The persons of a clip: the j-th image and the j-th voice are those of person j, "<subj>" in the prompt."""

    images: Sequence[Tensor] = ()  # [B, 48, 1, H, W] each, of the clip's height and width, normalised as the clip
    voices: Sequence[Tensor] = ()  # [B, 20, L] each, of any length


def check(references: References, video: Tensor | None, audio: Tensor | None) -> None:
    """Raise ValueError for references that do not fit the clip, video [B, 48, F, H, W] and audio [B, 20, L]."""
    for kind, tower, clip, given in (
        ("image", "video", video, references.images),
        ("voice", "audio", audio, references.voices),
    ):
        if clip is None:
            if given:
                raise ValueError(
                    f"There are reference {kind}s ({len(given)}), but no {tower} latent; give one, or leave them out."
                )
            continue
        for j, latent in enumerate(given, 1):
            needed = [*clip.shape]
            needed[2] = 1 if kind == "image" else max(1, latent.shape[-1])
            if list(latent.shape) != needed:
                form = [*needed[:2], *(needed[2:] if kind == "image" else ["any length"])]
                raise ValueError(
                    f"Reference {kind} {j} is a latent of {list(latent.shape)}, but the clip's {tower} latent of "
                    f"{list(clip.shape)} needs [{', '.join(map(str, form))}]; encode it for this clip."
                )


def append(latent: Tensor, references: Sequence[Tensor], timestep: Tensor) -> tuple[Tensor, Tensor]:
    """Append references to a tower's latent in time, and their timesteps to the tower's where there are several.

    latent: [B, C, F, ...]; references: [B, C, n, ...] each; timestep: [B], or [B, T] with T = 1, F or F + all n.
    Returns [B, C, F + all n, ...] and [B] or [B, 1 or F + all n]. Timesteps that were given for the clip alone, [B, F],
    go on with the largest of their row: that is the clip's own, which a mask only lowers. Raises ValueError for
    another T.
    """
    if not references:
        return latent, timestep
    clip = latent.shape[2]
    latent = torch.cat([latent, *(reference.to(latent.dtype) for reference in references)], dim=2)
    steps, whole = timestep.shape[1:].numel(), latent.shape[2]
    if steps == clip > 1:
        timestep = timestep.flatten(1)
        timestep = torch.cat([timestep, timestep.amax(1, keepdim=True).expand(-1, whole - clip)], dim=1)
    elif steps not in (1, whole):
        raise ValueError(
            f"There are {steps} timesteps for {clip} latent frames of a clip and {whole - clip} of references; give 1, "
            f"{clip} or {whole}."
        )
    return latent, timestep
