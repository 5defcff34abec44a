"""The measures of the talking world, each beside chance: words, voice, pace, look and the lips' synchrony.

By chance, words are as many syllables that were drawn. Synchrony by chance is that of the clip's lips with the audio,
and of its audio with the lips, of another clip of the same caption: a true one with other timing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from torch import Tensor

from . import lips, recogniser, speech
from .lips import LOOKS, Seen, Sync

FAST = sum(speech.PACES.values()) / len(speech.PACES)  # seconds between vowels: less is fast
DECODED = 8  # clips that are decoded at once: with more, memory is what takes the time


@dataclass(frozen=True)
class Observation:
    """What is heard and seen in a clip, and how loud its vowels are, [parts]."""

    heard: recogniser.Heard
    seen: Seen
    loud: Tensor


@dataclass(frozen=True)
class Words:
    """How many syllables, and how many vowels, differ from those wanted."""

    errors: int
    vowel_errors: int


@dataclass(frozen=True)
class Verdict:
    """What is right in a clip."""

    heard: recogniser.Heard
    seen: Seen
    syllables: int  # in the prompt
    words: Words
    other_words: Words  # by chance
    voice: bool
    pace: bool
    look: bool
    sync: Sync
    other_audio: Sync  # by chance
    other_lips: Sync  # by chance


def observe(video: Tensor, audio: Tensor) -> list[Observation]:
    """Observe clips, whose latents are video [N, 48, F, h, w] and audio [N, 20, L], on their device."""
    out = []
    for some in zip(video.split(DECODED), audio.split(DECODED), strict=True):
        out += observed(*speech.decoded(*some))
    return out


def observed(frames: Tensor, waveforms: Tensor) -> list[Observation]:
    """Observe clips: frames [N, T, H, W, 3] from 0 to 1, waveforms [N, samples] at 16 kHz."""
    parts = recogniser.hear(waveforms), lips.look(frames), lips.loudness(waveforms)
    return [Observation(*each) for each in zip(*parts, strict=True)]


def others(scenes: Sequence[speech.Scene]) -> list[Observation]:
    """Observe other clips of the scenes' captions, true ones with other timing."""
    return observe(*speech.latents([speech.retimed(scene, scene.seed) for scene in scenes]))


def judge(scene: speech.Scene, clip: Observation, other: Observation) -> Verdict:
    """Judge a clip of a scene, with another clip of the same caption for chance."""
    draw = random.Random(f"words {scene.seed}")
    said = clip.heard.syllables
    gaps = [after - before for before, after in zip(clip.heard.onsets, clip.heard.onsets[1:], strict=False)]
    pace = "fast" if gaps and median(gaps) < FAST else "slow"
    return Verdict(
        heard=clip.heard,
        seen=clip.seen,
        syllables=len(scene.syllables),
        words=compare(said, scene.syllables),
        other_words=compare(said, [draw.choice(speech.SYLLABLES) for _ in scene.syllables]),
        voice=clip.heard.voice == scene.voice,
        pace=bool(gaps) and pace == scene.pace,
        look=clip.seen.look == (scene.colour, scene.size, scene.side),
        sync=lips.synchrony(clip.seen, clip.loud, clip.heard.onsets),
        other_audio=lips.synchrony(clip.seen, other.loud, other.heard.onsets),
        other_lips=lips.synchrony(other.seen, clip.loud, clip.heard.onsets),
    )


def compare(heard: Sequence[str], wanted: Sequence[str]) -> Words:
    """Compare syllables with those wanted."""
    vowels = ([syllable[1] for syllable in each] for each in (heard, wanted))
    return Words(edits(heard, wanted), edits(*vowels))


def edits(heard: Sequence[str], wanted: Sequence[str]) -> int:
    """Count the least insertions, deletions and changes that make one sequence the other."""
    row = list(range(len(wanted) + 1))
    for i, one in enumerate(heard, 1):
        above, row[0] = row[0], i
        for j, other in enumerate(wanted, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (one != other))
    return row[-1]


def report(
    scenes: Sequence[speech.Scene], clips: Sequence[Observation], by_chance: Sequence[Observation] | None = None
) -> dict[str, float]:
    """Judge clips of scenes and sum up; `by_chance` is `others` of the scenes, where it is known."""
    each = zip(scenes, clips, others(scenes) if by_chance is None else by_chance, strict=True)
    return summary([judge(*clip) for clip in each])


def summary(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Sum up the verdicts on clips; beside a measure stands the same by chance.

    Errors are a share of the syllables; voice, pace and look one of the clips. Correlation, lag and distances are
    medians: the lag of the clips' absolute ones, the distances of all openings and of all vowels. Openings are a share
    of the vowels that are heard.
    """
    count = sum(one.syllables for one in verdicts)
    vowels = sum(len(one.heard.onsets) for one in verdicts)
    syncs = [one.sync for one in verdicts]
    others = [sync for one in verdicts for sync in (one.other_audio, one.other_lips)]
    return {
        "syllables": sum(one.words.errors for one in verdicts) / count,
        "syllables_chance": sum(one.other_words.errors for one in verdicts) / count,
        "vowels": sum(one.words.vowel_errors for one in verdicts) / count,
        "vowels_chance": sum(one.other_words.vowel_errors for one in verdicts) / count,
        "voice": fmean(one.voice for one in verdicts),
        "voice_chance": 1 / len(speech.VOICES),
        "pace": fmean(one.pace for one in verdicts),
        "pace_chance": 1 / len(speech.PACES),
        "look": fmean(one.look for one in verdicts),
        "look_chance": 1 / len(LOOKS),
        "correlation": median(sync.correlation for sync in syncs),
        "correlation_chance": median(sync.correlation for sync in others),
        "lag_ms": 1000 * median(abs(sync.lag) for sync in syncs),
        "lag_ms_chance": 1000 * median(abs(sync.lag) for sync in others),
        "to_vowel_ms": _median_ms(syncs, "to_vowels"),
        "to_vowel_ms_chance": _median_ms(others, "to_vowels"),
        "to_opening_ms": _median_ms(syncs, "to_openings"),
        "to_opening_ms_chance": _median_ms(others, "to_openings"),
        "openings": sum(len(one.seen.openings) for one in verdicts) / vowels if vowels else math.nan,
    }


def _median_ms(syncs: Sequence[Sync], name: str) -> float:
    """Return the median of all clips' distances in milliseconds, infinite where there are none."""
    distances = [distance for sync in syncs for distance in getattr(sync, name)]
    return 1000 * median(distances) if distances else math.inf
