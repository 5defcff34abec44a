"""Prompts against the published ones (golden F), and what is said about them."""

from __future__ import annotations

import json
import re

import pytest

from ovi.prompt import AS_WRITTEN, AUDIO_NEGATIVE, STYLES, VIDEO_NEGATIVE, clean, format_prompt


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
            '"Audio: …" was rewritten as "<AUDCAP>…<ENDAUDCAP>", which 720x720_5s was trained on.',
        ),
        (
            "Rain. <AUDCAP>drops<ENDAUDCAP>",
            "960x960_10s",
            '"<AUDCAP>…<ENDAUDCAP>" was rewritten as "Audio: …", which 960x960_10s was trained on.',
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
        ("She says <S>hello</S> and goes", "hello</S> and goes"),
        ("<S>never closed, he says <S>bye<E>", "never closed, he says"),
        ("<S>one<E> then <S> a very long line that goes on and on and on", "a very long line that goes on and on and"),
    ],
)
def test_an_unclosed_speech_tag_is_refused(text, where, style):
    sentence = f'The speech tag before "{where}" is not closed: write <S>words<E>.'
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        format_prompt(text, style)
