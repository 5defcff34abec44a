"""Prompts in the form that the released checkpoints were trained on.

Words between <S> and <E> are spoken. The audio is described between <AUDCAP> and <ENDAUDCAP> for the checkpoint
720x720_5s, and after "Audio:" at the end of the prompt for the 960x960 ones. DreamID-Omni has no such description: its
prompt is a `caption`.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from . import caption, parts, tags
from .geometry import VARIANTS, seconds
from .quote import check_characters, quoted

AS_WRITTEN = "as written"
STYLES = (*parts.STYLES, AS_WRITTEN)

# Estimates, not Ovi's: 150 words a minute is usual for English speech, 240 characters a minute for Chinese.
WORDS_PER_SECOND = 2.5
CHARACTERS_PER_SECOND = 4.0
_CHARACTER = re.compile("[\u3040-\u30ff\u3400-\u9fff]")  # Chinese and Japanese, which have no spaces between words

# The Ovi release's negative prompts, one for each tower.
VIDEO_NEGATIVE = "jitter, bad hands, blur, distortion"
AUDIO_NEGATIVE = "robotic, muffled, echo, distorted"

_CURLY_SINGLE, _CURLY_DOUBLE = "\u02bc\u2018\u2019\u201a\u201b", "\u201c\u201d\u201e\u201f"
_HUGE_NUMBER = re.compile("&#[0-9]{4000,};?")
_CLOSED_BY = {tags.SPEECH: tags.END_SPEECH, tags.AUDIO: tags.END_AUDIO}
_STRETCH = 2000  # characters: a word of so many has more tokens than Ovi reads
_STRAIGHT_QUOTES = str.maketrans(dict.fromkeys(_CURLY_SINGLE, "'") | dict.fromkeys(_CURLY_DOUBLE, '"'))


class FormattedPrompt(NamedTuple):
    """A prompt for the text encoder, and one note on each change that was made to it."""

    text: str
    notes: tuple[str, ...]


def format_prompt(text: str, style: str) -> FormattedPrompt:
    """Read the tags of a prompt as meant, and rewrite the description of the audio for the checkpoint `style`.

    The Ovi release's rules for the description hold, and DreamID-Omni's for the style "dreamid-omni" (see `caption`).
    The style "as written" changes nothing.

    Raises ValueError where a speech tag <S> is not closed, in any style, and for half characters.
    """
    check_characters(text)
    if style == AS_WRITTEN:
        tags.check_closed(_unescaped(text))
        return FormattedPrompt(text, ())
    if style == caption.STYLE:
        text, notes, _ = caption.read(text)
        tags.check_closed(_unescaped(text))
        return FormattedPrompt(text, notes)
    text, notes, _ = tags.read(text)
    if VARIANTS[style].audio_tag == "AUDCAP":
        found, wanted, formatted = "Audio: …", "<AUDCAP>…<ENDAUDCAP>", _in_tags(text)
    else:
        found, wanted, formatted = "<AUDCAP>…<ENDAUDCAP>", "Audio: …", _after_label(text)
    tags.check_closed(_unescaped(formatted))
    if formatted != text:
        notes = (*notes, f'"{found}" was rewritten as "{wanted}", the form that {style} was trained on.')
    return FormattedPrompt(formatted, notes)


def _in_tags(text: str) -> str:
    """Replace the first "Audio:" outside of speech and descriptions: the rest of the text is the description."""
    opened = ""
    for tag in tags.well_formed(text):
        if not opened and tag[0] == tags.LABEL:
            return f"{text[: tag.start()]}<AUDCAP>{text[tag.end() :].lstrip()}<ENDAUDCAP>"
        if not opened and tag[0] in _CLOSED_BY:
            opened = tag[0]
        elif opened and tag[0] == _CLOSED_BY[opened]:
            opened = ""
    return text


def _after_label(text: str) -> str:
    """Replace each <AUDCAP> and the first <ENDAUDCAP> after it."""
    pieces, at = [], 0
    while (start := text.find(tags.AUDIO, at)) >= 0 and (end := text.find(tags.END_AUDIO, start)) >= 0:
        pieces += [text[at:start], "Audio: ", text[start + len(tags.AUDIO) : end]]
        at = end + len(tags.END_AUDIO)
    return "".join([*pieces, text[at:]])


def doubts(text: str, style: str) -> tuple[str, ...]:
    """Name the tags of a prompt that `format_prompt` does not read, or that stand where Ovi does not expect them."""
    if style == caption.STYLE:
        return caption.read(text).doubts
    if style != AS_WRITTEN:
        return tags.read(text).doubts
    unknown = [
        f'{quoted(tag.written)} stays as written: Ovi knows "{tag.kind}"'
        for tag in tags.find(text)
        if tag.written != tag.kind
    ]
    return tags.few([*unknown, *tags.empty(text)])


def compose(scene: str, speech: str, sound: str, style: str) -> str:
    """Return the prompt alone of `parts.read`."""
    return parts.read(scene, speech, sound, style).text


def speech_seconds(text: str) -> float:
    """Return how long the words between <S> and <E> take, about."""
    return _duration(*_spoken(text))


def speech_note(text: str, frames: int) -> str:
    """Say how long the words between <S> and <E> take, compared with a clip of `frames`."""
    words, characters = _spoken(text)
    spoken, duration = _duration(words, characters), seconds(frames)
    amounts = ((words, "word"), (characters, "character"))
    counts = [f"{count} {unit}{'s' * (count > 1)}" for count, unit in amounts if count]
    note = f"Speech: {' and '.join(counts) or '0 words'}, about {spoken:.1f} s of the clip's {duration:.1f} s"
    return f"{note}: too many, so shorten them or lengthen the clip" if spoken > duration else note


def _duration(words: int, characters: int) -> float:
    return words / WORDS_PER_SECOND + characters / CHARACTERS_PER_SECOND


def _spoken(text: str) -> tuple[int, int]:
    """Count the words between <S> and <E>, and the characters of languages without spaces between words."""
    turns = (turn.partition(tags.END_SPEECH) for turn in text.split(tags.SPEECH)[1:])
    speech, characters = _CHARACTER.subn(" ", " ".join(words for words, end, _ in turns if end))
    return len(re.findall(r"\w\S*", speech)), characters  # a word is anything with a letter or a digit


def clean(text: str) -> str:
    """Undo HTML escapes (twice, as in the Ovi release), straighten curly quotes, compose accents, collapse whitespace.

    The Ovi release also runs ftfy, which repairs wrongly decoded text; this does not.
    """
    check_characters(text)
    words = _unescaped(text).translate(_STRAIGHT_QUOTES).split()
    return " ".join("".join(_composed(word)) for word in words)


def _unescaped(text: str) -> str:
    for _ in range(2):  # Python converts no number of over 4300 digits; none of 7 or more is a character
        text = html.unescape(_HUGE_NUMBER.sub("\ufffd", text))
    return text


def _composed(word: str) -> Iterator[str]:
    """Compose accents in stretches that bound the time, which grows with the square of a run of accents."""
    for start in range(0, len(word), _STRETCH):
        yield unicodedata.normalize("NFC", word[start : start + _STRETCH])
