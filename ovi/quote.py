"""Text of users in messages, in a form that every log and terminal can print.

ComfyUI's worker thread dies when its log cannot print an error. So whatever comes from a user or a file (a prompt, a
file's name, a value in it) goes into a message through `quoted`, and into a note through `printable`.
"""

from __future__ import annotations

import re
import sys
import unicodedata

_SHOWN = 40  # characters of a text in a message
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control and direction marks, half characters, separators of lines
_HALF = re.compile("[\ud800-\udfff]")
_JOINERS = "\u200c\u200d"  # in the spelling of Persian and of emoji


def printable(text: str) -> str:
    """Escape control characters, line breaks and half characters (lone surrogates, such as half an emoji)."""
    if text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _UNSEEN and c not in _JOINERS else c
        for c in text
    )


def quoted(value: object, shown: int = _SHOWN) -> str:
    """Quote the first `shown` characters of a value, with escapes for all that the log's encoding cannot print."""
    text = printable(str(value).strip()[:shown])
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    return f'"{text.encode(encoding, "backslashreplace").decode(encoding)}"'


def check_characters(text: str) -> None:
    """Refuse half characters (lone surrogates), which no tokeniser can read, with a ValueError."""
    if half := _HALF.search(text):
        near = quoted(text[max(0, half.start() - 20) : half.end()])
        raise ValueError(
            f"The text has half a character at {near}, such as half an emoji: delete it and type it again."
        )
