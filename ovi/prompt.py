"""Prompts as the published checkpoints were trained to read them.

Words between <S> and <E> are spoken. The sound is described between <AUDCAP> and <ENDAUDCAP> for the checkpoint
720x720_5s, and after "Audio:" at the end of the prompt for the 960x960 ones.
"""

from __future__ import annotations

import html
import re
import unicodedata
from typing import NamedTuple

from .geometry import VARIANTS

AS_WRITTEN = "as written"
STYLES = (*VARIANTS, AS_WRITTEN)

# The published negative prompts, one for each tower.
VIDEO_NEGATIVE = "jitter, bad hands, blur, distortion"
AUDIO_NEGATIVE = "robotic, muffled, echo, distorted"

_CURLY_SINGLE, _CURLY_DOUBLE = "\u02bc\u2018\u2019\u201a\u201b", "\u201c\u201d\u201e\u201f"
_STRAIGHT_QUOTES = str.maketrans(dict.fromkeys(_CURLY_SINGLE, "'") | dict.fromkeys(_CURLY_DOUBLE, '"'))


class FormattedPrompt(NamedTuple):
    """A prompt for the text encoder, and one sentence about each thing that was changed in it."""

    text: str
    notes: tuple[str, ...]


def format_prompt(text: str, style: str) -> FormattedPrompt:
    """Rewrite the description of the sound for the checkpoint `style`, by the published rules; "as written" keeps it.

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
    return FormattedPrompt(formatted, (f'"{found}" was rewritten as "{wanted}", which {style} was trained on.',))


def clean(text: str) -> str:
    """Undo HTML escapes (twice, as published), straighten curly quotes, compose accents and collapse whitespace.

    The published text encoder runs ftfy, which also repairs wrongly decoded text; that is not done here.
    """
    text = html.unescape(html.unescape(text)).translate(_STRAIGHT_QUOTES)
    return " ".join(unicodedata.normalize("NFC", text).split())
