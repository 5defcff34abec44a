"""The talking world: its scenes, and what its codecs carry."""

from __future__ import annotations

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file

from miniature import codecs, speech, text, world

SCENES = [speech.scene(seed) for seed in range(world.HELD_OUT, world.HELD_OUT + 60)]


def test_a_scene_is_its_seed():
    assert speech.scene(5) == speech.scene(5) != speech.scene(6)


def test_scenes_cover_the_world_and_fit_in_the_clip():
    """They start early, last as long as their pace says, and end before the clip."""
    for pace, counts in speech.COUNTS.items():
        assert {len(scene.syllables) for scene in SCENES if scene.pace == pace} == set(counts)
    assert {syllable for scene in SCENES for syllable in scene.syllables} == set(speech.SYLLABLES)
    for scene in SCENES:
        assert speech.EARLIEST <= scene.starts[0] <= speech.LATEST
        assert scene.starts[-1] <= world.SECONDS - speech.SILENCE + 1e-9
        lengths = [b - a for a, b in zip(scene.starts, scene.starts[1:], strict=False)]
        assert len(lengths) == len(scene.syllables)
        pace = speech.PACES[scene.pace]
        assert all(abs(length / pace - 1) <= speech.UNEVEN + 1e-9 for length in lengths)


def test_captions():
    scene = speech.Scene(("ma", "so", "ti"), "red", "small", "left", "low", "fast", (0.1, 0.3, 0.5, 0.7), 0)
    assert scene.caption == "A small red face on the left says <S> ma so ti <E> . Audio: a low fast voice ."
    assert scene.wordless == "A small red face on the left says <S> <E> . Audio: a low fast voice ."


def test_another_timing_of_the_same_caption():
    for seed, scene in enumerate(SCENES):
        other = speech.retimed(scene, seed)
        assert other.caption == scene.caption
        assert all(abs(a - b) > 1e-6 for a, b in zip(other.starts, scene.starts, strict=True))


def test_a_scene_is_the_same_in_every_batch():
    """Frames and audio of a scene depend on nothing beside it."""
    together = speech.waveforms(SCENES[:3]), speech.frames(SCENES[:3])
    alone = speech.waveforms(SCENES[1:2]), speech.frames(SCENES[1:2])
    for many, one in zip(together, alone, strict=True):
        torch.testing.assert_close(many[1:2], one, atol=1e-5, rtol=0)


def test_silence_before_and_after_and_never_too_loud():
    waves = speech.waveforms(SCENES[:8])
    assert waves.abs().max() < 1
    for scene, wave in zip(SCENES, waves, strict=False):
        first, last = (round(time * world.RATE) for time in (scene.starts[0], scene.starts[-1]))
        assert wave[: first - 300].abs().max() < 1e-6
        assert wave[last + 300 :].abs().max() < 1e-6
        for onset in scene.onsets:
            vowel = wave[round((onset + 0.02) * world.RATE) :][:800]
            assert vowel.square().mean().sqrt() > 0.03


@pytest.mark.parametrize(("consonant", "height"), [("m", 0.0), ("s", speech.SLIT), ("t", speech.SLIT)])
def test_lips_of_consonants_and_vowels(consonant, height):
    """The mouth is closed at m, a slit at s and t, and as high as its vowel's afterwards."""
    scene = speech.Scene((f"{consonant}a",), "red", "small", "left", "low", "slow", (0.2, 0.52), 0)
    mouth = speech.tracks([scene]).height[0]
    at = [round(time * speech.CONTROL) for time in (0.25, 0.42)]
    assert mouth[at[0]].item() == pytest.approx(height, abs=1e-6)
    assert mouth[at[1]].item() == pytest.approx(speech.MOUTHS["a"][0])


def test_latents():
    """They have Ovi's layout and about the scale of noise, and hold the loudness of the bands."""
    video, audio = speech.latents(SCENES[:9])
    assert video.shape == (9, 48, 13, 4, 6)
    assert audio.shape == (9, 20, 64)
    assert 0.7 < audio.std() < 1.3
    assert 0.7 < video.std() < 1.3
    codec = codecs.AudioCodec(codecs.SPEECH)
    waves = speech.waveforms(SCENES[:9])
    heard = codec.loudness(codec.decode(codec.encode(waves)))
    wanted = codec.loudness(waves)
    assert torch.corrcoef(torch.stack([heard.log1p().flatten(), wanted.log1p().flatten()]))[0, 1] > 0.95


@pytest.fixture(scope="module")
def encoder():
    """The shipped text encoder of the world."""
    return load_file(text.TALKING)


def test_the_text_encoder_is_what_is_shipped(encoder):
    made = text.talking_weights()
    assert made.keys() == encoder.keys()
    assert all(torch.equal(made[name], tensor) for name, tensor in encoder.items())


def test_every_word_is_one_token(encoder):
    """Syllables, <S> and <E> too; no syllable is found in "small" or "says"."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=encoder["spiece_model"].numpy().tobytes())
    for word in text.WORDS:
        assert len(tokenizer.encode(word)) == 1
        assert tokenizer.encode(word) != [text.UNKNOWN]
    assert tokenizer.encode("small says ma sa", out_type=str) == ["▁small", "▁says", "▁ma", "▁sa"]
    captions = ["", "so sis", *(scene.caption for scene in SCENES), *(scene.wordless for scene in SCENES[:2])]
    for caption, row in zip(captions, text.tokens(captions).tolist(), strict=True):
        written = tokenizer.encode(caption)
        assert row == [*written, text.END, *[text.PADDING] * (len(row) - len(written) - 1)]
        assert len(written) <= 25


def test_the_text_keeps_the_order_of_the_syllables(encoder):
    """A linear probe of a syllable's text tells the first syllable from the second, and so on."""
    scenes = [speech.scene(seed) for seed in range(900)]
    captions = [scene.caption for scene in scenes]
    encoded = text.contexts(captions, encoder)
    rows = [
        (i, captions[i].split().index("<S>") + 1 + k, k) for i in range(900) for k in range(len(scenes[i].syllables))
    ]
    which, where, place = torch.tensor(rows).T
    x = torch.cat([encoded[which, where], torch.ones(len(rows), 1)], dim=1)
    known = which < 600
    y = torch.nn.functional.one_hot(place[known], 8).float()
    probe = torch.linalg.lstsq(x[known].double(), y.double()).solution
    told = (x[~known].double() @ probe).argmax(1)
    assert (told == place[~known]).float().mean() > 0.96
