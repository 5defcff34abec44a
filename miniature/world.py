"""The world of the miniature: a coloured ball falls, bounces, and sounds each time that it hits the floor.

Pictures are [T, H, W, 3] from 0 to 1, sounds [samples] at 16 kHz; lengths in the picture are pixels,
times seconds.
A scene is made from a seed; what its caption does not tell is when the ball hits the floor.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

WIDTH, HEIGHT = 96, 96
LEFT, RIGHT = 32, 64  # the columns between which the ball moves up and down
FRAMES = 49
FPS = 24
RATE = 16_000  # samples per second
SECONDS = (FRAMES - 1) / FPS
FLOOR = 84.0  # the row that the ball hits

# Of nearly the same luma, so that brightness tells where the ball is, and colour which it is.
COLOURS = {"red": (1.0, 0.36, 0.32), "green": (0.16, 0.74, 0.2), "blue": (0.36, 0.5, 1.0), "yellow": (0.82, 0.5, 0.0)}
RADII = {"small": 9.0, "medium": 12.0, "large": 15.0}
BELLS = {"small": "high", "medium": "middle", "large": "low"}
PITCHES = {"low": 500.0, "middle": 1000.0, "high": 2000.0}  # Hz
DECAY = 0.09  # seconds in which a bell falls to 1/e
SPEED = 240.0  # pixels per second: an impact of full loudness
SLOWEST = 20.0  # an impact that nobody hears
HELD_OUT = 1_000_000  # the first seed that training never sees


@dataclass(frozen=True)
class Scene:
    """What happens in a clip: a ball falls from rest, `height` above the floor."""

    colour: str
    size: str
    height: float
    gravity: float
    restitution: float  # speed after an impact / before it

    @property
    def caption(self) -> str:
        """What the prompt says, in Ovi's form."""
        return f"A {self.size} {self.colour} ball falls and bounces. Audio: a {BELLS[self.size]} bell rings."

    def impacts(self) -> list[tuple[float, float]]:
        """Time and speed of each time that the ball hits the floor within the clip."""
        fall = math.sqrt(2 * self.height / self.gravity)
        time, speed = fall, self.gravity * fall
        found = []
        while time < SECONDS and speed > SLOWEST:
            found.append((time, speed))
            speed *= self.restitution
            time += 2 * speed / self.gravity
        return found

    def heights(self, times: Tensor) -> Tensor:
        """How far the ball is above the floor at some times."""
        height = self.height - 0.5 * self.gravity * times**2
        for time, speed in self.impacts():
            since = times - time
            hop = since * (self.restitution * speed - 0.5 * self.gravity * since)
            height = torch.where(since >= 0, hop, height)
        return height.clamp(min=0)


def scene(seed: int) -> Scene:
    """The scene of a seed."""
    draw = random.Random(seed)
    size = draw.choice(list(RADII))
    room = FLOOR - 2 * RADII[size] - 4
    return Scene(
        colour=draw.choice(list(COLOURS)),
        size=size,
        height=room * draw.uniform(0.55, 1),
        gravity=draw.uniform(300, 600),
        restitution=draw.uniform(0.76, 0.92),
    )


def background() -> Tensor:
    """The empty stage [H, W, 3]: light on the wall that fades to the sides and downwards, and a floor."""
    rows, columns = _grid()
    light = 1 - ((columns - WIDTH / 2) / HEIGHT) ** 2 * 2
    wall = 0.22 * light * (1.2 - rows / HEIGHT)
    floor = 0.3 * light
    below = (rows - FLOOR + 0.5).clamp(0, 1)
    return torch.lerp(wall, floor, below)[..., None] * torch.tensor([0.9, 0.95, 1.1])


def picture(of: Scene) -> Tensor:
    """The frames [T, H, W, 3] of a scene."""
    heights = of.heights(torch.arange(FRAMES) / FPS)
    radius = RADII[of.size]
    rows, columns = _grid()
    centres = FLOOR - radius - heights
    away = torch.hypot(rows - centres[:, None, None], columns - WIDTH / 2)
    ball = (radius - away + 0.5).clamp(0, 1)[..., None]  # the share of a pixel that the ball covers
    return torch.lerp(background(), torch.tensor(COLOURS[of.colour]), ball)


def sound(of: Scene) -> Tensor:
    """The samples of a scene: at each impact a bell and, softer and shorter, its octave."""
    pitch = PITCHES[BELLS[of.size]]
    times = torch.arange(round(FRAMES / FPS * RATE)) / RATE
    out = torch.zeros_like(times)
    for time, speed in of.impacts():
        since = (times - time).clamp(min=0)
        attack = (since * 500).clamp(max=1)  # 2 ms
        loudness = 0.4 * speed / SPEED
        tone = torch.sin(2 * math.pi * pitch * since) * torch.exp(-since / DECAY)
        octave = 0.3 * torch.sin(4 * math.pi * pitch * since) * torch.exp(-2 * since / DECAY)
        out += loudness * attack * (tone + octave)
    return out


def _grid() -> tuple[Tensor, Tensor]:
    """Row and column of the middle of each pixel, [H, W] each."""
    rows, columns = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    return rows, columns
