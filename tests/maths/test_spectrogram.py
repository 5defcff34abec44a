"""The spectrogram as an image."""

from __future__ import annotations

import math

import pytest
import torch

from ovi.spectrogram import HEIGHT, WIDTH, spectrogram


@pytest.mark.parametrize("frequency", [500.0, 2000.0, 6000.0])
@pytest.mark.parametrize("sample_rate", [16_000, 44_100])
def test_a_tone_is_a_line_at_its_frequency(frequency, sample_rate):
    """Silence first, then a tone: dark on the left, and on the right a bright row, 8 kHz above the lowest one."""
    time = torch.arange(2 * sample_rate) / sample_rate
    wave = torch.where(time < 1, 0, torch.sin(2 * math.pi * frequency * time))
    image = spectrogram(wave.view(1, 1, -1), sample_rate)
    assert tuple(image.shape) == (1, HEIGHT, WIDTH, 3)
    left, right = image[0, :, : WIDTH // 4, 0], image[0, :, -WIDTH // 4 :, 0]
    assert left.max() == 0
    row = right.mean(1).argmax().item()
    assert HEIGHT * (1 - frequency / 8000) == pytest.approx(row, abs=4)


@pytest.mark.parametrize("samples", [1, 100, 44_100])
def test_short_and_silent_audio_is_drawn(samples):
    image = spectrogram(torch.zeros(2, 2, samples), 44_100)
    assert tuple(image.shape) == (2, HEIGHT, WIDTH, 3)
    assert not image.any()
