"""People in a prompt: reference images and voices in ComfyUI's CONDITIONING, for DreamID-Omni (arXiv 2602.12160).

They travel as lists under `reference_latents`, which core's ReferenceLatent fills too, and `reference_voices`: what the
VAEs gave, one entry for each person, in their order. The model gets them as `reference_images` and `reference_voices`.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import comfy.conds
import node_helpers
import torch
from torch import Tensor

from .. import geometry
from ..config import OviConfig

IMAGES_KEY, VOICES_KEY = "reference_latents", "reference_voices"  # in a CONDITIONING
IMAGES, VOICES = "reference_images", "reference_voices"  # what the model gets
STYLE_KEY = "ovi_prompt_style"  # in a CONDITIONING: the prompt style that it was encoded in

Conditioning = Sequence[Sequence[Any]]


def add_person(
    positive: Conditioning, negative: Conditioning, image: Tensor | None, voice: Tensor | None
) -> tuple[Conditioning, Conditioning, int]:
    """Return both prompts with one person more, and the person's number.

    `image` is a latent [1, 48, 1, h, w], `voice` one [1, 20, L]; either may be None. Raises ValueError where one person
    would take another's place, since the model tells people apart by the order of images and of voices.
    """
    prompts = [values for _, values in (*positive, *negative)]
    counts = {tuple(len(values.get(key, ())) for key in (IMAGES_KEY, VOICES_KEY)) for values in prompts}
    if len(counts) != 1:
        raise ValueError(
            "The positive and the negative prompt do not have the same persons: connect both outputs of one 'Ovi "
            "Person' to the next."
        )
    images, voices = counts.pop()
    person = max(images, voices) + 1
    for what, before, given in (("face", images, image), ("voice", voices, voice)):
        if given is not None and before < person - 1:
            raise ValueError(
                f"Person {person} has a {what}, but person {before + 1} has none, so it would become person "
                f"{before + 1}'s: give every person before this one a {what}, or put this person first."
            )
    given_latents = {IMAGES_KEY: image, VOICES_KEY: voice}
    values = {key: [latent] for key, latent in given_latents.items() if latent is not None}
    set_values = node_helpers.conditioning_set_values
    return set_values(positive, values, append=True), set_values(negative, values, append=True), person


def conditions(
    given: Mapping[str, Any], shapes: Sequence[torch.Size], normalise: Callable[[Tensor], Tensor]
) -> dict[str, comfy.conds.CONDList]:
    """Return the references of a prompt as ComfyUI hands them to the model, images normalised.

    They are on the model's device, or ComfyUI would copy them there in every step. `given` are the values of a
    CONDITIONING, beside the `device`; `shapes` those of the joint latent. Raises ValueError for references of
    another shape than the model reads.
    """
    _, channels, _, height, width = shapes[0]
    device = given["device"]
    found = {}
    if images := given.get(IMAGES_KEY):
        for image in images:
            if image.ndim != 5 or tuple(image.shape[:3]) != (1, channels, 1):
                raise ValueError(
                    f"A reference latent has the shape {list(image.shape)}, but a person's face is one frame, [1, "
                    f"{channels}, 1, h, w]: use 'Ovi Person' instead of 'Set Reference Latent'."
                )
            if tuple(image.shape[3:]) != (height, width):
                prepared, sampled = (
                    f"{w * geometry.PIXELS_PER_LATENT}x{h * geometry.PIXELS_PER_LATENT}"
                    for h, w in (image.shape[3:], (height, width))
                )
                raise ValueError(
                    f"A reference image was prepared for {prepared}, but the clip is {sampled}: connect the latent "
                    "that is sampled to 'latent' of every 'Ovi Person'."
                )
        found[IMAGES] = comfy.conds.CONDList([normalise(image.to(device)) for image in images])
    if voices := given.get(VOICES_KEY):
        found[VOICES] = comfy.conds.CONDList([voice.to(device) for voice in voices])
    return found


def sizes(given: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return what references of a prompt add to the memory of a pass, in the form of ComfyUI's own lists."""
    latents = {IMAGES: given.get(IMAGES_KEY), VOICES: given.get(VOICES_KEY)}
    return {key: comfy.conds.CONDList(list(each)).size() for key, each in latents.items() if each}


def tokens(cond_shapes: Mapping[str, Sequence[Sequence[int]]], config: OviConfig) -> float:
    """Return the tokens of the references in a batch, over all its rows, from the sizes that ComfyUI gives."""
    images, voices = (sum(shape[-1] for shape in cond_shapes.get(kind, ())) for kind in (IMAGES, VOICES))
    return images / math.prod(config.patch_size) + voices


def has(conds: Sequence[Mapping[str, Any]], kind: str) -> bool:
    """Whether prompts, as ComfyUI samples them, have references of a kind."""
    return any(kind in cond["model_conds"] for cond in conds)


def without(conds: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return prompts with zeros in place of their references of a kind, as in training (they keep their tokens)."""
    changed = []
    for cond in conds:
        given = cond["model_conds"]
        if kind in given:
            given = given | {kind: comfy.conds.CONDList([torch.zeros_like(latent) for latent in given[kind].cond])}
        changed.append({**cond, "model_conds": given, "uuid": uuid.uuid5(cond["uuid"], kind)})
    return changed
