"""Flow matching, as Ovi is trained: samples with noise, and the losses of both towers.

x = (1 - sigma) x0 + sigma noise, and the model learns the velocity noise - x0 of both modalities. Sigma has the
distribution of a shifted schedule and is the same for both towers. In a share of the first steps each tower has its own
sigma instead, one nearly clean and the other nearly noise, so that the noisy one can only be learned from the other.

Person references (see `references`) have no noise and no loss. In a share of the samples they are zeros, which is what
guidance by references compares with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .references import References
from .sampling import SHIFT

MAX_BATCH = 4096  # samples, all of which are in memory at once
CLEAN, NOISY = (0.0, 0.3), (0.6, 1.0)  # ranges of sigma where each tower has its own


class Sample(NamedTuple):
    """A clip as the model reads it in training."""

    video: Tensor  # [48, F, H, W], normalised for each channel
    audio: Tensor  # [20, L]
    context: Tensor  # the text, [T, text_dim]
    images: Sequence[Tensor] = ()  # of its persons, [48, 1, H, W] each, normalised as the video
    voices: Sequence[Tensor] = ()  # of its persons, [20, L] each, of any length


class Samples(Protocol):
    """What training draws from: a list of samples, or a source that reads or computes them on request."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True)
class Settings:
    """How to train: everything but the number of steps that two runs must share to have the same losses."""

    batch: int = 1
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup: int = 100  # steps in which the learning rate rises
    cooldown: float = 0.2  # share of the steps, the last ones, in which it falls to zero
    max_norm: float = 1.0  # of the gradient
    ema: float = 0.998  # decay of the averaged weights
    shift: float = SHIFT  # of sigma's distribution
    audio_weight: float = 1.0  # of the audio's loss, a mean over its elements; the video's has 1
    text_dropout: float = 0.1  # share of samples trained without their text, for guidance
    reference_dropout: float = 0.1  # share of samples with zeros for their images, and of those for their voices
    first_frame: float = 0.2  # share of samples whose first frame is given
    split: float = 0.0  # share of batches in which each tower has its own sigma ...
    split_steps: int = 0  # ... within this many first steps
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of its range."""
        checks: dict[str, tuple[tuple[str, ...], Callable[[float], bool]]] = {
            "a positive number": (("lr", "max_norm", "shift"), lambda value: 0 < value < math.inf),
            "at least 0": (
                ("weight_decay", "warmup", "audio_weight", "split_steps"),
                lambda value: 0 <= value < math.inf,
            ),
            "from 0 to 1": (
                ("cooldown", "ema", "text_dropout", "reference_dropout", "first_frame", "split"),
                lambda value: 0 <= value <= 1,
            ),
            f"from 1 to {MAX_BATCH}": (("batch",), lambda value: 1 <= value <= MAX_BATCH),
            "from 0 to 2**63 - 1": (("seed",), lambda value: 0 <= value < 2**63),
        }
        for needed, (names, fits) in checks.items():
            for name in names:
                if not fits(value := getattr(self, name)):
                    raise ValueError(f"The setting {name.replace('_', ' ')} is {value}, but must be {needed}.")


class Noised(NamedTuple):
    """A batch with noise: what the model gets, and the velocity that it should predict."""

    x: list[Tensor]  # video [B, 48, F, H, W], audio [B, 20, L]
    timestep: tuple[Tensor, Tensor]  # video [B, F], audio [B]
    context: Tensor  # [B, T, text_dim]
    velocity: list[Tensor]  # as x
    counts: Tensor  # [B, 1, F, 1, 1]: 0 for given frames, which have no loss
    references: References | None = None  # None: of clips without persons


def noised(
    samples: Sequence[Sample], empty: Tensor, settings: Settings, draw: torch.Generator, *, split: bool = False
) -> Noised:
    """Draw sigmas and noise for a batch; `empty` [T, text_dim] replaces the text of a sample where it is dropped.

    The sigmas of a batch are spread evenly over their distribution. Raises ValueError where the samples' sizes differ,
    or those of their references.
    """
    videos, audios = [sample.video for sample in samples], [sample.audio for sample in samples]
    for name, latents in (("video", videos), ("audio", audios)):
        if len(shapes := {tuple(latent.shape) for latent in latents}) > 1:
            raise ValueError(f"The {name} latents of a batch have shapes {shapes}; train with a batch of 1.")
    n = len(samples)
    x0 = [torch.stack(videos).float(), torch.stack(audios).float()]
    even = (torch.arange(n) + torch.rand(1, generator=draw)) / n
    sigma = even * settings.shift / (1 + (settings.shift - 1) * even)
    video_sigma, audio_sigma = sigma, sigma
    if split:
        low, high = (torch.rand(n, generator=draw) * (b - a) + a for a, b in (CLEAN, NOISY))
        swap = torch.rand(n, generator=draw) < 0.5
        video_sigma, audio_sigma = torch.where(swap, low, high), torch.where(swap, high, low)
    frames = video_sigma[:, None].repeat(1, x0[0].shape[2])
    given = torch.rand(n, generator=draw) < settings.first_frame
    if frames.shape[1] > 1:  # a single frame would leave nothing to learn
        frames[given, 0] = 0
    dropped = torch.rand(n, generator=draw) < settings.text_dropout
    texts = [empty if drop else sample.context for drop, sample in zip(dropped, samples, strict=True)]
    longest = max(map(len, texts))
    context = torch.stack([F.pad(text.float(), (0, 0, 0, longest - len(text))) for text in texts])
    noise = [torch.randn(x.shape, generator=draw) for x in x0]
    by_part = frames[:, None, :, None, None], audio_sigma[:, None, None]
    x = [torch.lerp(clean, eps, s) for clean, eps, s in zip(x0, noise, by_part, strict=True)]
    velocity = [eps - clean for clean, eps in zip(x0, noise, strict=True)]
    counts = (by_part[0] > 0).float()
    images, voices = (
        _references(kind, given, settings.reference_dropout, draw)
        for kind, given in (("image", [one.images for one in samples]), ("voice", [one.voices for one in samples]))
    )
    references = References(images, voices) if images or voices else None
    return Noised(x, (1000 * frames, 1000 * audio_sigma), context, velocity, counts, references)


def _references(
    kind: str, given: Sequence[Sequence[Tensor]], dropout: float, draw: torch.Generator
) -> Sequence[Tensor]:
    """Stack the samples' references of a kind, person by person: [B, ...] each, zeros for samples that are dropped."""
    shapes = [[tuple(latent.shape) for latent in latents] for latents in given]
    if any(other != shapes[0] for other in shapes):
        raise ValueError(f"The reference {kind}s of a batch have shapes {shapes}; train with a batch of 1.")
    if not shapes[0]:
        return ()  # without a number drawn, so that clips without persons have the same noise as ever
    kept = torch.rand(len(given), generator=draw) >= dropout
    batches = (torch.stack(latents).float() for latents in zip(*given, strict=True))
    return [batch * kept.view(-1, *[1] * (batch.ndim - 1)) for batch in batches]


def losses(model: Callable[..., list[Any]], batch: Noised) -> tuple[Tensor, Tensor]:
    """Return the mean squared errors of the video's and the audio's velocity."""
    video, audio = model(batch.x, batch.timestep, batch.context, references=batch.references)
    of_video = (video.float() - batch.velocity[0]).square() * batch.counts
    share = batch.counts.mean()
    return of_video.mean() / share, (audio.float() - batch.velocity[1]).square().mean()
