"""Tags as people write them: misspelt, unclosed, nested, pasted into the parts of a prompt; text that is none."""

# ruff: noqa: RUF001  full-width brackets and Cyrillic letters are what is tested

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ovi.prompt import AS_WRITTEN, STYLES, clean, compose, doubts, format_prompt, speech_note
from ovi.quote import printable, quoted
from support import ROOT

AUDCAP, LABEL = STYLES[:2]
HALF = "\ud83d"  # of an emoji


@pytest.mark.parametrize("style", STYLES[:3])
@pytest.mark.parametrize(
    ("first", "last"),
    [
        ("<s>", "<e>"),
        ("< S >", "< E>"),
        ("＜S＞", "＜E＞"),
        ("<Ｓ>", "〈E〉"),
        ("<Ѕ>", "<Е>"),  # Cyrillic
        ("<S>", "</S>"),
        ("<s>", "</s>"),
        ("<S>", "</E>"),
        ("<S>", "<\\S>"),
        ("<S>", "<ENDS>"),
        ("<SPEECH>", "</SPEECH>"),
        ("<S>", "<END>"),
        ("<S>", "<E/>"),
        ("<<S>>", "<<E>>"),
        ("\\<S\\>", "\\<E\\>"),
        ("&lt;S&gt;", "&lt;E&gt;"),
        ("&#60;S&#62;", "&amp;#x3C;E&#x3e;"),
        ("<SPEACH>", "</SPEACH>"),
        ("<SPEAK>", "</SPEAK>"),
        ("<SPECH>", "<END_SPEECHH>"),
        ("<|S|>", "<|E|>"),
        ("[S]", "[E]"),
        ("【S】", "【E】"),
    ],
)
def test_speech_is_read_as_meant(first, last, style):
    text, notes = format_prompt(f"She says, {first}Hi there.{last} Rain.", style)
    assert text == "She says, <S>Hi there.<E> Rain."
    said = {quoted(written): right for written, right in ((first, "<S>"), (last, "<E>")) if written != right}
    assert set(notes) == {f'{written} was read as "{right}"' for written, right in said.items()}
    assert doubts(f"{first}Hi there.{last}", style) == ()


@pytest.mark.parametrize(
    ("first", "last"),
    [
        ("<audcap>", "<endaudcap>"),
        ("<AUDCAP>", "</AUDCAP>"),
        ("<AUDCAP>", "<END_AUDCAP>"),
        ("<AUD CAP>", "<END AUDCAP>"),
        ("<AUDCAP>", "<AUDCAP_END>"),
        ("<AUDCAPS>", "<ENDAUDCAPS>"),
        ("<AUDACP>", "<ENDAUDCPA>"),
        ("<AUDIO>", "</AUDIO>"),
        ("＜AUDCAP＞", "＜ENDAUDCAP＞"),
        ("[AUDCAP]", "[ENDAUDCAP]"),
        ("<AUDCAP", "<ENDAUDCAP"),
        ("<AUDCAP>", "</>"),
        ("<AUDCAP>", "<E>"),
        ("<AUDCAP>", ""),
        ("Audio: <AUDCAP>", "<ENDAUDCAP>"),
        ("<AUDCAP>Audio: ", "<ENDAUDCAP>"),
        ("Audio:", "<ENDAUDCAP>"),
        ("<AUDCAP><AUDCAP>", "<ENDAUDCAP>"),
        ("<AUDCAP><AUDCAP>", "<ENDAUDCAP><ENDAUDCAP>"),
    ],
)
def test_a_description_is_read_as_meant(first, last):
    written = f"A room. {first} rain{last}"
    text, notes = format_prompt(written, AUDCAP)
    assert text.replace(" ", "") == "Aroom.<AUDCAP>rain<ENDAUDCAP>"
    assert notes
    assert format_prompt(written, LABEL).text.replace("  ", " ") == "A room. Audio: rain"
    assert doubts(written, AUDCAP) == ()


@pytest.mark.parametrize(
    "label", ["\naudio:", " AUDIO :", "\nAudio：", " Audio :", " **Audio:**", " **Audio**:", "\n*audio:*"]
)
def test_a_label_is_read_as_meant(label):
    text, notes = format_prompt(f"A room.{label} rain", AUDCAP)
    assert text.split() == ["A", "room.", "<AUDCAP>rain<ENDAUDCAP>"]
    assert f'{quoted(label)} was read as "Audio:"' in notes
    assert format_prompt(f"A room.{label} rain", LABEL).text.split() == ["A", "room.", "Audio:", "rain"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("<S>a <S>b<E> c<E>", "<S>a b c<E>"),
        ("<S><S>Hi<E>", "<S>Hi<E>"),
        ("<S>Hi<E><E>", "<S>Hi<E>"),
        ("x <AUDCAP>a <AUDCAP>b<ENDAUDCAP> c<ENDAUDCAP>", "x <AUDCAP>a b c<ENDAUDCAP>"),
        ("x <AUDCAP>a <AUDCAP>b<ENDAUDCAP> c", "x <AUDCAP>a b<ENDAUDCAP> c"),
        ("x Audio: a <AUDCAP>b<ENDAUDCAP>", "x <AUDCAP>a b<ENDAUDCAP>"),
    ],
)
def test_nested_tags_become_one_pair(written, meant):
    text, notes = format_prompt(written, AUDCAP)
    assert text == meant
    assert any("left out" in note for note in notes)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "text",
    [
        "<img1>: A man, identified as <sub1>.\n**Overall Environment/Scene**: <sub1> says, <S>You came.<E>",
        "<sub2> nods: <S>I said I would.<E>\n[SPEAKER_TIMESTAMPS_START]1[SPEAKER_TIMESTAMPS_END]",
        "3 < 5 > 4, «Eden», 《三体》, <b>, a [note], S & E, 1<<2>>1",
        "<S>The label reads Audio: on, off.<E>",
        "A <S>one<E> B <S>two\nlines<E>",
        "<S>Press [SEND], [/] or [END] [Audio]<E> on the <send> [Audio] remote",
    ],
)
def test_other_text_is_never_altered(text, style):
    if style == "dreamid-omni":  # which leaves such marks out
        text = text.replace("[SPEAKER_TIMESTAMPS_START]1[SPEAKER_TIMESTAMPS_END]", "1").replace("[SEND], ", "")
        text = text.replace("[END] ", "").strip()
    assert format_prompt(text, style) == (text, ())
    assert doubts(text, style) == ()


@pytest.mark.parametrize(
    ("text", "doubt"),
    [
        ("She says hi <E> and goes", '"<E>" closes no speech'),
        ("rain</AUDCAP> falls", '"</AUDCAP>" closes nothing'),
        ("Press [S] and [E]", '"[S]" was read as text'),
        ("<S1>Hi", '"<S1>" was read as text'),
        ("<audcap>rain<endaudcap>", '"<audcap>" is not read'),
        ("<AUDCAP>rain", '"<AUDCAP>" is not closed'),
        ("x <AUDCAP>rain <S>Hi<E>", '"<AUDCAP>" is not closed'),
        ("x <AUDCAP>rain\n\nShe leaves", '"<AUDCAP>" is not closed'),
        ("x <AUDCAP>rain <S>Hi<E><ENDAUDCAP>", "Speech stands in the description"),
        ("<S>Hi <AUDCAP>rain<ENDAUDCAP><E>", "A description of the audio stands between"),
        ("<AUDCAP>a<ENDAUDCAP> b <AUDCAP>c<ENDAUDCAP>", "The prompt has 2 descriptions"),
        ("She says, <S> <E>", "There are no words between <S> and <E>"),
        ("x <AUDCAP> <ENDAUDCAP>", "The description of the audio is empty"),
    ],
)
def test_what_is_not_certain_stays_and_is_named(text, doubt):
    assert format_prompt(text, AUDCAP) == (text, ())
    assert any(said.startswith(doubt) for said in doubts(text, AUDCAP))


@pytest.mark.parametrize("style", STYLES[:3])
def test_an_empty_label_is_named(style):
    assert doubts("A room. Audio: ", style) == ("The description of the audio is empty: write one or delete it",)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("tag", ["&#60;S&#62;", "&lt;S&gt;", "&ltS&gt", "&#38;#60;S>", "<&#83;>"])
def test_speech_that_is_unescaped_later_must_be_closed(tag, style):
    with pytest.raises(ValueError, match="not closed"):
        format_prompt(f"She says, {tag}Hi", style)


def test_a_label_in_quotation_marks_is_text_beside_a_description():
    text = 'A "Audio: x" label. <AUDCAP>y<ENDAUDCAP>'
    assert format_prompt(text, AUDCAP) == (text, ())
    assert doubts(text, AUDCAP) == ()
    assert format_prompt(text, LABEL).text == 'A "Audio: x" label. Audio: y'
    assert compose(text, "", "z", AUDCAP) == 'A "Audio: x" label.\n\n<AUDCAP>y z<ENDAUDCAP>'
    assert format_prompt('"A room. Audio: <AUDCAP>y<ENDAUDCAP>"', AUDCAP).text == '"A room. <AUDCAP>y<ENDAUDCAP>"'


def test_as_written_changes_nothing_and_names_what_ovi_does_not_know():
    text = "She says, <s>Hi</s>"
    assert format_prompt(text, AS_WRITTEN) == (text, ())
    assert doubts(text, AS_WRITTEN) == (
        '"<s>" stays as written: Ovi knows "<S>"',
        '"</s>" stays as written: Ovi knows "<E>"',
    )


@pytest.mark.parametrize(
    ("speech", "turn"),
    [
        ("Anna: <S>Hi<E>", "Anna says, <S>Hi<E>"),
        ("Anna says: Hi", "Anna says, <S>Hi<E>"),
        ("Anna: Hi <E>", "Anna says, <S>Hi<E>"),
        ("Anna: <S>Hi", "Anna says, <S>Hi<E>"),
        ("Anna: <s>Hi</s>", "Anna says, <S>Hi<E>"),
        ("Anna says: <S>Hi<E>", "Anna says, <S>Hi<E>"),
        ("Anna says, <S>Hi<E>", "Anna says, <S>Hi<E>"),
        ('Anna says, "Hi"', "Anna says, <S>Hi<E>"),
        ("Anna says: \u201cIt is 10:30\u201d", "Anna says, <S>It is 10:30<E>"),
        ('Anna: "Hi"', "Anna says, <S>Hi<E>"),
        ("Anna says, 'I'm here'", "Anna says, <S>I'm here<E>"),
        ("Anna says, at 10:30 then", "Anna says, <S>at 10:30 then<E>"),
        ("Anna whispers softly: Hi", "Anna whispers softly, <S>Hi<E>"),
        ("The man who says little: Hi", "The man who says little says, <S>Hi<E>"),
        ("女说：你好", "女说, <S>你好<E>"),
        ("Anna: Hi\nBen says: Yo<E>", "Anna says, <S>Hi<E> Ben says, <S>Yo<E>"),
        ("Anna: <S>Hi there,\nhow are you?<E>", "Anna says, <S>Hi there, how are you?<E>"),
        ("Anna: <S>Hi\nBen: Yo<E>", "Anna says, <S>Hi<E> Ben says, <S>Yo<E>"),
        ('Anna: she said "no" and "yes"', 'Anna says, <S>she said "no" and "yes"<E>'),
        ("**Anna:** Hi", "Anna says, <S>Hi<E>"),
        ("**Anna**: Hi", "Anna says, <S>Hi<E>"),
        ("- **Anna:** Hi", "Anna says, <S>Hi<E>"),
        ("*Anna:* Hi *there*", "Anna says, <S>Hi *there*<E>"),
        ("**Anna** says, <S>Hi<E>", "Anna says, <S>Hi<E>"),
        ("[00:01] Anna: Hi", "Anna says, <S>Hi<E>"),
        ("00:01 Anna: Hi", "Anna says, <S>Hi<E>"),
        ("(0:01 - 0:03) **Anna:** Hi", "Anna says, <S>Hi<E>"),
        ("**[00:01] Anna:** Hi", "Anna says, <S>Hi<E>"),
        ("At 10:30 Anna: Hi", "At 10:30 Anna says, <S>Hi<E>"),
        ('At 10:30 Anna: "Hi"', "At 10:30 Anna says, <S>Hi<E>"),
        ("At 10:30 Anna says, hi there", "At 10:30 Anna says, <S>hi there<E>"),
        ("Anna: <S>It is\n10:30 now<E>", "Anna says, <S>It is 10:30 now<E>"),
        ("[00:01]\nAnna: Hi", "Anna says, <S>Hi<E>"),
        (
            "1\r\n00:00:01,000 --> 00:00:02,000\r\nAnna: Hi\r\n\r\n2\n00:02.000 --> 00:03.000\nBen: 5",
            "Anna says, <S>Hi<E> Ben says, <S>5<E>",
        ),
    ],
)
def test_a_pasted_line_of_speech_is_taken_as_meant(speech, turn):
    assert compose("", speech, "", AUDCAP) == turn


NO_SPEAKER = ["http://github.com", "It is 10:30", "10:30: Hi", "3"]


@pytest.mark.parametrize(
    "speech", ["<S>Hi<E>", "Anna: <S><E>", "Anna: <E>", "Anna says:", '"Hi," says Anna', "Audio", *NO_SPEAKER]
)
def test_a_line_without_speaker_or_words_is_refused(speech):
    with pytest.raises(ValueError, match=r"^The speech line .* has no speaker or no words"):
        compose("Rain.", speech, "", AUDCAP)


PASTED = "A woman says, <S>Hi<E> She smiles."


@pytest.mark.parametrize(
    ("parts", "seen", "heard"),
    [
        (("A room. Audio: wind", "Anna: Hi", "rain"), "A room. Anna says, <S>Hi<E>", "wind rain"),
        (("A room. <audcap>wind</audcap>", "Anna: Hi", ""), "A room. Anna says, <S>Hi<E>", "wind"),
        (("<AUDCAP>wind<ENDAUDCAP> A room.", "Anna: Hi", "rain"), "A room. Anna says, <S>Hi<E>", "wind rain"),
        (("A room.", "", "Audio: rain"), "A room.", "rain"),
        (("A room.", "", "AUDIO: rain"), "A room.", "rain"),
        (("A room.", "", "**Audio:** rain"), "A room.", "rain"),
        (("A room.", "", "<AUDCAP>rain<ENDAUDCAP>"), "A room.", "rain"),
        (("A room.", "", "<AUDCAP>rain"), "A room.", "rain"),
        (("", f"{PASTED} Audio: wind", "rain"), PASTED, "wind rain"),
        (("", f"{PASTED}\n<AUDCAP>wind<ENDAUDCAP>", ""), PASTED, "wind"),
        (("A room.", "Anna: <S>Hi <AUDCAP>wind<ENDAUDCAP>", ""), "A room. Anna says, <S>Hi<E>", "wind"),
        (("A room.", "Audio: wind\nAnna: Hi", ""), "A room. Anna says, <S>Hi<E>", "wind"),
    ],
)
def test_a_pasted_prompt_has_one_description_and_speech_outside_of_it(parts, seen, heard):
    assert compose(*parts, AUDCAP) == f"{seen}\n\n<AUDCAP>{heard}<ENDAUDCAP>"
    text = compose(*parts, LABEL)
    assert text == f"{seen}\n\nAudio: {heard}"
    assert format_prompt(text, LABEL) == (text, ())


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        (("A. Audio: wind. <S>Hi<E>", "", ""), "Speech stands in the description of the audio in the scene"),
        (("A. <S>Hi <AUDCAP>x<ENDAUDCAP><E>", "", ""), "A description of the audio stands between <S> and <E>"),
        (("A. <ENDAUDCAP>", "", "rain"), "<ENDAUDCAP> closes nothing in the scene"),
        (("A. <AUDCAP>x\n\nShe leaves.", "", ""), "<AUDCAP> is not closed in the scene"),
        (("A. <S>Hi", "", ""), 'The speech tag before "Hi" is not closed'),
        (("A.", "", "rain <S>Hi<E>"), 'The sound holds a speech tag, "<S>"'),
        (("A.", "", f"{PASTED} Audio: wind"), 'The sound holds a speech tag, "<S>"'),
    ],
)
def test_parts_that_are_not_certain_are_refused(parts, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}[^\n]*$"):
        compose(*parts, AUDCAP)


@pytest.mark.parametrize(
    "message",
    [
        lambda: format_prompt(f"<S>never closed {HALF}", AUDCAP),
        lambda: format_prompt(f"A cat {HALF}", AS_WRITTEN),
        lambda: compose("", f"no speaker {HALF}", "", AUDCAP),
        lambda: compose("", f"Anna: Hi {HALF}", "", AUDCAP),
        lambda: compose(HALF, "", "", AUDCAP),
        lambda: compose("", "", HALF, AUDCAP),
        lambda: clean(f"blur {HALF}"),
    ],
)
def test_half_an_emoji_is_refused_in_words_that_can_be_printed(message):
    with pytest.raises(ValueError, match=r"^The text has half a character at .*ud83d") as raised:
        message()
    raised.value.args[0].encode("utf-8")


def test_quotes_can_be_printed_anywhere(monkeypatch):
    assert quoted(f"a{HALF}b\n\x00\x1b[31m\u202e") == r'"a\ud83db\n\x00\x1b[31m\u202e"'
    assert quoted("x" * 1000) == f'"{"x" * 40}"'
    assert quoted("\u4f60\u597d \u00e9 \U0001f600") == '"\u4f60\u597d \u00e9 \U0001f600"'
    family = "\U0001f468\u200d\U0001f469"  # joined by U+200D
    assert printable(family) == family
    monkeypatch.setattr(sys, "stderr", open(os.devnull, "w", encoding="cp1252"))  # noqa: SIM115
    assert quoted("\u4f60 \u00e9") == '"\\u4f60 \u00e9"'
    sys.stderr.close()


LINEAR = """
from ovi.prompt import STYLES, clean, compose, format_prompt, speech_note
n = 100_000
for text in ("<AUDCAP>" * n, "scene <AUDCAP>" + "\\n" * n):
    assert len(format_prompt(text, STYLES[0]).text) <= len(text) + 30
for text in ("[AUDIO_DESCRIPTION_START]" * n, "[A" * n, "[" + "A" * n, "\\n" * n, "\\n " * n, " \\n" + " " * n + "x"):
    format_prompt(text, STYLES[3])
try:
    format_prompt("<S> a " * n, STYLES[1])
except ValueError as error:
    assert len(str(error)) < 300
else:
    raise AssertionError("unclosed speech was read")
speech_note("<S>" * n, 121)
assert compose("", "Anna: " + "says " * n, "", STYLES[0]).startswith("Anna says, <S>says")
clean("a" + "\u0301\u0327" * n)
clean("&#1" * n)
for text in ("&#0" * n, "&#" + "0" * n, "**Audio" * n, "*" * n, '"' * n, "“" * n, "«" * n):
    format_prompt(text + "<AUDCAP>x<ENDAUDCAP>", STYLES[0])
for text in ("1:1 " * n, "*a " * n, "1\\n" * n, "1:" * n, "1" * n, " " * n + "*", "(1:11 - " * n):
    try:
        compose("", text, "", STYLES[0])
    except ValueError:
        continue
    raise AssertionError("a line without a speaker was read")
print("done")
"""


def test_hostile_text_takes_linear_time():
    """Each of these texts takes minutes where a step is quadratic; the limit is on the processor's time in all."""
    resource = pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", LINEAR],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (40, 40)),
    )
    assert done.stdout.strip() == "done", done.stderr[-500:]


def test_speech_is_counted_as_before():
    assert speech_note("<S>one two<E> x <S>three<E> <S>never", 121).startswith("Speech: 3 words")
    assert clean("&#" + "1" * 5000 + ";x &#65;") == "\ufffdx A"
    assert clean("cafe\u0301 " + "e\u0301" * 10) == "caf\u00e9 " + "\u00e9" * 10
