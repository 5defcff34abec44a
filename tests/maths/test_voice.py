"""The voice of the talking world's decoder: it says what the latents say, without clicks and clipping."""

from __future__ import annotations

import pytest
import torch

from miniature import recogniser, speech, voice, world
from miniature.codecs import SPEECH, AudioCodec

SCENES = [speech.scene(seed) for seed in range(world.HELD_OUT, world.HELD_OUT + 32)]


@pytest.fixture(scope="module")
def latents():
    """The audio of true clips."""
    return speech.audio_latents(SCENES)


@pytest.fixture(scope="module")
def waves(latents):
    """Their voices."""
    return voice.VoiceCodec().decode(latents)


def test_the_same_is_heard(waves, latents):
    """As through the codec, to a part of 16 ms."""
    plain = recogniser.hear(AudioCodec(SPEECH).decode(latents))
    for scene, heard, same in zip(SCENES, recogniser.hear(waves), plain, strict=True):
        assert (heard.syllables, heard.voice) == (scene.syllables, scene.voice)
        assert heard.onsets == pytest.approx(same.onsets, abs=recogniser.PART + 1e-6)


def test_latents_come_back(waves, latents):
    """About as near as through the codec, whose tones are alone in their bands."""
    codec = AudioCodec(SPEECH)
    errors = [(codec.encode(each) - latents).square().mean().sqrt() for each in (waves, codec.decode(latents))]
    assert errors[0] < 1.5 * errors[1]
    assert errors[0] < 0.2


def in_comb(wave, scene):
    """The share of a vowel's energy below the noise that is within 20 Hz of a harmonic of the scene's voice."""
    start = round((scene.onsets[0] + 0.02) * world.RATE)
    spectrum = torch.fft.rfft(wave[start : start + 1600] * torch.hann_window(1600)).abs().square()
    hertz = torch.fft.rfftfreq(1600, 1 / world.RATE)
    pitch = speech.VOICES[scene.voice]
    near = (hertz / pitch - (hertz / pitch).round()).abs() * pitch <= 20
    below = hertz < 2800
    return (spectrum[near & below].sum() / spectrum[below].sum()).item()


def test_vowels_have_the_harmonics_of_the_voice(waves, latents):
    """One tone a band does not."""
    plain = AudioCodec(SPEECH).decode(latents)
    for scene, wave, tones in zip(SCENES[:8], waves, plain, strict=False):
        assert in_comb(wave, scene) > 0.95
        assert in_comb(tones, scene) < 0.8


def test_no_clipping_and_no_clicks(latents):
    """Louder latents make a clip that is softer as a whole, and no sample jumps: not at the ends, either."""
    wave = voice.VoiceCodec().decode(latents[:4] + 1.0)
    assert wave.abs().max() <= 1
    assert (wave.abs() > 0.999).sum(1).max() <= 2
    loud = voice.VoiceCodec().decode(torch.full((1, 20, 16), 0.5))
    assert loud[:, [0, -1]].abs().max() < 0.02
    steps = loud.diff().abs()[0]
    assert max(steps[:64].max(), steps[-64:].max()) <= steps[64:-64].max()
