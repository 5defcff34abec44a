"""Prompts against the release's (golden F), prompts composed of parts, and the notes about them."""

from __future__ import annotations

import json
import re

import pytest

from ovi.prompt import (
    AS_WRITTEN,
    AUDIO_NEGATIVE,
    STYLES,
    VIDEO_NEGATIVE,
    clean,
    compose,
    format_prompt,
    speech_note,
)

SCENE, SPEECH, SOUND = " Two people on a pier. ", "The man: It is 10:30.\n\n  The girl : Late!  ", "Waves.\nWind."
TURNS = "The man says, <S>It is 10:30.<E> The girl says, <S>Late!<E>"


@pytest.fixture(scope="module")
def published(golden):
    return json.loads((golden / "F_text.json").read_text(encoding="utf-8"))


def test_prompts_are_rewritten_as_published(published):
    for case in published["prompts"]:
        assert set(STYLES) == {*case["formatted"], AS_WRITTEN}
        for style, expected in (case["formatted"] | {AS_WRITTEN: case["input"]}).items():
            text, notes = format_prompt(case["input"], style)
            assert text == expected
            assert len(notes) == (text != case["input"])


def test_prompts_are_cleaned_as_published(published):
    for case in published["prompts"]:
        assert clean(case["input"]) == case["t5_whitespace_clean"]


def test_cleaning_beyond_the_table():
    assert clean("rock &amp;amp; roll") == "rock & roll"
    assert clean("\u2018it\u2019s\u2019 \u201eso\u201d") == "'it's' \"so\""
    assert clean("cafe\u0301") == "caf\u00e9"


def test_negatives_are_the_published_ones(published):
    defaults = published["defaults"]["yaml"]
    assert defaults["video_negative_prompt"] == VIDEO_NEGATIVE
    assert defaults["audio_negative_prompt"] == AUDIO_NEGATIVE


@pytest.mark.parametrize(
    ("text", "style", "note"),
    [
        (
            "Rain. Audio: drops",
            "720x720_5s",
            '"Audio: …" was rewritten as "<AUDCAP>…<ENDAUDCAP>", the form that 720x720_5s was trained on.',
        ),
        (
            "Rain. <AUDCAP>drops<ENDAUDCAP>",
            "960x960_10s",
            '"<AUDCAP>…<ENDAUDCAP>" was rewritten as "Audio: …", the form that 960x960_10s was trained on.',
        ),
    ],
)
def test_a_rewritten_tag_is_said(text, style, note):
    assert format_prompt(text, style).notes == (note,)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("She says <S>hello there", "hello there"),
        ("She says <S>hello. Rain. Audio: rain", "hello. Rain. Audio: rain"),
        ("<S>never closed, he says <S>bye<E>", "never closed, he says"),
        ("<S>one<E> then <S> a very long line that goes on and on and on", "a very long line that goes on and on and"),
    ],
)
def test_an_unclosed_speech_tag_is_refused(text, where, style):
    sentence = f'The speech tag before "{where}" is not closed: write <S>words<E>.'
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        format_prompt(text, style)


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
    """Only words between the tags, over lines and turns."""
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
