"""The decoder of the talking world for people: a voice and the noise of consonants instead of one tone a band.

Each band is as loud as its latents say: by the harmonics of the voice that lie in it, or, the highest ones, by noise.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .codecs import SPEECH, AudioCodec
from .speech import VOICES
from .world import RATE

NOISE = 2  # the highest bands, which have noise
LOW = 0.1  # how loud the first band is next to the second at least where the voice is low: it is 0.5, or 0.01
AROUND = 33  # parts that tell the voice of the one in their middle, half a second
FADE = 64  # samples at both ends, 4 ms
EDGES = torch.tensor(SPEECH.centres).log().unfold(0, 2, 1).mean(1).exp()  # Hz, between the bands


class VoiceCodec(AudioCodec):
    """The audio codec of the talking world, which decodes to a voice."""

    def __init__(self) -> None:
        super().__init__(SPEECH)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode [B, 20, L] → [B, 512 L]; a clip that would be louder than 1 is made softer as a whole."""
        levels = self.levels(latents)
        low, high = VOICES.values()
        is_low = _is_low(levels)
        waveforms = self._noise(levels) + self._voice(levels * is_low, low) + self._voice(levels * (1 - is_low), high)
        ramp = torch.arange(1, FADE + 1, device=latents.device) / FADE
        waveforms[:, :FADE] *= ramp
        waveforms[:, -FADE:] *= ramp.flip(0)
        return waveforms / waveforms.abs().amax(1, keepdim=True).clamp(min=1)

    def _voice(self, levels: Tensor, hertz: float) -> Tensor:
        """Add up the harmonics of a voice, [B, bands, parts] → [B, samples]; those in a band share its energy."""
        number = torch.arange(1, int(EDGES[-NOISE].item() / hertz) + 1)
        band = torch.bucketize(number * hertz, EDGES)
        share = F.one_hot(band).sum(0)[band].rsqrt()
        turns = -number * (number - 1) / (2 * len(number))  # Schroeder's phases: the peaks are low
        time = torch.arange(levels.shape[2] * self.bands.step) / RATE
        sines = torch.sin(2 * math.pi * (number[:, None] * hertz * time % 1 + turns[:, None]))
        loudness = levels[:, band] * share[:, None].to(levels)
        return (self.over_time(loudness) * sines.to(levels)).sum(1)

    def _noise(self, levels: Tensor) -> Tensor:
        """Make the noise of the highest bands, [B, bands, parts] → [B, samples]."""
        levels = levels[:, -NOISE:]
        samples = levels.shape[2] * self.bands.step
        white = torch.randn(samples, generator=torch.Generator().manual_seed(0)).to(levels)
        band = torch.bucketize(torch.fft.rfftfreq(samples, 1 / RATE), EDGES)
        kept = band == torch.arange(len(EDGES) + 1 - NOISE, len(EDGES) + 1)[:, None]
        noise = torch.fft.irfft(torch.fft.rfft(white) * kept.to(levels.device), samples)  # [NOISE, samples]
        loudness = self.loudness(noise).square().sum(1).mean(1).sqrt()
        return (self.over_time(levels) * (noise / loudness[:, None])).sum(1)


def _is_low(levels: Tensor) -> Tensor:
    """Tell where the voice is low, 1, and where high, 0: [B, bands, parts] → [B, 1, parts]."""
    energy = F.avg_pool1d(levels[:, :2].square(), AROUND, 1, AROUND // 2)
    return (energy[:, :1] > LOW**2 * energy[:, 1:]).to(levels)
