"""The miniature's codecs: fixed formulas in the layouts of Ovi's latents.

Video: frames [B, 3, 1 + 4 n, H, W] from -1 to 1, latents [B, 48, 1 + n, H / 16, W / 16], normalised. A latent pixel
holds the mean luma of 4 frames x 4 rows x 2 columns and the mean chroma of 2 pairs of frames x 2 rows x 2 columns. The
first latent frame holds one frame, four times.

Audio: waveforms [B, samples] at 16 kHz, latents [B, 20, L], each of 512 samples: the loudness of 5 octaves in 4 parts
of 8 ms. An octave is decoded to a tone in its middle.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from .world import RATE

STEP = 128  # samples of a part: 8 ms
PARTS = 4
WINDOW = 256  # samples of a window of the spectrum
OCTAVES = (250.0, 500.0, 1000.0, 2000.0, 4000.0)  # Hz, the middle of each
SOFT = 0.01  # loudness below which the scale of the latents is linear, and above which it is logarithmic

LUMA_MEAN, LUMA_GAIN, CHROMA_GAIN = -0.6, 4.0, 4.0
AUDIO_MEAN, AUDIO_GAIN = 0.6, 0.8

TO_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])  # JPEG's


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
    """Encoder and decoder of audio latents."""

    window: Tensor
    bands: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW))
        centres = torch.fft.rfftfreq(WINDOW, 1 / RATE).clamp(min=1)
        nearest = (centres[:, None] / torch.tensor(OCTAVES)).log().abs().argmin(1)
        self.register_buffer("bands", F.one_hot(nearest, len(OCTAVES)).float())

    def encode(self, waveforms: Tensor) -> Tensor:
        """Encode [B, samples] → [B, 20, L], L = samples / 512 rounded up."""
        missing = -waveforms.shape[1] % (STEP * PARTS)
        edge = (WINDOW - STEP) // 2
        padded = F.pad(waveforms, (edge, missing + edge))
        # [B, bins, 4 L]
        spectrum = torch.stft(padded, WINDOW, STEP, window=self.window, center=False, return_complex=True)
        energy = torch.einsum("bft,fo->bot", spectrum.abs().square(), self.bands)
        loudness = energy.sqrt() / (self.window.square().sum() * WINDOW / 4).sqrt()  # a sine's is its amplitude
        parts = (loudness / SOFT).log1p() - AUDIO_MEAN / AUDIO_GAIN
        return rearrange(parts * AUDIO_GAIN, "b o (l p) -> b (o p) l", p=PARTS)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode [B, 20, L] → [B, 512 L]."""
        parts = rearrange(latents, "b (o p) l -> b o (l p)", p=PARTS)
        loudness = SOFT * ((parts + AUDIO_MEAN) / AUDIO_GAIN).clamp(0, 6).expm1()
        loudness = F.interpolate(loudness, scale_factor=STEP, mode="linear")
        time = torch.arange(loudness.shape[2], device=latents.device) / RATE
        tones = torch.sin(2 * math.pi * torch.tensor(OCTAVES, device=latents.device)[:, None] * time)
        return (loudness * tones).sum(1).clamp(-1, 1)


def _resized(planes: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Resize planes [B, C, t, h, w] to (T, H, W)."""
    return F.interpolate(planes, size=size, mode="trilinear")
