"""Quotations in prose, read as speech: `She says, "Hello"` becomes `She says, <S>Hello<E>`."""

# ruff: noqa: RUF001  full-width colons and commas are meant

from __future__ import annotations

import re

from . import tags
from .parts import VERBS
from .quote import quoted
from .tags import Reading

_OPEN, _CLOSE = '["“„«「『]', '["”“»」』]'
_QUOTED = r"(?P<words>[^\"“„”«»「」『』<>\n]+)"
_WORDS = _OPEN + _QUOTED + _CLOSE
_SINGLE = r"(?<!\w)[‘'](?P<single>(?:[^‘’'<>\n]|['’](?=\w))+)['’](?!\w)"
_SAID = rf"(?P<who>{VERBS}(?:\s+[^\s\"“„«「『<>.!?]+){{0,8}}?\s*[,:]?|[说說问問喊道]\s*[,，:：]?)"
_FORMS = (
    re.compile(rf"^[ \t]*(?P<name>[^\W\d_][^:：\n\"“„«<]{{0,40}})[:：]\s*{_WORDS}", re.MULTILINE),  # Anna: "Hello"
    re.compile(rf"{_SAID}\s*{_WORDS}"),  # says softly, "Hello"
    re.compile(rf"(?P<who>{VERBS}(?:\s+[^\s\"“<>.!?']+){{0,8}}?[,:])\s*{_SINGLE}"),  # says, 'Hello'
    re.compile(  # "Hello," she says
        rf"{_OPEN}{_QUOTED}(?<=[,.!?…]){_CLOSE}(?=\s*(?:[^\s.!?\"“<>]+\s+){{0,4}}?{VERBS})"
    ),
)
_NOT_PROSE = re.compile(r"(<S>.*?<E>|<AUDCAP>.*?(?:<ENDAUDCAP>|\Z)|Audio:.*)", re.DOTALL)
_SPOKEN = re.compile(r"<S>(.*?)<E>", re.DOTALL)
_QUOTATION = re.compile(_WORDS)
_LINE = re.compile(r"^(?!Audio[:：])[^\W\d_]\S*(?: \S+){0,3}?[:：] +\S.*$", re.MULTILINE)  # Anna: Hello


def read(text: str, said: str = "") -> Reading:
    """Put the speech tags around quotations that somebody says, but for those that the lines of `said` hold.

    One note for each. Raises ValueError for speech that is not closed.
    """
    reading = tags.read(text, part=True)
    notes = list(reading.notes)
    lines = [_plain(re.split("[:：]", line, maxsplit=1)[-1]) for line in said.splitlines()]

    def tagged(match: re.Match[str]) -> str:
        found = match.groupdict()
        words = (found.get("words") or found["single"]).strip()
        if _among(words, lines):
            return match[0]
        notes.append(f"{quoted(words)} was read as speech")
        who = f"{found['name'].strip()} says" if found.get("name") else (found.get("who") or "").rstrip(" ,:，：")
        return f"{who}, <S>{words}<E>" if who else f"<S>{words}<E>"

    pieces = _NOT_PROSE.split(reading.text)
    for form in _FORMS:
        pieces[::2] = [form.sub(tagged, piece) for piece in pieces[::2]]
    return Reading("".join(pieces), tuple(notes), reading.doubts)


def missed(text: str) -> tuple[str, ...]:
    """Name what may be speech outside of <S> and <E>: quotations of two words or more, and lines "speaker: words"."""
    turns = list(map(_plain, _SPOKEN.findall(text)))
    prose = _SPOKEN.sub(" ", text)
    found = [match["words"] for match in _QUOTATION.finditer(prose)]
    found = [words for words in found if re.search(r"\w\W+\w|[\u3040-\u9fff]{2}", words)]
    found += [line for line in _LINE.findall(prose) if not _QUOTATION.search(line)]
    return tuple(
        f"{quoted(words)} was not read as speech: spoken words stand between <S> and <E>"
        for words in dict.fromkeys(found)
        if not _among(words, turns)
    )


def repeats(line: str, text: str) -> bool:
    """Say whether the words of a line "speaker: words" stand between <S> and <E> in a text."""
    words = _plain(re.split("[:：]", line, maxsplit=1)[-1])
    return bool(words) and words in map(_plain, _SPOKEN.findall(text))


def _among(words: str, turns: list[str]) -> bool:
    """Say whether words are one of the turns, or two words or more a part of one."""
    plain = _plain(words)
    return plain in turns or (" " in plain and any(f" {plain} " in f" {turn} " for turn in turns))


def _plain(text: str) -> str:
    """Return the words alone, in small letters."""
    return " ".join(re.findall(r"\w+", text.casefold()))
