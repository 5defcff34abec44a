"""Texts that lines of hyphens divide: storyboards and timelines.

A line of three or more hyphens, or dashes, opens a part, and may say more: "--- continue 5s". What follows, up to the
next such line, is the part's text. Text in front of the first such line is a part of its own, and the text below "---
all" is put in front of every part's. Lines are counted from 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from .quote import quoted

MOST_PROBLEMS = 5  # that one error names
ALL = "all"
SECONDS = r"(\d{1,9}(?:[.,]\d{1,9})?)(?:s|secs?|seconds?)"  # see `number`

_DASHES = "-\u2010-\u2015\u2212"  # of a class of characters: text programs turn hyphens into dashes
_OPENS = re.compile(rf"\s*(?:[{_DASHES}]{{3,}}|\u2014-)(?P<options>.*)")
_SPACED = re.compile(r" ?= ?|(?<=\d) (?=(?:s|secs?|seconds?|f|frames?)\b)", re.IGNORECASE)


class Form(NamedTuple):
    """What the parts of a kind of text are called, and the options that a line may have.

    Each option is a regular expression, whose first group is its value.
    """

    part: str
    options: Mapping[str, re.Pattern[str]]
    known: str  # what there is to write, for the error
    words: str  # which open a part, separated by |

    @classmethod
    def of(cls, part: str, options: Mapping[str, str], known: str, words: str) -> Form:
        """Return a form with these options and "all"."""
        patterns = {kind: re.compile(option, re.IGNORECASE) for kind, option in {**options, ALL: f"({ALL})"}.items()}
        return cls(part, patterns, f"{known} (or all alone, for text that every {part} has)", f"{words}|{ALL}")


class Part(NamedTuple):
    """A part: the line that opens it, what that says, and the text below."""

    line: int
    options: Mapping[str, str]
    text: str


def divided(text: str, form: Form, problems: list[str]) -> tuple[list[Part], str]:
    """Return the parts of a text, and the text that is put in front of each.

    Unknown, contradictory and repeated options are appended to `problems`.
    """
    parts: list[Part] = []
    common = ""
    for line, written, words in _parts(text):
        with collected(problems, line):
            options = _options(written, form)
            if ALL not in options:
                parts.append(Part(line, options, words))
            elif len(options) > 1 or common:
                raise ValueError(f'"all" stands alone, and once: its text is put in front of every {form.part}')
            else:
                common = words
    return parts, common


def number(written: str) -> float:
    """Return a number that may have a comma for its point."""
    return float(written.replace(",", "."))


def refuse(problems: list[str]) -> None:
    """Raise ValueError, one line for each, where there are problems."""
    if problems:
        more = len(problems) - MOST_PROBLEMS
        raise ValueError("\n".join(problems[:MOST_PROBLEMS] + [f"… and {more} more"] * (more > 0)))


@contextmanager
def collected(problems: list[str], line: int) -> Iterator[None]:
    """Append what the block refuses to `problems`, with the line that it is about."""
    try:
        yield
    except ValueError as refusal:
        problems.append(f"Line {line}: {str(refusal).rstrip('.')}.")


def almost_opens(text: str, form: Form) -> list[str]:
    """Say which lines of a part look as if they were meant to open one."""
    almost = re.compile(rf"\s*[{_DASHES}]{{1,2}}\s*(?:{form.words})\b.*", re.IGNORECASE)
    lines = filter(almost.fullmatch, text.splitlines())
    return [
        f"{quoted(line.strip())} is read as text of this {form.part}: a line of three hyphens opens one"
        for line in lines
    ]


def _parts(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line that opens each part, its options as written, and the text below it."""
    first, options, words = 1, "", list[str]()
    opened = False
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")  # as editors count them
    for at, line in enumerate(lines, start=1):
        if match := _OPENS.fullmatch(line):
            if opened or any(map(str.strip, words)):
                yield first, options, "\n".join(words).strip()
            first, options, words, opened = at, match["options"], [], True
        else:
            words.append(line)
    if opened or any(map(str.strip, words)):
        yield first, options, "\n".join(words).strip()


def _options(written: str, form: Form) -> dict[str, str]:
    found: dict[str, str] = {}
    tight = _SPACED.sub(lambda match: "=" if "=" in match[0] else "", " ".join(written.split()))
    for each in re.split(r"[ ;]|,(?!\d)|(?<!\d),", tight):
        word = re.sub(f"[{_DASHES}]+$", "", each)  # a line may end with dashes, too
        if not word:
            continue
        for kind, pattern in form.options.items():
            if match := pattern.fullmatch(word):
                if kind in found:
                    raise ValueError(f'"{word}" says once more what "{found[kind]}" says: leave one of them out')
                found[kind] = match[1].lower()
                break
        else:
            raise ValueError(f"{quoted(word)} is no option of a {form.part}: {form.known}")
    return found
