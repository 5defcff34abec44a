"""Flow matching, as Ovi is trained: samples with noise, and the losses of both towers.

x = (1 - sigma) x0 + sigma noise, and the model learns the velocity noise - x0 of both modalities. Sigma has the
distribution of a shifted schedule and is the same for both towers. In a share of the first steps each tower has its own
sigma instead, one nearly clean and the other nearly noise, so that the noisy one can only be learned from the other.

What is given (see `given`) is clean, at timestep 0, and has no loss: as the nodes preserve it. Samples without a video,
or without audio, train one tower alone.

Person references (see `references`) have no noise and no loss. In a share of the samples they are zeros, which is what
guidance by references compares with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from . import geometry, given
from .references import References
from .sampling import SHIFT, shifted

MAX_BATCH = 4096  # samples of a step, all of which are in memory at once
OPTIMIZERS = ("adamw", "adamw8bit", "prodigy")
SCHEDULES = ("constant", "cosine")
EXCLUSIVE = ("given_audio", "given_video", "given_prefix", "passage")  # a sample has one of them at most
CLEAN, NOISY = (0.0, 0.3), (0.6, 1.0)  # ranges of sigma where each tower has its own

Checks = Mapping[str, tuple[Sequence[str], Callable[[float], bool]]]  # what is needed: of which settings, and the test


class Sample(NamedTuple):
    """A clip as the model reads it in training."""

    video: Tensor | None  # [48, F, H, W], normalised for each channel; None: the audio tower alone
    audio: Tensor | None  # [20, L]; None: the video tower alone
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
    accumulate: int = 1  # batches of a step, whose gradients are added up
    optimizer: str = "adamw"  # one of OPTIMIZERS
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup: int = 100  # steps in which the learning rate rises
    schedule: str = "constant"  # of the learning rate between those; one of SCHEDULES
    cooldown: float = 0.2  # share of the steps, the last ones, in which a constant one falls to zero
    max_norm: float = 1.0  # of the gradient
    ema: float = 0.998  # decay of the averaged weights
    shift: float = SHIFT  # of sigma's distribution
    audio_weight: float = 1.0  # of the audio's loss, a mean over its elements; the video's has 1
    text_dropout: float = 0.1  # share of samples trained without their text, for guidance
    reference_dropout: float = 0.1  # share of samples with zeros for their images, and of those for their voices
    first_frame: float = 0.2  # share of samples whose first frame is given
    given_audio: float = 0.0  # share of samples whose audio is given ...
    given_video: float = 0.0  # ... of those whose video is ...
    given_prefix: float = 0.0  # ... of those that begin with the end of another clip, as for Ovi Continue ...
    passage: float = 0.0  # ... and of those of which all but a passage is given, as for Ovi Remake
    given_references: float = 1.0  # share of batches that get the references that their samples have
    cut: float = 0.0  # share of batches in which the towers do not attend to each other
    split: float = 0.0  # share of batches in which each tower has its own sigma ...
    split_steps: int = 0  # ... within this many first steps
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of its range."""
        checks: Checks = {
            "a positive number": (("lr", "max_norm", "shift"), lambda value: 0 < value < math.inf),
            "at least 0": (
                ("weight_decay", "warmup", "audio_weight", "split_steps"),
                lambda value: 0 <= value < math.inf,
            ),
            "from 0 to 1": (
                (
                    *("cooldown", "ema", "text_dropout", "reference_dropout", "first_frame"),
                    *(*EXCLUSIVE, "given_references", "cut", "split"),
                ),
                lambda value: 0 <= value <= 1,
            ),
            f"from 1 to {MAX_BATCH}": (("batch", "accumulate"), lambda value: 1 <= value <= MAX_BATCH),
            "from 0 to 2**63 - 1": (("seed",), lambda value: 0 <= value < 2**63),
        }
        require(self, checks)
        for name, choices in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"The {name} is {value!r}, but must be one of {', '.join(choices)}.")
        shares = {name.replace("_", " "): share for name in EXCLUSIVE if (share := getattr(self, name))}
        if sum(shares.values()) > 1 + 1e-9:  # of shares that do not add up exactly
            raise ValueError(
                f"The settings {' and '.join(shares)} are {sum(shares.values()):g} together, but must be at most 1: a "
                "sample has one of them."
            )


def require(settings: Any, checks: Checks) -> None:
    """Raise ValueError for a setting that is not what is needed of it."""
    for needed, (names, fits) in checks.items():
        for name in names:
            if not fits(value := getattr(settings, name)):
                raise ValueError(f"The setting {name.replace('_', ' ')} is {value}, but must be {needed}.")


class Noised(NamedTuple):
    """A batch with noise: what the model gets, and the velocity that it should predict."""

    x: list[Tensor | None]  # video [B, 48, F, H, W], audio [B, 20, L]; None: of samples without it
    timestep: tuple[Tensor, Tensor]  # video [B, F], audio [B] or [B, L]; with references, theirs follow
    context: Tensor  # [B, T, text_dim]
    velocity: list[Tensor | None]  # as x
    counts: list[Tensor]  # video [B, 1, F, 1, 1], audio [B, 1, 1 or L]: 0 for what is given, which has no loss
    references: References | None = None  # None: of clips without persons
    cut_rows: list[bool] | None = None  # the samples whose towers do not attend to each other, all; None: no sample


def noised(
    samples: Sequence[Sample], empty: Tensor, settings: Settings, draw: torch.Generator, *, split: bool = False
) -> Noised:
    """Draw sigmas and noise for a batch; `empty` [T, text_dim] replaces the text of a sample where it is dropped.

    The sigmas of a batch are spread evenly over their distribution. What a setting of 0 leaves out draws no number, so
    that settings of later versions change no earlier training. Raises ValueError where the samples' sizes differ, or
    those of their references.
    """
    n = len(samples)
    x0 = [
        _stacked("video", [sample.video for sample in samples]),
        _stacked("audio", [sample.audio for sample in samples]),
    ]
    even = (torch.arange(n) + torch.rand(1, generator=draw)) / n
    sigma = shifted(even, settings.shift)
    video_sigma, audio_sigma = sigma, sigma
    if split:
        low, high = (torch.rand(n, generator=draw) * (b - a) + a for a, b in (CLEAN, NOISY))
        swap = torch.rand(n, generator=draw) < 0.5
        video_sigma, audio_sigma = torch.where(swap, low, high), torch.where(swap, high, low)
    frames, latents = _given(x0, video_sigma, audio_sigma, settings, draw)
    cut = settings.cut > 0 and torch.rand(1, generator=draw).item() < settings.cut
    dropped = torch.rand(n, generator=draw) < settings.text_dropout
    texts = [empty if drop else sample.context for drop, sample in zip(dropped, samples, strict=True)]
    context = padded(texts)
    noise = [None if x is None else torch.randn(x.shape, generator=draw) for x in x0]
    by_part = frames[:, None, :, None, None], latents[:, None]
    parts = list(zip(x0, noise, by_part, strict=True))
    x = [None if clean is None or eps is None else torch.lerp(clean, eps, s) for clean, eps, s in parts]
    velocity = [None if clean is None or eps is None else eps - clean for clean, eps, _ in parts]
    counts = [(s > 0).float() for s in by_part]
    images, voices = (
        _references(kind, of_samples, settings.reference_dropout, draw)
        for kind, of_samples in (("image", [one.images for one in samples]), ("voice", [one.voices for one in samples]))
    )
    if settings.given_references < 1 and torch.rand(1, generator=draw).item() >= settings.given_references:
        images, voices = (), ()
    references = References(images, voices) if images or voices else None
    timestep = _timestep(frames, video_sigma, x0[0], images), _timestep(latents, audio_sigma, x0[1], voices).squeeze(1)
    return Noised(x, timestep, context, velocity, counts, references, [True] * n if cut else None)


def padded(texts: Sequence[Tensor]) -> Tensor:
    """Stack texts [T, text_dim] of any lengths, padded with zeros, in float32: [B, T, text_dim]."""
    longest = max(map(len, texts))
    return torch.stack([F.pad(text.float(), (0, 0, 0, longest - len(text))) for text in texts])


def _given(
    x0: Sequence[Tensor | None], video: Tensor, audio: Tensor, settings: Settings, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw what is given; return sigmas of the video's latents [B, F] and of the audio's [B, 1 or L], 0 where it is.

    `video` and `audio` [B] are those of what is not given.
    """
    n = len(video)
    length = 1 if x0[0] is None else x0[0].shape[2]
    frames, latents = video[:, None].repeat(1, length), audio[:, None]
    first = torch.rand(n, generator=draw) < settings.first_frame
    if length > 1:  # a single frame would leave nothing to learn
        frames[first, 0] = 0
    if not any(getattr(settings, name) for name in EXCLUSIVE):
        return frames, latents
    chance = torch.rand(n, generator=draw)
    latents = latents.masked_fill((chance < settings.given_audio)[:, None], 0)
    frames[chance >= 1 - settings.given_video] = 0
    if settings.given_prefix or settings.passage:
        latents = latents.repeat(1, 1 if x0[1] is None else x0[1].shape[2])
        one, end = any(x is None for x in x0), settings.given_audio + settings.given_prefix
        if x0[0] is None:  # what is given of the audio is counted by the video that would go with it
            length = geometry.video_latents(round(latents.shape[1] / geometry.AUDIO_LATENT_RATE * geometry.FPS))
        for i, places in enumerate(torch.rand(n, 3, generator=draw).tolist()):
            if settings.given_audio <= chance[i] < end:
                of_video, of_audio = given.prefix(length, latents.shape[1], places[0])
            elif end <= chance[i] < end + settings.passage:
                of_video, of_audio = given.passage(length, latents.shape[1], *places, one=one)
            else:
                continue
            frames[i], latents[i] = video[i] * of_video[: frames.shape[1]], audio[i] * of_audio
    return frames, latents


def _timestep(sigmas: Tensor, whole: Tensor, clip: Tensor | None, references: Sequence[Tensor]) -> Tensor:
    """Return the timesteps of a modality's latents, 1000 times their sigmas [B, 1 or T].

    Where a part of the clip is given, those of its references follow: the timestep of the rest, of sigma `whole` [B],
    which is what the nodes tell them even where nothing is left to generate.
    """
    if references and clip is not None and not torch.equal(sigmas, whole[:, None].expand_as(sigmas)):
        more = sum(reference.shape[2] for reference in references)
        sigmas = torch.cat([sigmas.expand(-1, clip.shape[2]), whole[:, None].expand(-1, more)], dim=1)
    return 1000 * sigmas


def _stacked(name: str, latents: Sequence[Tensor | None]) -> Tensor | None:
    """Stack the samples' latents of a modality, in float32; None where the samples have none."""
    present = [latent for latent in latents if latent is not None]
    if not present:
        return None
    shapes = {None if latent is None else tuple(latent.shape) for latent in latents}
    if len(shapes) > 1:
        raise ValueError(f"The {name} latents of a batch have shapes {shapes}; train with a batch of 1.")
    return torch.stack(present).float()


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


def divided(batch: Noised, parts: int) -> list[Noised]:
    """Cut a batch into parts of as many samples each."""

    def cut(value: Any, i: int) -> Any:
        if isinstance(value, Tensor):
            return value.chunk(parts)[i]
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], bool):
            return value[: len(value) // parts]  # all of them are the same
        if isinstance(value, References):
            return References(*(cut(kind, i) for kind in value))
        return value if value is None else type(value)(cut(one, i) for one in value)

    return [batch] if parts == 1 else [Noised(*(cut(value, i) for value in batch)) for i in range(parts)]


def shares(batch: Noised, parts: Sequence[Noised]) -> list[tuple[float, float]]:
    """Return by how much the losses of each part (video, audio) count in those of the whole batch, in sum 1."""
    counted = [[float(counts.sum()) for counts in part.counts] for part in parts]
    whole = [max(1.0, float(counts.sum())) for counts in batch.counts]
    return [(video / whole[0], audio / whole[1]) for video, audio in counted]


def losses(model: Callable[..., list[Any]], batch: Noised) -> tuple[Tensor, Tensor]:
    """Return the mean squared errors of the video's and the audio's velocity; 0 for one that the samples lack."""
    found = model(batch.x, batch.timestep, batch.context, references=batch.references, cut_rows=batch.cut_rows)
    video, audio = map(_loss, found, batch.velocity, batch.counts)
    return video, audio


def _loss(found: Tensor | None, expected: Tensor | None, counts: Tensor) -> Tensor:
    """Return the mean squared error of a velocity where it counts, 0 where it does so nowhere."""
    if found is None or expected is None:
        return torch.zeros((), device=counts.device)
    errors = (found.float() - expected).square() * counts
    return errors.mean() / counts.mean().clamp(min=1 / counts.numel())
