"""The world of the miniature: a coloured ball falls and bounces, and a bell rings each time that it hits the floor.

Frames are [T, H, W, 3] from 0 to 1, waveforms [samples] at 16 kHz. Distances are pixels, times seconds. A scene is made
from a seed. Its caption does not tell when the ball hits the floor.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WIDTH, HEIGHT = 96, 96
LEFT, RIGHT = 32, 64  # the columns between which the ball moves up and down
FRAMES = 49
# Ovi's own numbers. ComfyUI loads this folder without the pack's `ovi` on its path.
FPS = 24.0
RATE = 16_000  # samples per second
SECONDS = (FRAMES - 1) / FPS
FLOOR = 84.0  # the row that the ball hits

# All have nearly the same luma: brightness shows where the ball is, and colour shows which ball it is.
COLOURS = {"red": (1.0, 0.36, 0.32), "green": (0.16, 0.74, 0.2), "blue": (0.36, 0.5, 1.0), "yellow": (0.82, 0.5, 0.0)}
RADII = {"small": 9.0, "medium": 12.0, "large": 15.0}
BELLS = {"small": "high", "medium": "middle", "large": "low"}
PITCHES = {"low": 500.0, "middle": 1000.0, "high": 2000.0}  # Hz
DECAY = 0.09  # seconds in which a bell's sound falls to 1/e
SPEED = 240.0  # pixels per second: speed of an impact of full loudness
SLOWEST = 20.0  # pixels per second: slower impacts are left out
HELD_OUT = 1_000_000  # the first seed of the scenes that are kept for evaluation


@dataclass(frozen=True)
class Scene:
    """What happens in a clip: a ball falls from rest, `height` pixels above the floor."""

    colour: str
    size: str
    pitch: str
    height: float
    gravity: float  # pixels per second squared
    restitution: float  # speed after an impact / before it

    @property
    def caption(self) -> str:
        """The prompt, in Ovi's form."""
        return f"A {self.size} {self.colour} ball falls and bounces. Audio: a {self.pitch} bell rings."

    def impacts(self) -> list[tuple[float, float]]:
        """Return the time and speed of each impact on the floor within the clip."""
        fall = math.sqrt(2 * self.height / self.gravity)
        time, speed = fall, self.gravity * fall
        impacts = []
        while time < SECONDS and speed > SLOWEST:
            impacts.append((time, speed))
            speed *= self.restitution
            time += 2 * speed / self.gravity
        return impacts

    def heights(self, times: Tensor) -> Tensor:
        """Return the ball's height above the floor at `times`."""
        height = self.height - 0.5 * self.gravity * times**2
        for time, speed in self.impacts():
            since = times - time
            hop = since * (self.restitution * speed - 0.5 * self.gravity * since)
            height = torch.where(since >= 0, hop, height)
        return height.clamp(min=0)


def scene(seed: int) -> Scene:
    """Return the scene of a seed."""
    draw = random.Random(seed)
    size = draw.choice(list(RADII))
    room = FLOOR - 2 * RADII[size] - 4
    return Scene(
        colour=draw.choice(list(COLOURS)),
        size=size,
        pitch=BELLS[size],
        height=room * draw.uniform(0.55, 1),
        gravity=draw.uniform(300, 600),
        restitution=draw.uniform(0.76, 0.92),
    )


def background() -> Tensor:
    """Draw the empty stage [H, W, 3]: a wall, lit less towards the sides and the bottom, and a floor."""
    rows, columns = _grid()
    light = 1 - ((columns - WIDTH / 2) / HEIGHT) ** 2 * 2
    wall = 0.22 * light * (1.2 - rows / HEIGHT)
    floor = 0.3 * light
    below = (rows - FLOOR + 0.5).clamp(0, 1)
    return torch.lerp(wall, floor, below)[..., None] * torch.tensor([0.9, 0.95, 1.1])


def frames(scene: Scene) -> Tensor:
    """Draw the frames [T, H, W, 3] of a scene."""
    return balls(scene.colour, RADII[scene.size], scene.heights(torch.arange(FRAMES) / FPS))


def balls(colour: str, radius: float, heights: Tensor) -> Tensor:
    """Draw frames [T, H, W, 3] of a ball in the middle of the stage, at `heights` [T] above the floor."""
    rows, columns = _grid()
    centres = FLOOR - radius - heights
    away = torch.hypot(rows - centres[:, None, None], columns - WIDTH / 2)
    ball = (radius - away + 0.5).clamp(0, 1)[..., None]  # the share of a pixel that the ball covers
    return torch.lerp(background(), torch.tensor(COLOURS[colour]), ball)


def waveform(scene: Scene) -> Tensor:
    """Compute the audio [samples] of a scene: a bell at each impact."""
    return bells(scene.pitch, [(time, 0.4 * speed / SPEED) for time, speed in scene.impacts()], FRAMES / FPS)


def bells(pitch: str, strokes: Sequence[tuple[float, float]], seconds: float) -> Tensor:
    """Compute the audio [samples] of a bell, and softer and shorter its octave, at strokes of a time and a loudness."""
    hertz = PITCHES[pitch]
    times = torch.arange(round(seconds * RATE)) / RATE
    out = torch.zeros_like(times)
    for time, loudness in strokes:
        since = (times - time).clamp(min=0)
        attack = (since * 500).clamp(max=1)  # 2 ms
        tone = torch.sin(2 * math.pi * hertz * since) * torch.exp(-since / DECAY)
        octave = 0.3 * torch.sin(4 * math.pi * hertz * since) * torch.exp(-2 * since / DECAY)
        out += loudness * attack * (tone + octave)
    return out


def _grid() -> tuple[Tensor, Tensor]:
    """Return the row and the column of each pixel's middle, [H, W] each."""
    rows, columns = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    return rows, columns
