"""The recogniser of the talking world: which syllables are heard in a clip, when, and in which voice.

The best path through the phones of a syllable (Viterbi), each of which lasts for some parts of the audio codec and has
a Gaussian of the levels of its bands for each voice. These come from true clips, through the codec, and are written by
`python -m miniature.recogniser`. Waveforms are [N, samples] at 16 kHz, times seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import WEIGHTS, speech
from .codecs import SPEECH, AudioCodec
from .world import RATE

STATISTICS = WEIGHTS / "recogniser.safetensors"
CLIPS = 300  # the first true clips, from which they are
PART = SPEECH.step / RATE  # seconds

SILENCE, CLOSURE = "_", "q"  # a t is a closure and then a burst
PHONES = (SILENCE, *"ms", CLOSURE, "t", *speech.VOWELS)
SHORTEST = {SILENCE: 1, "m": 2, "s": 2, CLOSURE: 2, "t": 1} | dict.fromkeys(speech.VOWELS, 4)  # parts
SYLLABLE_COST = 3.0  # of each consonant that begins, against syllables that are not there
LEAST_SPREAD = 0.35  # standard deviation of a level, at least: true clips are more alike than generated ones
FARTHEST = 25.0  # squared standard deviations of a level that count, at most

STATES = [(phone, place) for phone in PHONES for place in range(SHORTEST[phone])]


@dataclass(frozen=True)
class Heard:
    """What the recogniser hears in a clip."""

    syllables: tuple[str, ...]
    onsets: tuple[float, ...]  # when each vowel begins
    voice: str


def hear(waveforms: Tensor) -> list[Heard]:
    """Recognise what is said in waveforms."""
    statistics = {name: tensor.to(waveforms.device) for name, tensor in load_file(STATISTICS).items()}
    levels = measured(waveforms)[:, None, :, None]  # [N, 1, parts, 1, bands]
    mean, spread = (statistics[name][:, None] for name in ("mean", "spread"))  # [voices, 1, phones, bands]
    away = ((levels - mean) / spread).square().clamp(max=FARTHEST)
    likely = -0.5 * away.sum(-1) - spread.log().sum(-1)  # [N, voices, parts, phones]
    states = torch.tensor([PHONES.index(phone) for phone, _ in STATES], device=waveforms.device)
    scores, paths = _best_paths(likely[..., states].flatten(0, 1))
    voices = scores.view(len(waveforms), -1).argmax(1)
    paths = paths.unflatten(0, (len(waveforms), -1))[torch.arange(len(waveforms)), voices.cpu()]
    return [
        _read(path, list(speech.VOICES)[voice]) for path, voice in zip(paths.tolist(), voices.tolist(), strict=True)
    ]


def measured(waveforms: Tensor) -> Tensor:
    """Return the levels of the bands, [N, parts, bands], on the scale of the audio latents."""
    codec = AudioCodec(SPEECH).to(waveforms.device)
    return (codec.loudness(waveforms) / SPEECH.soft).log1p().transpose(1, 2)


def _read(path: Sequence[int], voice: str) -> Heard:
    """Read the syllables along a path of states: a vowel ends each, after its consonant."""
    phones = [STATES[state][0] for state in path]
    starts = [i for i in range(1, len(phones)) if phones[i] in speech.VOWELS and phones[i - 1] not in speech.VOWELS]
    return Heard(tuple(phones[i - 1] + phones[i] for i in starts), tuple(i * PART for i in starts), voice)


def _best_paths(likely: Tensor) -> tuple[Tensor, Tensor]:
    """Return the score of the best path through log-likelihoods [N, parts, states], [N], and its states, [N, parts]."""
    moves = _moves().to(likely)
    score = torch.full_like(likely[:, 0], -torch.inf)
    score[:, _first(SILENCE)] = likely[:, 0, _first(SILENCE)]
    before = []
    for now in likely[:, 1:].unbind(1):
        score, origin = (score[:, :, None] + moves).max(1)
        score = score + now
        before.append(origin)
    ends = torch.full_like(score[0], -torch.inf)
    ends[[_last(phone) for phone in (SILENCE, *speech.VOWELS)]] = 0.0
    score, state = (score + ends).max(1)
    path = [state]
    for origin in reversed(before):
        path.append(origin.gather(1, path[-1][:, None])[:, 0])
    return score, torch.stack(path[::-1], dim=1)


def _moves() -> Tensor:
    """Return the score of each move from one state to the next: 0, or the cost of a syllable; no other is possible."""
    moves = torch.full((len(STATES), len(STATES)), -torch.inf)
    for i, (phone, place) in enumerate(STATES):
        if place + 1 < SHORTEST[phone]:
            moves[i, i + 1] = 0.0
        else:
            moves[i, i] = 0.0
    begins = ("m", "s", CLOSURE)
    for phone in (SILENCE, *speech.VOWELS):
        moves[_last(phone), [_first(consonant) for consonant in begins]] = -SYLLABLE_COST
    for vowel in speech.VOWELS:
        moves[_last(vowel), _first(SILENCE)] = 0.0
        moves[[_last(consonant) for consonant in speech.CONSONANTS], _first(vowel)] = 0.0
    moves[_last(CLOSURE), _first("t")] = 0.0
    return moves


def _first(phone: str) -> int:
    return STATES.index((phone, 0))


def _last(phone: str) -> int:
    return STATES.index((phone, SHORTEST[phone] - 1))


def statistics(scenes: Sequence[speech.Scene]) -> dict[str, Tensor]:
    """Measure true clips: the mean and the spread of each voice's phones, [voices, phones, bands] each.

    A closure is as silent as silence.
    """
    levels = measured(AudioCodec(SPEECH).decode(speech.audio_latents(scenes)))
    said = torch.stack([_labels(scene, levels.shape[1]) for scene in scenes])
    of_voice = torch.tensor([list(speech.VOICES).index(scene.voice) for scene in scenes])
    out: dict[str, list[Tensor]] = {"mean": [], "spread": []}
    for voice in range(len(speech.VOICES)):
        its_levels, its_phones = levels[of_voice == voice], said[of_voice == voice]
        for phone in PHONES:
            samples = its_levels[its_phones == PHONES.index(SILENCE if phone == CLOSURE else phone)]
            out["mean"].append(samples.mean(0))
            out["spread"].append(samples.std(0).clamp(min=LEAST_SPREAD))
    return {name: torch.stack(each).unflatten(0, (-1, len(PHONES))) for name, each in out.items()}


def _labels(scene: speech.Scene, parts: int) -> Tensor:
    """Return the phone of each part of a scene's audio, [parts]; -1 at the borders, where it is two."""
    times = (torch.arange(parts) + 0.5) * PART
    labels = torch.full((parts,), PHONES.index(SILENCE))

    def mark(begin: float, end: float, label: int) -> None:
        labels[(times >= begin) & (times < end)] = label

    for syllable, start, end, onset in zip(
        scene.syllables, scene.starts[:-1], scene.starts[1:], scene.onsets, strict=True
    ):
        consonant, vowel = syllable
        offset = start + speech.OFFSET * (end - start)
        mark(onset - 0.008, onset + 0.012, -1)
        mark(offset - 0.012, end, -1)
        mark(start + 0.012, onset - 0.008, PHONES.index(CLOSURE if consonant == "t" else consonant))
        if consonant == "t":
            mark(onset - 0.026, onset - 0.008, PHONES.index("t"))
        mark(onset + 0.012, offset - 0.012, PHONES.index(vowel))
    return labels


if __name__ == "__main__":
    save_file(statistics([speech.scene(seed) for seed in range(CLIPS)]), STATISTICS)
