"""A spectrogram of the audio, to look at beside the frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import SAMPLE_RATE

WIDTH, HEIGHT = 768, 192  # pixels
WINDOW = 1024  # samples of one column
TOP_FREQUENCY = SAMPLE_RATE / 2  # Hz; Ovi's audio has nothing above
RANGE = 80.0  # decibels from black to white
QUIET = -40.0  # decibels; audio that is never louder, such as silence, stays dark


def spectrogram(waveform: Tensor, sample_rate: int) -> Tensor:
    """Draw a waveform [B, C, S], its channels mixed, as an IMAGE [B, HEIGHT, WIDTH, 3].

    Time runs to the right, frequency upwards from 0 to 8 kHz; white is the loudest point, black 80 dB below.
    """
    mono = waveform.float().mean(1)
    mono = F.pad(mono, (0, max(0, WINDOW - mono.shape[1])))
    hop = max(1, mono.shape[1] // WIDTH)
    window = torch.hann_window(WINDOW, device=mono.device)
    power = torch.stft(mono, WINDOW, hop, window=window, return_complex=True).abs().square()  # [B, frequency, time]
    power = power[:, : 1 + int(TOP_FREQUENCY * WINDOW / sample_rate)]
    decibels = 10 * power.clamp(min=1e-12).log10()
    loudest = decibels.amax((1, 2), keepdim=True).clamp(min=QUIET)
    brightness = (1 + (decibels - loudest) / RANGE).clamp(min=0)
    image = F.interpolate(brightness.flip(1)[:, None], (HEIGHT, WIDTH), mode="bilinear", antialias=True)
    return image.movedim(1, -1).expand(-1, -1, -1, 3)
