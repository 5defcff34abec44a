"""Pictures, sounds, and light stand-ins for the two VAEs whose latents can be foretold."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

RATE = 44_100  # samples per second that ComfyUI's audio VAE takes and gives


class BlockVAE:
    """Stands for the Wan 2.2 VAE: the same grid in time and space; blocks of 4x4 pixels and 4 frames come back."""

    latent_dim, latent_channels = 3, 48

    def encode(self, pixels):
        """[T, H, W, 3] → [1, 48, F, H / 16, W / 16]: the first frame, then the mean of each four."""
        assert len(pixels) % 4 == 1
        blocks = F.avg_pool2d(pixels.movedim(-1, 1), 4)
        latents = torch.cat([blocks[:1], blocks[1:].unflatten(0, (-1, 4)).mean(1)])
        return F.pixel_unshuffle(latents, 4).movedim(0, 1)[None]

    def decode(self, latent):
        """[1, 48, F, h, w] → [1, T, H, W, 3]."""
        frames = F.interpolate(F.pixel_shuffle(latent[0].movedim(1, 0), 4), scale_factor=4)
        return torch.cat([frames[:1], frames[1:].repeat_interleave(4, 0)]).movedim(1, -1)[None]


class WindowVAE:
    """Stands for the audio VAE: a latent holds the loudness of its 32 ms in 20 parts, at the true rate."""

    latent_dim, latent_channels = 1, 20
    audio_sample_rate = RATE

    def encode(self, wave):
        """[1, S, 1] → [1, 20, L]."""
        samples = math.ceil(wave.shape[1] * 160 / 441)
        latents = samples // 512
        parts = F.interpolate(wave.movedim(-1, 1).abs(), size=samples)[..., : latents * 512]
        return F.adaptive_avg_pool1d(parts, latents * 20).view(1, latents, 20).transpose(1, 2)


def pictures(count, width=128, height=96, seed=0):
    """Frames [count, height, width, 3] of random blocks of 4x4 pixels, which BlockVAE gives back."""
    blocks = torch.rand(count, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(blocks, scale_factor=4).movedim(1, -1)


def sound(seconds, rate=RATE, channels=1, hertz=440.0, amplitude=0.5):
    """A tone as ComfyUI's AUDIO, the same in all channels."""
    times = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    wave = amplitude * torch.sin(2 * math.pi * hertz * times).float()
    return {"waveform": wave.expand(1, channels, -1), "sample_rate": rate}
