"""What is heard and seen in clips of the talking world: true ones through the codecs, and ones with errors."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from safetensors.torch import load_file

from miniature import codecs, judge, lips, recogniser, speech, world

SCENES = [speech.scene(seed) for seed in range(world.HELD_OUT, world.HELD_OUT + 20)]


@pytest.fixture(scope="module")
def latents():
    """The latents of true clips."""
    return speech.latents(SCENES)


@pytest.fixture(scope="module")
def clips(latents):
    """What is observed in them."""
    return judge.observe(*latents)


@pytest.fixture(scope="module")
def others():
    """What is observed in other clips of their captions."""
    return judge.others(SCENES)


def test_true_clips_are_right_through_the_codecs(clips, others):
    """Chance is far from that: with other syllables, and with another clip of the same caption."""
    measures = judge.report(SCENES, clips, others)
    assert measures["syllables"] == measures["vowels"] == 0
    assert measures["voice"] == measures["pace"] == measures["look"] == 1
    assert measures["correlation"] > 0.78
    assert measures["lag_ms"] <= 10
    assert measures["to_vowel_ms"] < 10
    assert measures["to_opening_ms"] < 10
    assert measures["openings"] == pytest.approx(1, abs=0.03)
    assert measures["syllables_chance"] > 0.85
    assert measures["vowels_chance"] > 0.65
    assert measures["correlation_chance"] < 0.6
    assert measures["lag_ms_chance"] > 50
    assert min(measures["to_vowel_ms_chance"], measures["to_opening_ms_chance"]) > 40


def test_vowels_are_heard_and_seen_when_they_begin(clips):
    """Heard to 20 ms, seen to a frame."""
    for scene, clip in zip(SCENES, clips, strict=True):
        assert clip.heard.onsets == pytest.approx(scene.onsets, abs=0.02)
        assert all(lips.nearest(time, scene.onsets) < 1 / world.FPS for time in clip.seen.openings)


def test_audio_that_is_late_has_a_lag(clips, others):
    """By 0.1 s: the lips open that much before each vowel."""
    waves = speech.waveforms(SCENES[:3])
    codec = codecs.AudioCodec(codecs.SPEECH)
    late = codec.decode(codec.encode(torch.roll(waves, world.RATE // 10, 1)))
    for clip, heard, loud in zip(clips, recogniser.hear(late), lips.loudness(late), strict=False):
        sync = lips.synchrony(clip.seen, loud, heard.onsets)
        assert sync.lag == pytest.approx(0.1, abs=0.011)
        assert sync.correlation < 0.7


def test_a_still_mouth_and_silence():
    """Nothing opens, nothing is heard, and distances are infinite rather than missing."""
    scene = SCENES[0]
    frames = speech.face(scene.colour, scene.size, scene.side).expand(1, world.FRAMES, -1, -1, -1)
    (clip,) = judge.observed(frames, torch.zeros(1, 32_768))
    assert clip.seen.openings == clip.heard.syllables == ()
    mute = judge.report([scene], [clip])
    assert mute["syllables"] == mute["vowels"] == 1
    assert mute["pace"] == mute["correlation"] == 0
    assert mute["to_opening_ms"] == math.inf
    assert math.isnan(mute["openings"])


def test_errors_are_counted(clips, others):
    """A prompt with one syllable changed and one more; two vowels are wrong, too."""
    syllables = SCENES[0].syllables
    other = "ta" if syllables[0] != "ta" else "so"
    asked = dataclasses.replace(SCENES[0], syllables=(other, *syllables[1:], "mi"))
    verdict = judge.judge(asked, clips[0], others[0])
    assert verdict.words.errors == 2
    assert verdict.words.vowel_errors == 1 + (other[1] != syllables[0][1])


@pytest.mark.parametrize(
    ("heard", "wanted", "errors"),
    [("ma so", "ma so", 0), ("", "ma so", 2), ("so ma", "ma so", 2), ("ma ma so", "ma so", 1), ("ti", "ma so", 2)],
)
def test_edits(heard, wanted, errors):
    assert judge.edits(heard.split(), wanted.split()) == errors


def test_openings_are_halfway_up():
    """What rises less than a tenth of the range is none; an opening without an end counts."""
    opening = [0.0, 0.0, 0.4, 0.4, 0.1, 0.12, 0.1, 0.1, 0.2, 0.3]
    assert lips.openings(opening) == pytest.approx([1.5 / world.FPS, 8.0 / world.FPS])
    assert lips.openings([0.1] * 9) == ()


def test_the_shipped_statistics_are_those_of_true_clips():
    """A fifth of the clips they are from has nearly the same."""
    shipped = load_file(recogniser.STATISTICS)
    assert recogniser.STATISTICS.stat().st_size < 4096
    made = recogniser.statistics([speech.scene(seed) for seed in range(recogniser.CLIPS // 5)])
    assert shipped.keys() == made.keys()
    for name, tensor in made.items():
        assert (shipped[name] - tensor).abs().max() < 0.3
        assert (shipped[name] - tensor).abs().mean() < 0.03
