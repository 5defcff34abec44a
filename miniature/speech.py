"""The talking world: a face says the syllables of its prompt, in their order, and its lips move with them.

Frames are [N, T, H, W, 3] from 0 to 1, waveforms [N, samples] at 16 kHz, latents those of `codecs`. Distances are
pixels, times seconds. A scene is made from a seed. Its caption tells what is said, not when. The sound is that of a
formant synthesiser: harmonics of the voice under the resonances of each vowel, a murmur for m, a hiss for s, a burst
for t. Frames and sound follow the same tracks, which are drawn at 500 Hz.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .codecs import SPEECH, AudioCodec, VideoCodec
from .world import COLOURS, FPS, FRAMES, RATE, SECONDS

WIDTH, HEIGHT = 96, 64
MIDDLE = HEIGHT / 2  # the row of a face's middle
CONSONANTS, VOWELS = "mst", "aeiou"
SYLLABLES = tuple(consonant + vowel for consonant in CONSONANTS for vowel in VOWELS)
RADII = {"small": 19.0, "large": 25.0}
SIDES = {"left": 28.0, "middle": 48.0, "right": 68.0}  # the column of a face's middle
VOICES = {"low": 110.0, "high": 220.0}  # Hz
PACES = {"slow": 0.32, "fast": 0.2}  # seconds a syllable ...
UNEVEN = 0.12  # ... and the share by which each is shorter or longer, at most
COUNTS = {"slow": range(3, 6), "fast": range(3, 9)}  # syllables of a clip
EARLIEST, LATEST = 0.08, 0.3  # seconds until the first syllable
SILENCE = 0.06  # seconds at the clip's end, at least
ONSET, OFFSET = 0.32, 0.94  # the shares of a syllable after which its vowel begins and ends

FORMANTS = {"a": (750, 1200), "e": (480, 1950), "i": (290, 2400), "o": (500, 850), "u": (310, 650)}  # Hz
GAINS = {"a": (1.0,), "e": (1.0,), "i": (1.0,), "o": (0.9,), "u": (0.9,)}
MOUTHS = {"a": (1.0, 0.8), "e": (0.55, 1.0), "i": (0.3, 1.1), "o": (0.85, 0.55), "u": (0.45, 0.4)}  # height, width
SLIT = 0.12  # height of the mouth at s and t; at m it is closed
NEUTRAL = 500.0, 1500.0, 0.7  # formants and width of a silent mouth, whose height is 0
NARROWEST = 0.6  # half the height of a closed mouth, in pixels
EYE, MOUTH = (0.05, 0.05, 0.08), (0.06, 0.0, 0.02)  # their colours

CONTROL = 500  # Hz of the tracks
SAMPLES = round(FRAMES / FPS * RATE)
POINTS = SAMPLES * CONTROL // RATE + 2  # of a track
HIGHEST = 4000.0  # Hz: no harmonic is above it
FALL = 0.06  # share by which the pitch falls over a clip
BATCH = 8  # scenes that are drawn at once: with more, memory is what takes the time


@dataclass(frozen=True)
class Scene:
    """What happens in a clip: a face says `syllables`, each from one of `starts` to the next, the last being an end."""

    syllables: tuple[str, ...]
    colour: str
    size: str
    side: str
    voice: str
    pace: str
    starts: tuple[float, ...]
    seed: int  # of the noise in s and t

    @property
    def caption(self) -> str:
        """The prompt, in Ovi's form."""
        return self.prompt(self.syllables)

    @property
    def wordless(self) -> str:
        """The prompt without the syllables."""
        return self.prompt(())

    def prompt(self, syllables: Sequence[str]) -> str:
        """Return the prompt with these syllables."""
        face = f"A {self.size} {self.colour} face on the {self.side}"
        said = " ".join(["<S>", *syllables, "<E>"])
        return f"{face} says {said} . Audio: a {self.voice} {self.pace} voice ."

    @property
    def onsets(self) -> list[float]:
        """The times at which the vowels begin."""
        return [start + ONSET * (end - start) for start, end in zip(self.starts, self.starts[1:], strict=False)]


def scene(seed: int) -> Scene:
    """Return the scene of a seed."""
    draw = random.Random(seed)
    pace = draw.choice(list(PACES))
    syllables = tuple(draw.choice(SYLLABLES) for _ in range(draw.choice(COUNTS[pace])))
    return Scene(
        syllables=syllables,
        colour=draw.choice(list(COLOURS)),
        size=draw.choice(list(RADII)),
        side=draw.choice(list(SIDES)),
        voice=draw.choice(list(VOICES)),
        pace=pace,
        starts=_starts(draw, len(syllables), PACES[pace]),
        seed=seed,
    )


def retimed(scene: Scene, seed: int) -> Scene:
    """Return a scene with the same caption, but other timing: what lip sync by chance is measured with."""
    draw = random.Random(f"time {seed}")
    return dataclasses.replace(scene, starts=_starts(draw, len(scene.syllables), PACES[scene.pace]), seed=seed)


def _starts(draw: random.Random, count: int, length: float) -> tuple[float, ...]:
    """Draw when each syllable begins, and when the last ends."""
    lengths = [length * draw.uniform(1 - UNEVEN, 1 + UNEVEN) for _ in range(count)]
    starts = [draw.uniform(EARLIEST, min(LATEST, SECONDS - SILENCE - sum(lengths)))]
    for each in lengths:
        starts.append(starts[-1] + each)
    return tuple(starts)


class Tracks(NamedTuple):
    """What mouth and voice do over time, [N, POINTS] each."""

    first: Tensor  # formant, Hz
    second: Tensor  # formant, Hz
    voiced: Tensor
    murmur: Tensor
    hiss: Tensor
    burst: Tensor
    height: Tensor  # of the mouth
    width: Tensor


def tracks(scenes: Sequence[Scene]) -> Tracks:
    """Draw the tracks of scenes."""
    which = torch.tensor([i for i, scene in enumerate(scenes) for _ in scene.syllables])
    said = [syllable for scene in scenes for syllable in scene.syllables]
    starts = torch.tensor([start for scene in scenes for start in scene.starts[:-1]])
    ends = torch.tensor([end for scene in scenes for end in scene.starts[1:]])
    onsets, offsets = (torch.lerp(starts, ends, share) for share in (ONSET, OFFSET))
    times = torch.arange(POINTS) / CONTROL

    def of_consonant(**levels: float) -> Tensor:
        return torch.tensor([levels.get(syllable[0], 0.0) for syllable in said])

    def of_vowel(table: Mapping[str, Sequence[float]], place: int) -> Tensor:
        return torch.tensor([table[syllable[1]][place] for syllable in said])

    def track(rest: float, *parts: tuple[Tensor, Tensor, Tensor], smooth: float) -> Tensor:
        """Draw levels, each from a beginning to an end; elsewhere at rest. The window of `smooth` is in seconds."""
        levels = torch.full((len(scenes), POINTS), rest)
        for begin, end, level in parts:
            during = (times >= begin[:, None]) & (times < end[:, None])
            levels.index_add_(0, which, during * (level - rest)[:, None])
        return _smooth(levels, smooth)

    return Tracks(
        first=track(NEUTRAL[0], (starts, ends, of_vowel(FORMANTS, 0)), smooth=0.02),
        second=track(NEUTRAL[1], (starts, ends, of_vowel(FORMANTS, 1)), smooth=0.02),
        voiced=track(0.0, (onsets, offsets, of_vowel(GAINS, 0)), smooth=0.008),
        murmur=track(0.0, (starts + 0.008, onsets, of_consonant(m=0.5)), smooth=0.008),
        hiss=track(0.0, (starts + 0.008, onsets, of_consonant(s=1.0)), smooth=0.008),
        burst=track(0.0, (onsets - 0.024, onsets - 0.004, of_consonant(t=1.0)), smooth=0.008),
        height=track(
            0.0,
            (starts, onsets, of_consonant(s=SLIT, t=SLIT)),
            (onsets, offsets, of_vowel(MOUTHS, 0)),
            smooth=0.035,
        ),
        width=track(NEUTRAL[2], (starts, ends, of_vowel(MOUTHS, 1)), smooth=0.035),
    )


def _smooth(levels: Tensor, seconds: float) -> Tensor:
    """Average levels [N, POINTS] in a Hann window that reaches `seconds` to both sides."""
    reach = int(seconds * CONTROL)
    window = torch.hann_window(2 * reach + 3)[1:-1]
    padded = F.pad(levels[:, None], (reach, reach), mode="replicate")
    return F.conv1d(padded, (window / window.sum())[None, None])[:, 0]


def waveforms(scenes: Sequence[Scene]) -> Tensor:
    """Compute the audio of scenes."""
    drawn = tracks(scenes)
    out = _noises(scenes, drawn)
    for voice, hertz in VOICES.items():
        its = torch.tensor([scene.voice == voice for scene in scenes])
        if its.any():
            out[its] += _voiced(Tracks(*(track[its] for track in drawn)), hertz)
    return out


def _voiced(tracks: Tracks, hertz: float) -> Tensor:
    """Add up the harmonics of a voice, [N, SAMPLES], whose loudness changes linearly between the tracks' points."""
    pitch = hertz * (1 - FALL * torch.linspace(0, 1, POINTS))
    number = torch.arange(1, int(HIGHEST / hertz) + 1)[:, None]
    harmonics = number * pitch  # Hz, [harmonics, POINTS]
    resonances = (tracks.first[:, None], 110, 1.0), (tracks.second[:, None], 160, 0.55), (2900, 250, 0.15)
    vowel = sum(gain / (1 + ((harmonics - at) / (width / 2)) ** 2).sqrt() for at, width, gain in resonances)
    nasal = 1 / (1 + ((harmonics - 250) / 90) ** 2)
    loudness = 0.22 * tracks.voiced[:, None] * vowel * number**-0.15 + 0.25 * tracks.murmur[:, None] * nasal
    loudness = loudness.permute(2, 0, 1)  # [POINTS, N, harmonics]
    falling, rising = _sines(hertz)
    blocks = torch.bmm(loudness[:-1], falling) + torch.bmm(loudness[1:], rising)  # [POINTS - 1, N, samples]
    return blocks.movedim(0, 1).flatten(1)[:, :SAMPLES]


@functools.cache
def _sines(hertz: float) -> tuple[Tensor, Tensor]:
    """Return a voice's harmonics between points, falling to 0 and rising from it, [POINTS - 1, harmonics, 32] each."""
    between = RATE // CONTROL
    time = torch.arange((POINTS - 1) * between, dtype=torch.float64) / RATE
    whole = (POINTS - 1) / CONTROL
    turns = hertz * (time - FALL / 2 * time**2 / whole)  # the integral of the pitch
    number = torch.arange(1, int(HIGHEST / hertz) + 1)[:, None]
    sines = torch.sin(2 * math.pi * (number * turns % 1)).float()
    sines = sines.unflatten(1, (-1, between)).movedim(0, 1)
    rise = torch.arange(between) / between
    return sines * (1 - rise), sines * rise


def _noises(scenes: Sequence[Scene], tracks: Tracks) -> Tensor:
    """Make the hiss of s and the burst of t, [N, SAMPLES]: noise, differentiated three times and once."""
    noise = torch.stack(
        [torch.randn(2, SAMPLES + 3, generator=torch.Generator().manual_seed(scene.seed)) for scene in scenes]
    )
    hiss, burst = noise.unbind(1)
    hiss = hiss[:, :-3] - 3 * hiss[:, 1:-2] + 3 * hiss[:, 2:-1] - hiss[:, 3:]
    burst = burst[:, :-3] - burst[:, 2:-1]
    levels = torch.stack([tracks.hiss, tracks.burst], dim=1)
    levels = F.interpolate(levels, scale_factor=RATE // CONTROL, mode="linear")[..., :SAMPLES]
    return 0.09 / 20**0.5 * levels[:, 0] * hiss + 0.22 / 2**0.5 * levels[:, 1] * burst


@functools.cache
def background() -> Tensor:
    """Draw the empty stage [H, W, 3]: a wall, lit less towards the sides and the bottom."""
    rows, columns = grid()
    light = 1 - ((columns - WIDTH / 2) / WIDTH) ** 2
    return (0.12 + 0.08 * light * (1.2 - rows / HEIGHT))[..., None] * torch.tensor([0.9, 0.95, 1.1])


@functools.cache
def face(colour: str, size: str, side: str) -> Tensor:
    """Draw a face without a mouth, [H, W, 3]."""
    rows, columns = grid()
    radius, middle = RADII[size], SIDES[side]

    def disc(radius: float, row: float, column: float) -> Tensor:
        return (radius - torch.hypot(rows - row, columns - column) + 0.5).clamp(0, 1)[..., None]

    out = torch.lerp(background(), torch.tensor(COLOURS[colour]), disc(radius, MIDDLE, middle))
    for where in (-0.4, 0.4):
        eye = disc(0.13 * radius, MIDDLE - 0.35 * radius, middle + where * radius)
        out = torch.lerp(out, torch.tensor(EYE), eye)
    return out


def frames(scenes: Sequence[Scene]) -> Tensor:
    """Draw the frames of scenes."""
    drawn = tracks(scenes)
    points = (torch.arange(FRAMES) / FPS * CONTROL).long()
    mouths = [mouth(scene.size, scene.side) for scene in scenes]
    row, column, height, width = torch.tensor(mouths).T[..., None]
    half_width = width * drawn.width[:, points]  # [N, T]
    half_height = (height * drawn.height[:, points]).clamp(min=NARROWEST)
    across = (torch.arange(WIDTH) + 0.5 - column[..., None]) / half_width[..., None]  # [N, T, W]
    along = (torch.arange(HEIGHT) + 0.5 - row[..., None]) / half_height[..., None]  # [N, T, H]
    away = (across[:, :, None].square() + along[..., None].square()).sqrt()
    least = torch.minimum(half_width, half_height)[..., None, None]
    covered = ((1 - away) * least + 0.5).clamp(0, 1)[..., None]  # the share of a pixel that the mouth covers
    still = torch.stack([face(scene.colour, scene.size, scene.side) for scene in scenes])[:, None]
    return torch.lerp(still, torch.tensor(MOUTH), covered)


def mouth(size: str, side: str) -> tuple[float, float, float, float]:
    """Return the row and column of a mouth's middle, and half its height and width where their tracks are 1."""
    radius = RADII[size]
    return MIDDLE + 0.38 * radius, SIDES[side], 0.34 * radius, 0.55 * radius


@functools.cache
def grid() -> tuple[Tensor, Tensor]:
    """Return the row and the column of each pixel's middle, [H, W] each."""
    rows, columns = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    return rows, columns


def latents(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Encode scenes: video [N, 48, 13, 4, 6] and audio [N, 20, 64]."""
    return video_latents(scenes), audio_latents(scenes)


def video_latents(scenes: Sequence[Scene]) -> Tensor:
    """Encode the video of scenes."""
    codec = VideoCodec()
    return torch.cat([codec.encode(2 * frames(some).movedim(-1, 1) - 1) for some in _batches(scenes)])


def audio_latents(scenes: Sequence[Scene]) -> Tensor:
    """Encode the audio of scenes."""
    codec = AudioCodec(SPEECH)
    return torch.cat([codec.encode(waveforms(some)) for some in _batches(scenes)])


def _batches(scenes: Sequence[Scene]) -> list[Sequence[Scene]]:
    return [scenes[i : i + BATCH] for i in range(0, len(scenes), BATCH)]


def decoded(video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
    """Decode latents, on their device: frames and waveforms."""
    frames = VideoCodec().to(video.device).decode(video.float()) / 2 + 0.5
    return frames.movedim(1, -1), AudioCodec(SPEECH).to(audio.device).decode(audio.float())
