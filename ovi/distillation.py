"""Distillation of Ovi into a student that needs few steps and no guidance: its formulas, on velocities.

Teacher and student are the same weights, the student with a LoRA. The student generates by Euler's method in k steps
of the schedule S_i = shift(1 - i / k), with one pass each. The teacher is guided, as the nodes guide it.

Trajectory: from a point x_i on the student's own way, the teacher goes from S_i to S_(i+1) in several steps. The
student's velocity at x_i learns the straight way to where it arrives.

DMD (distribution matching, arXiv 2405.14867) from there: a critic, another LoRA, learns the velocities of what the
student generates. Where noise is added to that, the difference between what critic and teacher expect without noise
says how the student's clips should change.

Guidance alone: the student's velocity learns the teacher's guided one, so that the usual steps need one pass.

A clip is [video [B, 48, F, H, W], audio [B, 20, L]], both with one sigma; the timestep is 1000 sigma, a velocity is
noise - x0. A first frame that is given is clean, at timestep 0, and has no loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .flow import Checks, require
from .guidance import guide_parts, guide_references, guide_synchrony
from .model import Texts
from .references import References
from .sampling import flow_sigmas

Predict = Callable[..., Sequence[Tensor | None]]  # `OviModel.velocities`
Latents = list[Tensor]  # of both modalities: video [B, 48, F, H, W], audio [B, 20, L]
Velocity = Callable[[Latents, Tensor], Latents]  # of latents at sigmas [B]
Losses = tuple[Tensor, Tensor]  # of video and audio

RANGE = 0.02, 0.98  # of the level of noise, before its shift, at which critic and teacher are compared
SMALLEST = 1e-3  # distance of a clip from the teacher's that its change is divided by, at least


@dataclass(frozen=True)
class Recipe:
    """What is distilled and how: everything but the settings of the training and the number of its steps."""

    student_steps: int = 4
    substeps: int = 5  # of the teacher, for one of the student
    guidance_only: bool = False
    cfg: float = 4.0  # of the teacher's video ...
    audio_cfg: float = 3.0  # ... and of its audio
    skip_blocks: tuple[int, ...] = (11,)  # in its negative pass
    sync_scale: float = 0.0  # of its synchrony guidance
    image_cfg: float = 1.5  # how much closer it follows the images of persons ...
    voice_cfg: float = 2.0  # ... and their voices, where prompts have them
    dmd_lr: float = 5e-5  # the student's learning rate in the second stage
    critic_lr: float = 1e-4
    critic_updates: int = 5  # for one of the student

    def __post_init__(self) -> None:
        """Raise ValueError for a number out of its range."""
        checks: Checks = {
            "from 1 to 1000": (("student_steps", "substeps", "critic_updates"), lambda value: 1 <= value <= 1000),
            "a positive number": (("dmd_lr", "critic_lr"), lambda value: 0 < value < math.inf),
            "a finite number": (
                ("cfg", "audio_cfg", "sync_scale", "image_cfg", "voice_cfg"),
                lambda value: math.isfinite(value),
            ),
        }
        require(self, checks)


class Conditions(NamedTuple):
    """What a batch of clips is generated from."""

    texts: Texts  # the prompts, embedded
    negatives: Texts  # the negative prompts, embedded
    generated: Tensor  # video latents [B, F]: 0 for a first frame that is given, else 1
    references: References | None = None  # of persons


def schedule(steps: int, shift: float) -> list[float]:
    """Return the student's sigmas: S_i = shift(1 - i / steps) for i from 0 to steps."""
    sigmas: list[float] = flow_sigmas(steps, shift, "dpm++").tolist()  # of the release's schedules, the exact one
    return sigmas


def part(steps: int, shift: float, i: int, substeps: int) -> list[float]:
    """Return the teacher's sigmas from S_i to S_(i + 1): those of a schedule with `substeps` times as many steps."""
    return schedule(steps * substeps, shift)[i * substeps : (i + 1) * substeps + 1]


def unguided(predict: Predict, conditions: Conditions) -> Velocity:
    """Return the velocities of student or critic, whose LoRA `predict` is to use: one pass, with the prompts."""

    def velocity(x: Latents, sigma: Tensor) -> Latents:
        time = _timestep(sigma, conditions)
        return _both(predict(x, time, conditions.texts, references=conditions.references))

    return velocity


def guided(predict: Predict, conditions: Conditions, recipe: Recipe) -> Velocity:
    """Return the velocities of the teacher, as the nodes guide them, without a gradient."""

    @torch.no_grad()
    def velocity(x: Latents, sigma: Tensor) -> Latents:
        time, persons = _timestep(sigma, conditions), conditions.references

        def passed(texts: Texts = conditions.texts, persons: References | None = persons, **options: Any) -> Tensor:
            found = _both(predict(x, time, texts, references=persons, **options))
            return torch.cat([each.to(x[0].dtype).flatten(1) for each in found], dim=1)[:, None]  # packed: [B, 1, N]

        size = x[0][0].numel()
        positive = found = passed()
        if (recipe.cfg, recipe.audio_cfg) != (1.0, 1.0):
            negative = passed(conditions.negatives, skip_blocks=recipe.skip_blocks)
            found = negative + recipe.cfg * (positive - negative)
            found = guide_parts(found, positive, negative, size, recipe.audio_cfg)
        if persons is not None:
            images, voices = persons
            without_images = passed(persons=References(_zeros(images), voices)) if images and recipe.image_cfg else None
            without_voices = passed(persons=References(images, _zeros(voices))) if voices and recipe.voice_cfg else None
            scales = recipe.image_cfg, recipe.voice_cfg
            found = guide_references(found, positive, without_images, without_voices, size, *scales)
        if recipe.sync_scale:
            cut = passed(cut_rows=[True] * len(sigma))
            found = guide_synchrony(found, positive, cut, size, recipe.sync_scale)
        parts = found[:, 0].split([size, found.shape[2] - size], dim=1)
        return [each.view_as(like) for each, like in zip(parts, x, strict=True)]

    return velocity


def walk(velocity: Velocity, x: Latents, sigmas: Sequence[float], generated: Tensor) -> Latents:
    """Follow velocities from the first of the sigmas to the last by Euler's method, without gradients."""
    with torch.no_grad():
        for sigma, after in pairwise(sigmas):
            x = _moved(x, velocity(x, _full(x, sigma)), after - sigma, generated)
    return x


def trajectory(
    student: Velocity, teacher: Velocity, x: Latents, sigmas: Sequence[float], generated: Tensor
) -> tuple[Losses, Latents]:
    """Return the losses of a step of the student from x, which the teacher takes in the steps of `sigmas`.

    The second result is where the teacher arrives. With two sigmas, the student learns the teacher's velocity at x.
    """
    end = walk(teacher, x, sigmas, generated)
    span = sigmas[-1] - sigmas[0]
    expected = [(after - before) / span for before, after in zip(x, end, strict=True)]
    return _losses(student(x, _full(x, sigmas[0])), expected, generated), end


def clean(student: Velocity, x: Latents, sigma: float, generated: Tensor) -> Latents:
    """Return the clip that the student expects at a sigma: x0 = x - sigma v."""
    return _moved(x, student(x, _full(x, sigma)), -sigma, generated)


def noised(x0: Latents, noise: Latents, sigma: Tensor, generated: Tensor) -> Latents:
    """Add noise to clips, each at its own sigma [B]; a first frame that is given stays clean."""
    parts = zip(x0, noise, _counts(generated), strict=True)
    return [torch.lerp(clip, eps, _over(sigma, clip) * counts) for clip, eps, counts in parts]


def critic_losses(critic: Velocity, x0: Latents, noise: Latents, sigma: Tensor, generated: Tensor) -> Losses:
    """Return the critic's losses of flow matching on clips that the student has generated."""
    expected = [eps - clip for clip, eps in zip(x0, noise, strict=True)]
    return _losses(critic(noised(x0, noise, sigma, generated), sigma), expected, generated)


def dmd_losses(
    critic: Velocity, teacher: Velocity, x0: Latents, noise: Latents, sigma: Tensor, generated: Tensor
) -> Losses:
    """Return the student's losses, whose gradient on its clips x0 is the difference between critic and teacher.

    With the clips that both expect without noise, that is (critic's - teacher's) = sigma (v of the teacher - v of the
    critic), divided for each modality and clip by the mean distance from x0 to the teacher's.
    """
    clips = [clip.detach() for clip in x0]
    with torch.no_grad():
        z = noised(clips, noise, sigma, generated)
        wanted = []
        for clip, at, fake, real, counts in zip(
            clips, z, critic(z, sigma), teacher(z, sigma), _counts(generated), strict=True
        ):
            over = _over(sigma, clip)
            difference = (clip - (at - over * real)).abs()
            distance = (difference * counts).flatten(1).sum(1) / counts.expand_as(clip).flatten(1).sum(1)
            wanted.append(clip - over * (real - fake) / _over(distance.clamp(min=SMALLEST), clip))
    video, audio = _losses(x0, wanted, generated)
    return video / 2, audio / 2


def _both(found: Sequence[Tensor | None]) -> Latents:
    """Return the velocities of both modalities, to a type checker, too."""
    return [each for each in found if each is not None]


def _zeros(latents: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(latent) for latent in latents]


def _full(x: Latents, sigma: float) -> Tensor:
    """Return a sigma for each clip of a batch, [B]."""
    return x[0].new_full((len(x[0]),), sigma)


def _over(each: Tensor, like: Tensor) -> Tensor:
    """Bring numbers of clips [B] beside their latents [B, ...]."""
    return each.view(-1, *[1] * (like.ndim - 1))


def _counts(generated: Tensor) -> Latents:
    """Return what is generated of both modalities, to be multiplied with latents: 0 for what is given."""
    return [generated[:, None, :, None, None], generated.new_ones(len(generated), 1, 1)]


def _timestep(sigma: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor]:
    return 1000 * sigma[:, None] * conditions.generated, 1000 * sigma


def _moved(x: Latents, velocity: Latents, change: float, generated: Tensor) -> Latents:
    """Return where velocities lead with a change of sigma."""
    parts = zip(x, velocity, _counts(generated), strict=True)
    return [clip + change * (counts * along) for clip, along, counts in parts]


def _losses(found: Latents, expected: Latents, generated: Tensor) -> Losses:
    """Return the mean squared errors of video and audio, over what is generated."""
    video, audio = (
        ((one - other).square() * counts).sum() / counts.expand_as(one).sum()
        for one, other, counts in zip(found, expected, _counts(generated), strict=True)
    )
    return video, audio
