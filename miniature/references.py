"""The world with references: an image shows the ball's colour, a recording the bell's pitch, the prompt neither.

To a model that is what the face and the voice of a person are (see `ovi.references`). The image shows a ball of another
size at rest anywhere above the floor, the recording has one stroke of the bell.
"""

from __future__ import annotations

import dataclasses
import random

import torch
from torch import Tensor

from . import world

SECONDS = 0.5  # of the recording
LATEST = 0.15  # seconds until its stroke, at most
LOUDNESS = 0.15, 0.5  # of its stroke


class Scene(world.Scene):
    """A scene whose colour and pitch are not in its prompt."""

    @property
    def caption(self) -> str:
        """The prompt."""
        return f"A {self.size} ball falls and bounces. Audio: a bell rings."


def scene(seed: int) -> Scene:
    """Return the scene of a seed: that of the ball's world, but with a pitch of its own."""
    pitch = random.Random(f"pitch {seed}").choice(list(world.PITCHES))
    return Scene(**dataclasses.asdict(world.scene(seed)) | {"pitch": pitch})


def image(scene: Scene, seed: int) -> Tensor:
    """Draw the reference image [1, H, W, 3] of a scene; a seed draws the ball's size, another one, and its height."""
    draw = random.Random(f"image {seed}")
    radius = world.RADII[draw.choice([size for size in world.RADII if size != scene.size])]
    height = draw.uniform(0, world.FLOOR - 2 * radius - 4)
    return world.balls(scene.colour, radius, torch.tensor([height]))


def recording(scene: Scene, seed: int) -> Tensor:
    """Compute the reference recording [samples] of a scene; a seed draws when the bell is struck, and how loudly."""
    draw = random.Random(f"sound {seed}")
    stroke = draw.uniform(0, LATEST), draw.uniform(*LOUDNESS)
    return world.bells(scene.pitch, [stroke], SECONDS)
