"""Ovi Prompt: scene, speech and sound as one prompt, and what is said about its length."""

from __future__ import annotations

import pytest
import torch

from ovi.prompt import compose, format_prompt, speech_note

SCENE, SPEECH, SOUND = " Two people on a pier. ", "The man: It is 10:30.\n\n  The girl : Late!  ", "Waves.\nWind."
TURNS = "The man says, <S>It is 10:30.<E> The girl says, <S>Late!<E>"


@pytest.mark.parametrize(
    ("style", "sound"),
    [
        ("720x720_5s", "<AUDCAP>Waves.\nWind.<ENDAUDCAP>"),
        ("960x960_5s", "Audio: Waves.\nWind."),
        ("960x960_10s", "Audio: Waves.\nWind."),
    ],
)
def test_a_prompt_in_the_form_of_its_checkpoint(style, sound):
    text = compose(SCENE, SPEECH, SOUND, style)
    assert text == f"Two people on a pier. {TURNS}\n\n{sound}"
    assert format_prompt(text, style) == (text, ())  # Ovi Text Encode finds nothing to rewrite


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("", SPEECH, ""), TURNS),
        (("Rain.", " \n ", ""), "Rain."),
        (("", "", "Rain."), "Audio: Rain."),
        (("", "", ""), ""),
        (("", "\u5973\uff1a 10:30", ""), "\u5973 says, <S>10:30<E>"),  # a full-width colon
    ],
)
def test_empty_parts_are_left_out(parts, expected):
    assert compose(*parts, "960x960_5s") == expected


@pytest.mark.parametrize("line", ["Hello there", ": Hello there", "The man:  "])
def test_a_turn_needs_a_speaker_and_words(line):
    with pytest.raises(ValueError, match=f'^The speech line "{line.strip()}" has no speaker or no words'):
        compose("Rain.", f"The man: Yes.\n{line}", "", "960x960_5s")


@pytest.mark.parametrize(
    ("words", "frames", "note"),
    [
        (0, 121, "Speech: 0 words, about 0.0 s of the clip's 5.0 s"),
        (12, 121, "Speech: 12 words, about 4.8 s of the clip's 5.0 s"),
        (13, 121, "Speech: 13 words, about 5.2 s of the clip's 5.0 s: too many, so shorten them or lengthen the clip"),
        (13, 241, "Speech: 13 words, about 5.2 s of the clip's 10.0 s"),
    ],
)
def test_words_are_held_against_the_clip(words, frames, note):
    """Those between the tags alone, over lines and turns."""
    first, second = "word " * (words // 2), "word\n" * (words - words // 2)
    text = f"A long scene. <S>{first}<E> He says, <S>{second}<E> Audio: rain"
    assert speech_note(text, frames) == note


@pytest.mark.parametrize(
    ("speech", "counts"),
    [
        ("\u4eca\u665a\u7684\u5927\u6d77\uff0c\u4e0d\u4e00\u6837\u3002", "8 characters, about 2.0 s"),
        ("\u304a\u306f\u3088\u3046 Tom \u2014", "1 word and 4 characters, about 1.4 s"),
        ("Well-known, isn't it \u2014 'yes'?", "4 words, about 1.6 s"),
    ],
)
def test_characters_without_spaces_are_counted_each(speech, counts):
    """Punctuation is not spoken."""
    assert speech_note(f"<S>{speech}<E>", 121) == f"Speech: {counts} of the clip's 5.0 s"


@pytest.fixture(scope="module")
def clip(comfy):
    """A random tiny UMT5 of ComfyUI's own class."""
    from stand_ins import tiny_clip

    with torch.inference_mode():
        return tiny_clip(64, 0)


def run(comfy, scene, clip=None):
    output = comfy.node["OviPrompt"].execute(
        scene=scene, speech=SPEECH, sound=SOUND, prompt_style="720x720_5s", length=121, clip=clip
    )
    (text,) = output.ui.as_dict()["text"]
    return *output.args, text.splitlines()


@pytest.mark.comfyui
def test_the_node_shows_speech_and_tokens(comfy, clip):
    prompt, shown = run(comfy, "A pier.")
    assert prompt == compose("A pier.", SPEECH, SOUND, "720x720_5s")
    assert shown == ["Speech: 4 words, about 1.6 s of the clip's 5.0 s"]
    tokens = sum(token != 0 for token, _ in clip.tokenize(" ".join(prompt.split()))["umt5xxl"][0])
    assert run(comfy, "A pier.", clip)[1][1:] == [f"Prompt: {tokens} of 512 tokens"]
    assert ": the last " in run(comfy, "x " * 600, clip)[1][1]


@pytest.mark.comfyui
def test_speech_in_the_scene_counts_and_must_be_closed(comfy):
    assert run(comfy, "He shouts, <S>Run, all of you!<E>")[1][0].startswith("Speech: 8 words")
    with pytest.raises(ValueError, match="not closed"):
        run(comfy, "He shouts, <S>Run!")
