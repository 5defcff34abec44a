"""Frames, tones, saved clips, and light stand-ins for the two VAEs, whose latents can be predicted."""

from __future__ import annotations

import math

import av
import numpy as np
import torch
import torch.nn.functional as F

from ovi.join import starts

RATE = 44_100  # samples per second on both sides of ComfyUI's audio VAE


class BlockVAE:
    """Stands for the Wan 2.2 VAE: the same grid in time and space; blocks of 4x4 pixels and 4 frames survive it."""

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

    def decode(self, latent):
        """[1, 20, L] → [1, S, 1]: each part's loudness, for as long as it lasts."""
        parts = latent.transpose(1, 2).reshape(1, 1, -1)
        return F.interpolate(parts, size=round(latent.shape[-1] * 512 * RATE / 16000)).movedim(1, -1)


def random_frames(count, width=128, height=96, seed=0):
    """Return frames [count, height, width, 3] of random blocks of 4x4 pixels, which BlockVAE reproduces."""
    blocks = torch.rand(count, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(blocks, scale_factor=4).movedim(1, -1)


def broken(tensor, value=torch.nan):
    """Return a copy whose last number is NaN or infinity."""
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    tensor.view(-1)[-1] = value
    return tensor


def tone(seconds, rate=RATE, channels=1, hertz=440.0, amplitude=0.5):
    """Return a tone as ComfyUI's AUDIO, the same in all channels."""
    times = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    wave = amplitude * torch.sin(2 * math.pi * hertz * times).float()
    return {"waveform": wave.expand(1, channels, -1), "sample_rate": rate}


def slices(wave, lengths, overlap, rate):
    """Cut a wave [C, S] into the audio of clips of these lengths in frames, each overlapping the one before."""
    *begins, _ = starts(lengths, [overlap] * (len(lengths) - 1))
    ends = [begin + length for begin, length in zip(begins, lengths, strict=True)]
    return [wave[:, round(a / 24 * rate) : round(b / 24 * rate)] for a, b in zip(begins, ends, strict=True)]


def read_clip(path):
    """Read a saved clip: frames [T, H, W, 3], wave [S], frames per second, and the duration of its audio in seconds."""
    with av.open(path) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        wave = np.concatenate([block.to_ndarray()[0] for block in container.decode(audio)])
        container.seek(0)
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video)])
        return frames, wave, video.average_rate, float(audio.duration * audio.time_base)
