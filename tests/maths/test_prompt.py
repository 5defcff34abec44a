"""Prompts against the release's (golden F), prompts composed of parts, and the notes about them."""

from __future__ import annotations

import json
import re

import pytest

from ovi import parts
from ovi.prompt import (
    AS_WRITTEN,
    AUDIO_NEGATIVE,
    STYLES,
    VIDEO_NEGATIVE,
    clean,
    compose,
    doubts,
    format_prompt,
    speech_note,
)

DREAMID = "dreamid-omni"
SCENE, SPEECH, SOUND = " Two people on a pier. ", "The man: It is 10:30.\n\n  The girl : Late!  ", "Waves.\nWind."
TURNS = "The man says, <S>It is 10:30.<E> The girl says, <S>Late!<E>"


@pytest.fixture(scope="module")
def published(golden):
    return json.loads((golden / "F_text.json").read_text(encoding="utf-8"))


def test_prompts_are_rewritten_as_published(published):
    for case in published["prompts"]:
        assert set(STYLES) == {*case["formatted"], DREAMID, AS_WRITTEN}
        for style, expected in (case["formatted"] | {AS_WRITTEN: case["input"]}).items():
            text, notes = format_prompt(case["input"], style)
            assert text == expected
            assert len(notes) == (text != case["input"])


@pytest.fixture(scope="module")
def captions(golden):
    return json.loads((golden / "dreamid" / "manifest.json").read_text(encoding="utf-8"))["preprocess"]["prompts"]


def test_captions_are_reduced_as_published(captions):
    """What is left of one has nothing more to leave out."""
    for case in captions:
        text, notes = format_prompt(case["in"], DREAMID)
        assert text == case["out"]
        assert notes
        assert format_prompt(text, DREAMID) == (text, ())


@pytest.mark.parametrize(
    ("written", "text", "note"),
    [
        (
            "A\n[AUDIO_DESCRIPTION_START]a[AUDIO_DESCRIPTION_END] b [AUDIO_DESCRIPTION_START]\n[AUDIO_DESCRIPTION_END]",
            "A\n b",
            "[AUDIO_DESCRIPTION_START]…[AUDIO_DESCRIPTION_END] was left out: dreamid-omni was trained without it",
        ),
        (
            "[AB]one [C] two[AB] [D]",
            "one  two",
            'Marks were left out, as dreamid-omni was trained without them: "[AB]", "[C]" …',
        ),
        ("<sub1> says, <s>Hi</s>", "<sub1> says, <S>Hi<E>", '"<s>" was read as "<S>"'),
        ("<sub1> says, [S]Hi[E]", "<sub1> says, <S>Hi<E>", '"[S]" was read as "<S>"'),
    ],
)
def test_a_change_to_a_caption_is_said(written, text, note):
    formatted = format_prompt(written, DREAMID)
    assert formatted.text == text
    assert note in formatted.notes


@pytest.mark.parametrize(
    ("text", "doubt"),
    [
        (
            "A pier. Audio: waves",
            '"Audio:" was read as text: dreamid-omni was trained without descriptions of the audio',
        ),
        (
            "A pier. <audcap>waves",
            '"<audcap>" was read as text: dreamid-omni was trained without descriptions of the audio',
        ),
        (
            "A pier. <AUDCAP>waves<ENDAUDCAP>",
            '"<AUDCAP>" was read as text: dreamid-omni was trained without descriptions of the audio',
        ),
        ("A pier. <S><E>", "There are no words between <S> and <E>: write <S>words<E>"),
    ],
)
def test_a_caption_keeps_and_names_what_it_should_not_have(text, doubt):
    assert format_prompt(text, DREAMID) == (text, ())
    assert doubts(text, DREAMID) == (doubt,)


def test_a_block_that_is_not_closed_is_read_and_named():
    text = "A pier. [AUDIO_DESCRIPTION_START] waves"
    assert format_prompt(text, DREAMID).text == "A pier.  waves"
    assert doubts(text, DREAMID)[0].startswith("[AUDIO_DESCRIPTION_START] is not closed, so what follows is read")


PERSONS = "The man: A tall man in a raincoat.\n\nAnna: An old woman"


def test_a_caption_is_composed_of_parts(captions):
    text, _, unsure = parts.read(
        "A pier at dawn.\nUpper-body close-up.",
        "The man: Anna, you came.\nAnna: <S>I said I would.<E>",
        "",
        DREAMID,
        PERSONS,
        "The man, on the left, is soaked.",
        "The man looks at Anna, not at Annabel.",
    )
    assert text.split("\n") == [
        "<img1>: A tall man in a raincoat is identified as <sub1>.",
        "<img2>: An old woman is identified as <sub2>.",
        "**Overall Environment/Scene**: A pier at dawn. Upper-body close-up.",
        "**Main Characters/Subjects Appearance**: <sub1>, on the left, is soaked.",
        "**Main Characters/Subjects Actions**: <sub1> looks at <sub2>, not at Annabel.",
        "<sub1> says, <S>Anna, you came.<E> <sub2> says, <S>I said I would.<E>",
    ]
    assert (unsure, format_prompt(text, DREAMID)) == ((), (text, ()))
    persons, scene, looks, actions, speech = re.split(r"\n(?=\*\*|<sub)", captions[0]["out"])
    pasted = parts.read(scene, "", "", DREAMID, persons, looks, f"{actions} {speech}")
    assert pasted.text == captions[0]["out"].replace(", identified as", " is identified as").replace(
        ".\n<sub1> s", ". <sub1> s"
    )


def test_a_caption_leaves_the_audio_out_and_says_so():
    heard = "The description of the audio was left out: dreamid-omni was trained without descriptions of the audio"
    for written in (("A pier.", "", "waves"), ("A pier. Audio: waves", "", ""), ("A pier.", "Audio: waves", "")):
        assert parts.read(*written, DREAMID) == ("**Overall Environment/Scene**: A pier.", (heard,), ())
    assert compose("", "", "", DREAMID) == ""


@pytest.mark.parametrize(
    ("persons", "sentence"),
    [
        ("Anna", 'The person "Anna" has no name or no description: write "name: description".'),
        ("Anna: .", 'The person "Anna: ." has no name or no description: write "name: description".'),
        (": An old woman", 'The person ": An old woman" has no name or no description: write "name: description".'),
        ("Anna: A man\nAnna: A woman", 'Two persons are called "Anna": give each a name of its own.'),
    ],
)
def test_a_person_needs_a_name_of_its_own_and_a_description(persons, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        parts.read("", "", "", DREAMID, persons)


@pytest.mark.parametrize("line", ["- Anna: A man", "1. Anna: A man", "* **Anna**: A man", "**Anna:** A man"])
def test_persons_may_be_a_list(line):
    text = parts.read("Anna waves.", "", "", DREAMID, line).text
    assert text.splitlines()[0] == "<img1>: A man is identified as <sub1>."
    assert text.endswith(": <sub1> waves.")


def test_emphasis_in_a_description_of_a_person_stays():
    assert parts.read("", "", "", DREAMID, "Anna: A *very* old man").text.startswith("<img1>: A *very* old man is")


@pytest.mark.parametrize(
    ("name", "scene", "read"),
    [
        ("李", "李看着海。", "<sub1>看着海。"),
        ("안나", "안나가 걷는다.", "<sub1>가 걷는다."),
        ("Ann", "Anna sees Ann.", "Anna sees <sub1>."),
    ],
)
def test_names_in_languages_without_spaces(name, scene, read):
    """A name ends where a word does, or a particle or a verb of such a language follows."""
    assert parts.read(scene, "", "", DREAMID, f"{name}: A man").text.endswith(read)


def test_other_styles_have_no_persons():
    text, notes, unsure = parts.read("A pier.", "", "", "960x960_5s", PERSONS)
    assert (text, notes) == ("A pier.", ())
    assert unsure == ("Persons, looks and actions are not read: only dreamid-omni has them",)


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
