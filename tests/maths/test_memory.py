"""Peak memory of the full-size model, traced with fake tensors."""

from __future__ import annotations

import itertools

import pytest
import torch

from bench import trace
from ovi.config import OviConfig
from ovi.memory import activation_bytes, tokens
from ovi.model import OviModel, References

CONFIG = OviConfig()
GEOMETRIES = [
    (1, *size, frames) for size, frames in itertools.product([(720, 720), (1280, 704), (960, 960)], [121, 241])
]
GEOMETRIES.append((2, 1280, 704, 121))


def traced(shapes, rotate=trace.fused_rotate):
    return trace.peak(OviModel, CONFIG, shapes, attention=trace.flash, rotate=rotate)


@pytest.mark.parametrize("rotate", [trace.fused_rotate, trace.plain_rotate])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_estimate_follows_the_trace(geometry, rotate):
    """Within 15 %, whether ComfyUI has a fused kernel for rotations or not."""
    video, audio = shapes = trace.latents(CONFIG, *geometry)
    peak, largest = traced(shapes, rotate)
    assert activation_bytes(CONFIG, video[0], video[2:], audio[2], element_size=2) == pytest.approx(peak, rel=0.15)
    assert largest < 6 * CONFIG.dim * video[0] * tokens(CONFIG, video[2:], audio[2]), "modulation for each token"


def test_longest_published_clip_fits():
    peak, _ = traced(trace.latents(CONFIG, 1, 960, 960, 121))
    assert peak < 1.6e9


def test_peak_does_not_depend_on_depth(monkeypatch):
    shapes = trace.latents(CONFIG, 1, 720, 720, 121)
    shallow = traced(shapes)
    monkeypatch.setattr(trace, "LAYERS", 4)
    assert traced(shapes) == shallow


class TwoPersons(OviModel):
    """Ovi with two faces and two voices of a second."""

    def forward(self, x, *args, **options):
        video, audio = x
        face, voice = torch.empty_like(video[:, :, :1]), torch.empty_like(audio[..., :31])
        return super().forward(x, *args, references=References([face] * 2, [voice] * 2), **options)


def test_estimate_with_references_follows_the_trace():
    video, audio = shapes = trace.latents(CONFIG, 1, 1280, 704, 121)
    peak, _ = trace.peak(TwoPersons, CONFIG, shapes, attention=trace.flash, rotate=trace.fused_rotate)
    grid = (video[2] + 2, *video[3:])
    assert activation_bytes(CONFIG, 1, grid, audio[2] + 62, element_size=2) == pytest.approx(peak, rel=0.15)
