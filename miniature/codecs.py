"""The miniature's codecs: fixed formulas in the layouts of Ovi's latents.

Video: frames [B, 3, 1 + 4 n, H, W] from -1 to 1, latents [B, 48, 1 + n, H / 16, W / 16], normalised. A latent pixel
holds the mean luma of 4 frames x 4 rows x 2 columns and the mean chroma of 2 pairs of frames x 2 rows x 2 columns. The
first latent frame holds one frame, four times.

Audio: waveforms [B, samples] at 16 kHz, latents [B, 20, L], each of 512 samples: the loudness of some bands in some
parts. A band is decoded to a tone in its middle. The ball's world has 5 octaves in 4 parts of 8 ms, the talking one 10
bands in 2 parts of 16 ms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from .world import RATE

LATENT = 512  # samples of an audio latent

LUMA_MEAN, LUMA_GAIN, CHROMA_GAIN = -0.6, 4.0, 4.0

TO_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])  # JPEG's


@dataclass(frozen=True)
class Bands:
    """How the audio latents of a world are laid out, and scaled to about ±1."""

    centres: tuple[float, ...]  # Hz, the middle of each band
    parts: int  # of the 512 samples of a latent
    soft: float  # loudness below which the scale of the latents is linear, and above which it is logarithmic
    mean: float
    gain: float

    @property
    def step(self) -> int:
        """Samples of a part."""
        return LATENT // self.parts

    @property
    def window(self) -> int:
        """Samples of a window of the spectrum."""
        return 2 * self.step


BELLS = Bands((250.0, 500.0, 1000.0, 2000.0, 4000.0), parts=4, soft=0.01, mean=0.6, gain=0.8)
# From the murmur of an m over the formants of vowels to the hiss of an s.
SPEECH = Bands(
    (110.0, 220.0, 330.0, 480.0, 720.0, 1080.0, 1620.0, 2350.0, 3400.0, 5500.0),
    parts=2,
    soft=0.005,
    mean=0.85,
    gain=0.75,
)


class VideoCodec(nn.Module):
    """Encoder and decoder of video latents."""

    to_ycc: Tensor
    to_rgb: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("to_ycc", TO_YCC)
        self.register_buffer("to_rgb", torch.linalg.inv(TO_YCC))

    def encode(self, frames: Tensor) -> Tensor:
        """Encode [B, 3, 1 + 4 n, H, W] → [B, 48, 1 + n, H / 16, W / 16]."""
        ycc = torch.einsum("dc,bcthw->bdthw", self.to_ycc, frames)
        ycc = torch.cat([ycc[:, :, :1].expand(-1, -1, 3, -1, -1), ycc], dim=2)
        luma = reduce(ycc[:, :1], "b 1 (f t) (h r y) (w c x) -> b (t r c) f h w", "mean", t=4, r=4, y=4, c=2, x=8)
        chroma = reduce(
            ycc[:, 1:], "b d (f t s) (h r y) (w c x) -> b (d t r c) f h w", "mean", t=2, s=2, r=2, y=8, c=2, x=8
        )
        return torch.cat([(luma - LUMA_MEAN) * LUMA_GAIN, chroma * CHROMA_GAIN], dim=1)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode [B, 48, 1 + n, H / 16, W / 16] → [B, 3, 1 + 4 n, H, W]."""
        luma, chroma = latents.split([32, 16], dim=1)
        luma = rearrange(luma, "b (t r c) f h w -> b 1 (f t) (h r) (w c)", t=4, r=4, c=2) / LUMA_GAIN + LUMA_MEAN
        chroma = rearrange(chroma, "b (d t r c) f h w -> b d (f t) (h r) (w c)", d=2, t=2, r=2, c=2) / CHROMA_GAIN
        size = (luma.shape[2], 4 * luma.shape[3], 8 * luma.shape[4])
        ycc = torch.cat([_resized(luma, size), _resized(chroma, size)], dim=1)
        frames = torch.einsum("dc,bcthw->bdthw", self.to_rgb, ycc)
        return torch.cat([frames[:, :, :4].mean(2, keepdim=True), frames[:, :, 4:]], dim=2).clamp(-1, 1)


class AudioCodec(nn.Module):
    """Encoder and decoder of audio latents, laid out in `bands`."""

    window: Tensor
    filters: Tensor

    def __init__(self, bands: Bands = BELLS) -> None:
        super().__init__()
        self.bands = bands
        self.register_buffer("window", torch.hann_window(bands.window))
        frequencies = torch.fft.rfftfreq(bands.window, 1 / RATE).clamp(min=1)
        nearest = (frequencies[:, None] / torch.tensor(bands.centres)).log().abs().argmin(1)
        self.register_buffer("filters", F.one_hot(nearest, len(bands.centres)).float())

    def loudness(self, waveforms: Tensor) -> Tensor:
        """Measure [B, samples] → [B, bands, parts]: of each band in each part, a sine's being its amplitude."""
        bands = self.bands
        missing = -waveforms.shape[1] % LATENT
        edge = (bands.window - bands.step) // 2
        padded = F.pad(waveforms, (edge, missing + edge))
        # B, frequencies, parts
        spectrum = torch.stft(padded, bands.window, bands.step, window=self.window, center=False, return_complex=True)
        energy = torch.einsum("bft,fo->bot", spectrum.abs().square(), self.filters)
        return energy.sqrt() / (self.window.square().sum() * bands.window / 4).sqrt()

    def encode(self, waveforms: Tensor) -> Tensor:
        """Encode [B, samples] → [B, 20, L], L = samples / 512 rounded up."""
        bands = self.bands
        parts = (self.loudness(waveforms) / bands.soft).log1p() - bands.mean / bands.gain
        return rearrange(parts * bands.gain, "b o (l p) -> b (o p) l", p=bands.parts)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode [B, 20, L] → [B, 512 L]."""
        loudness = self.over_time(self.levels(latents))
        time = torch.arange(loudness.shape[2], device=latents.device) / RATE
        tones = torch.sin(2 * math.pi * torch.tensor(self.bands.centres, device=latents.device)[:, None] * time)
        return (loudness * tones).sum(1).clamp(-1, 1)

    def levels(self, latents: Tensor) -> Tensor:
        """Return the loudness that latents hold, [B, 20, L] → [B, bands, parts]."""
        bands = self.bands
        parts = rearrange(latents, "b (o p) l -> b o (l p)", p=bands.parts)
        return bands.soft * ((parts + bands.mean) / bands.gain).clamp(0, 6).expm1()

    def over_time(self, levels: Tensor) -> Tensor:
        """Draw lines from part to part, [B, C, parts] → [B, C, samples]."""
        return F.interpolate(levels, scale_factor=self.bands.step, mode="linear")


def _resized(planes: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Resize planes [B, C, t, h, w] to (T, H, W)."""
    return F.interpolate(planes, size=size, mode="trilinear")
