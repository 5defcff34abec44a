"""Prompts in the form that the released checkpoints were trained on.

Words between <S> and <E> are spoken. The audio is described between <AUDCAP> and <ENDAUDCAP> for the checkpoint
720x720_5s, and after "Audio:" at the end of the prompt for the 960x960 ones.
"""

from __future__ import annotations

import html
import re
import unicodedata
from typing import NamedTuple

from .geometry import VARIANTS, seconds

AS_WRITTEN = "as written"
STYLES = (*VARIANTS, AS_WRITTEN)

# Estimates, not Ovi's: 150 words a minute is usual for English speech, 240 characters a minute for Chinese.
WORDS_PER_SECOND = 2.5
CHARACTERS_PER_SECOND = 4.0
_CHARACTER = re.compile("[\u3040-\u30ff\u3400-\u9fff]")  # Chinese and Japanese, which have no spaces between words

# The Ovi release's negative prompts, one for each tower.
VIDEO_NEGATIVE = "jitter, bad hands, blur, distortion"
AUDIO_NEGATIVE = "robotic, muffled, echo, distorted"

_CURLY_SINGLE, _CURLY_DOUBLE = "\u02bc\u2018\u2019\u201a\u201b", "\u201c\u201d\u201e\u201f"
_STRAIGHT_QUOTES = str.maketrans(dict.fromkeys(_CURLY_SINGLE, "'") | dict.fromkeys(_CURLY_DOUBLE, '"'))


class FormattedPrompt(NamedTuple):
    """A prompt for the text encoder, and one note on each change that was made to it."""

    text: str
    notes: tuple[str, ...]


def format_prompt(text: str, style: str) -> FormattedPrompt:
    """Rewrite the description of the audio for the checkpoint `style`, by the Ovi release's rules.

    The style "as written" changes nothing.

    Raises ValueError where a speech tag <S> is not closed, in any style.
    """
    for speech in text.split("<S>")[1:]:
        if "<E>" not in speech:
            raise ValueError(f'The speech tag before "{speech.strip()[:40]}" is not closed: write <S>words<E>.')
    if style == AS_WRITTEN:
        return FormattedPrompt(text, ())
    if VARIANTS[style].audio_tag == "AUDCAP":
        found, wanted = "Audio: …", "<AUDCAP>…<ENDAUDCAP>"
        formatted = re.sub(r"Audio:\s*(.*)", r"<AUDCAP>\1<ENDAUDCAP>", text, flags=re.DOTALL)
    else:
        found, wanted = "<AUDCAP>…<ENDAUDCAP>", "Audio: …"
        formatted = re.sub(r"<AUDCAP>(.*?)<ENDAUDCAP>", r"Audio: \1", text, flags=re.DOTALL)
    if formatted == text:
        return FormattedPrompt(text, ())
    return FormattedPrompt(
        formatted, (f'"{found}" was rewritten as "{wanted}", the form that {style} was trained on.',)
    )


def compose(scene: str, speech: str, sound: str, style: str) -> str:
    """Compose a prompt in the form that the checkpoint `style` was trained on.

    `speech` has one line per turn, "speaker: words", which becomes "speaker says, <S>words<E>". Empty lines are
    skipped, and so is an empty `scene` or `sound`. Raises ValueError for a line without a speaker or without words.
    """
    turns = [_turn(line) for line in speech.splitlines() if line.strip()]
    seen_and_said = " ".join(filter(None, [scene.strip(), *turns]))
    if not sound.strip():
        return seen_and_said
    tags = "<AUDCAP>{}<ENDAUDCAP>" if VARIANTS[style].audio_tag == "AUDCAP" else "Audio: {}"
    return f"{seen_and_said}\n\n{tags.format(sound.strip())}".lstrip()


def _turn(line: str) -> str:
    line = re.sub("[:\uff1a]", ":", line, count=1)  # U+FF1A: the full-width colon
    who, _, words = (part.strip() for part in line.partition(":"))
    if not who or not words:
        raise ValueError(f'The speech line "{line.strip()[:40]}" has no speaker or no words: write "speaker: words".')
    return f"{who} says, <S>{words}<E>"


def speech_note(text: str, frames: int) -> str:
    """Say how long the words between <S> and <E> take, compared with a clip of `frames`."""
    speech, characters = _CHARACTER.subn(" ", " ".join(re.findall("<S>(.*?)<E>", text, flags=re.DOTALL)))
    words = len(re.findall(r"\w\S*", speech))  # anything with a letter or a digit
    spoken, clip = words / WORDS_PER_SECOND + characters / CHARACTERS_PER_SECOND, seconds(frames)
    amounts = ((words, "word"), (characters, "character"))
    counts = [f"{count} {unit}{'s' * (count > 1)}" for count, unit in amounts if count]
    note = f"Speech: {' and '.join(counts) or '0 words'}, about {spoken:.1f} s of the clip's {clip:.1f} s"
    return f"{note}: too many, so shorten them or lengthen the clip" if spoken > clip else note


def clean(text: str) -> str:
    """Undo HTML escapes (twice, as in the Ovi release), straighten curly quotes, compose accents, collapse whitespace.

    The Ovi release also runs ftfy, which repairs wrongly decoded text; this does not.
    """
    text = html.unescape(html.unescape(text)).translate(_STRAIGHT_QUOTES)
    return " ".join(unicodedata.normalize("NFC", text).split())
