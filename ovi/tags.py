"""The tags of a prompt, read as they were meant.

Ovi knows five: <S> and <E> around speech, <AUDCAP> and <ENDAUDCAP> around the description of the audio, or "Audio:" in
front of it. People write them in many other ways. All else in brackets is text, such as the <img1> of another model.
Every step is linear in the length of the text.
"""

# ruff: noqa: RUF001  brackets, colons and letters that look like ASCII are what this is about

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from .quote import quoted

SPEECH, END_SPEECH, AUDIO, END_AUDIO, LABEL = "<S>", "<E>", "<AUDCAP>", "<ENDAUDCAP>", "Audio:"
_END = "</>"  # closes whatever is open
UNSURE = "?"  # written almost like a tag
_NOTES = 6  # shown at most

_TAG = re.compile(
    r"""(?: \\? (?: (?P<double> [<＜‹⟨] (?=[<＜‹⟨]) )? [<＜‹⟨] | &(?:amp;)?(?i:lt|\#0*60|\#x0*3c);
                  | (?P<square> [\[［【«《〈] ) )
            (?P<name> [^<>＜＞‹›⟨⟩\[\]［］【】«»《》〈〉&\n]{1,24}? )
            \\? (?: [>＞›⟩] (?(double)[>＞›⟩]) | &(?:amp;)?(?i:gt|\#0*62|\#x0*3e); | [\]］】»》〉] ) )
      | (?P<half> [<＜\[] [ ]? (?i: [/\\]? (?:END)? [ _-]? AUDCAP ) \b | \b (?i: (?:END)? [ _-]? AUDCAP ) [>＞\]]
                | [<＜] [ ]? (?i: E | [/\\] [ ]? [SE] ) [ ]? $ )
      | (?P<label> Audio: | \b (?i:Audio) [ ]? [:：]
                 | (?P<stars> \*{1,3} ) (?i:Audio) [ ]? (?: [:：] [ ]? (?P=stars) | (?P=stars) [ ]? [:：] ) )""",
    re.VERBOSE | re.MULTILINE,
)
_SPACE = re.compile(r"\s*")
_QUOTATION = re.compile(r'"[^"\n]*"|“[^“”\n]*”|„[^„“”\n]*[“”]|«[^«»\n]*»|「[^「」\n]*」')
_EMPTY = {
    re.compile(r"<S>\s*<E>"): "There are no words between <S> and <E>: write <S>words<E>",
    re.compile(r"<AUDCAP>\s*<ENDAUDCAP>|Audio:\s*\Z"): "The description of the audio is empty: write one or delete it",
}
_LOOKALIKES = str.maketrans("АСРЕЅΑΡΕасреѕ\\", "ACPESAPEACPES/")  # Cyrillic and Greek


def _misspellings(name: str) -> set[str]:
    """Return what one letter left out, added, changed or swapped with the next makes of a name."""
    cuts = [(name[:i], name[i:]) for i in range(len(name) + 1)]
    letters = string.ascii_uppercase
    return {
        *(a + b[1:] for a, b in cuts if b),
        *(a + c + b[n:] for a, b in cuts for c in letters for n in (0, 1)),
        *(a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1),
    }


def _names() -> dict[str, str]:
    """Return the kind of tag by what stands between the brackets: capitals, without spaces and any of "-_|"."""
    names = {"END": _END, "/": _END}
    for words, start, end in (
        ({"S", "SPEAK"} | _misspellings("SPEECH"), SPEECH, END_SPEECH),
        ({"AUDIO", "AUDIOCAP", "AUDCAPTION", "AUDIOCAPTION"} | _misspellings("AUDCAP"), AUDIO, END_AUDIO),
    ):
        for word in words:
            closing = (f"/{word}", f"END{word}", f"{word}END", f"/END{word}", f"END/{word}", f"END{word}/", f"{word}/")
            names |= {word: start} | dict.fromkeys(closing, end)
    names |= dict.fromkeys(("E", "/E", "E/"), END_SPEECH)
    del names["SEND"]  # a word
    return names | dict.fromkeys(_misspellings("ENDAUDCAP"), END_AUDIO)


_NAMES = _names()


class Tag(NamedTuple):
    """A tag in a text: what is meant (one of the five, "</>" or UNSURE), where it stands, and how it is written."""

    kind: str
    start: int
    end: int
    written: str


class Reading(NamedTuple):
    """A text with the five tags alone, one note on each change, and one on each tag that is not read."""

    text: str
    notes: tuple[str, ...]
    doubts: tuple[str, ...]


def find(text: str) -> list[Tag]:
    """Return all that is written like a tag, in its order."""
    tags: list[Tag] = []
    pair: Tag | None = None  # [S], which is a tag only in front of [E], both without a space between them and the words
    speaking = False
    for match in _TAG.finditer(text):
        tag = Tag(_kind(match, text), *match.span(), match[0])
        if not tag.kind or (match["square"] and not _in_square_brackets(tag)):
            continue
        if match["square"] and tag.kind in (SPEECH, END_SPEECH):
            closes = tag.kind == END_SPEECH and not text[tag.start - 1].isspace() and (pair or speaking)
            if closes and pair:
                tags[-1] = pair
            pair = tag if tag.kind == SPEECH and not text[tag.end : tag.end + 1].isspace() else None
            tags.append(tag if closes else tag._replace(kind=UNSURE))
        else:
            pair = None
            tags.append(tag)
        if tags[-1].kind in (SPEECH, END_SPEECH):
            speaking = tags[-1].kind == SPEECH
    return tags


def _in_square_brackets(tag: Tag) -> bool:
    """Say whether a tag may be meant: [SEND], [/] and [Audio] are as likely keys and labels."""
    if tag.kind in (SPEECH, END_SPEECH):
        return len(tag.written) <= 4  # [S], [E], [/S]
    return tag.kind == UNSURE or "CAP" in tag.written.upper()


def _kind(match: re.Match[str], text: str) -> str:
    written = match[0]
    if match["label"]:
        before = text[max(0, match.start() - 8) : match.start()].rstrip(" \t")
        begins = not before or before[-1] in "\n.!?…>。！？＞"
        return LABEL if begins or written.lstrip("*").startswith("Audio") else ""
    return _meant(match["name"] or written.strip("<＜[>＞]"))


@lru_cache(maxsize=1024)
def _meant(name: str) -> str:
    plain = re.sub(r"[\s_|-]", "", unicodedata.normalize("NFKC", name).translate(_LOOKALIKES).upper())
    return UNSURE if re.fullmatch(r"[SE]\d+", plain) else _NAMES.get(plain, "")


def read(text: str, part: bool = False, speech_alone: bool = False) -> Reading:
    """Read the tags of a prompt, or of a `part` of one; a text with well-formed tags stays as it is.

    Misspelt tags get their right spelling, tags inside others of their kind and doubled ones are left out, and a
    description of the audio that is not closed goes to the end of the text. What is not certain stays and is named in
    the doubts. With `speech_alone`, for a model that reads no description of the audio, the tags of one are text.
    Raises ValueError for speech that is not closed: nobody knows where it ends.
    """
    reader = _Reader(text, part, speech_alone)
    for index in range(len(reader.tags)):
        reader.take(index)
    return reader.finish()


def well_formed(text: str) -> Iterator[re.Match[str]]:
    """Yield each of the five tags in their right spelling, but no "Audio:" in a quotation within a description."""
    return re.finditer("<S>|<E>|<AUDCAP>|<ENDAUDCAP>|Audio:", _without_quoted_labels(text))


def _without_quoted_labels(text: str) -> str:
    """Blank the colon of each "Audio:" in quotation marks where <AUDCAP>…<ENDAUDCAP> describes the audio."""
    start = text.find(AUDIO)
    if start < 0 or text.find(END_AUDIO, start) < 0:
        return text
    return _QUOTATION.sub(lambda m: m[0] if AUDIO in m[0] else re.sub("[:：]", " ", m[0]), text)


def empty(text: str, speech_alone: bool = False) -> list[str]:
    """Return a doubt about speech without words, and one about a description of the audio without any."""
    kinds = list(_EMPTY.items())[: 1 if speech_alone else None]
    return [doubt for pattern, doubt in kinds if pattern.search(text)]


def check_closed(text: str) -> None:
    """Raise ValueError where <S> has no <E> before the next <S>."""
    found = [tag for tag in find(text) if tag.written == tag.kind in (SPEECH, END_SPEECH)]
    for index, tag in enumerate(found):
        if tag.kind == SPEECH and (index + 1 == len(found) or found[index + 1].kind == SPEECH):
            raise ValueError(f"{_where(text, found, index)} is not closed: write <S>words<E>.")


class _Reader:
    """Goes through the tags once, and decides for each what stands in its place."""

    def __init__(self, text: str, part: bool, speech_alone: bool) -> None:
        self.text, self.part, self.tags = text, part, find(_without_quoted_labels(text))
        self.speech_alone = speech_alone
        if speech_alone:
            self.tags = [tag for tag in self.tags if tag.kind not in (AUDIO, END_AUDIO, LABEL)]
        self.instead: dict[int, str] = {}  # by tag: what stands in its place, if not its right spelling
        self.speech: list[int] = []  # tags <S> that are open
        self.audio: int | None = None  # the tag that opened the description of the audio
        self.inside: list[int] = []  # tags <AUDCAP> inside of it that are open
        self.closed: int | None = None  # the last closing tag inside of it
        self.spoken = False  # speech stands in it
        self.descriptions = 0
        self.doubts: list[str] = []
        self.last_end = max((i for i, tag in enumerate(self.tags) if tag.kind == END_AUDIO), default=-1)
        self.begin, self.end = len(text) - len(text.lstrip()), len(text.rstrip())

    def take(self, index: int) -> None:
        """Read one tag."""
        kind = self.tags[index].kind
        if kind == _END:
            kind = END_SPEECH if self.speech else END_AUDIO if self.audio is not None else ""
            self.instead[index] = kind or self.tags[index].written
        if kind == UNSURE:
            self._leave(index)
            self.doubts.append(f"{quoted(self.tags[index].written)} was read as text: write <S>words<E> for speech")
        elif kind == SPEECH:
            self._open_speech(index)
        elif kind == END_SPEECH:
            self._close_speech(index)
        elif kind and self.speech:
            self._leave(index)
            if kind == AUDIO:
                self.doubts.append("A description of the audio stands between <S> and <E>: write it after <E>")
        elif kind == LABEL:
            self._label(index)
        elif kind == AUDIO:
            self._open_audio(index)
        elif kind == END_AUDIO:
            self._close_audio(index)

    def _leave(self, index: int) -> None:
        self.instead[index] = self.tags[index].written

    def _follows(self, index: int, kinds: Iterable[str]) -> bool:
        """Whether nothing but space stands between a tag and the one before it, which is one of `kinds`."""
        return (
            index > 0
            and self.instead.get(index - 1, self.tags[index - 1].kind) in (*kinds, "")
            and not self.text[self.tags[index - 1].end : self.tags[index].start].strip()
        )

    def _open_speech(self, index: int) -> None:
        self.spoken |= self.audio is not None
        if self.speech:
            self.instead[index] = ""
            if self._follows(index, [SPEECH]):
                return
        self.speech.append(index)

    def _close_speech(self, index: int) -> None:
        if self.speech:
            self.speech.pop()
            if self.speech:
                self.instead[index] = ""
        elif self._follows(index, [END_SPEECH]):
            self.instead[index] = ""
        elif self.audio is not None and self.tags[self.audio].kind == AUDIO and index > self.last_end:
            self.instead[index] = END_AUDIO
            self._close_audio(index)
        else:
            self._leave(index)
            self.doubts.append(f"{quoted(self.tags[index].written)} closes no speech: write <S>words<E>")

    def _label(self, index: int) -> None:
        if self.audio is None:
            self.audio, self.inside, self.closed, self.spoken = index, [], None, False
            self.descriptions += 1
        elif self._follows(index, [AUDIO, LABEL]):
            self.instead[index] = ""
        else:
            self._leave(index)  # as in the Ovi release, it is a part of the description
            self.descriptions += self._opener() == LABEL == self.tags[index].written

    def _opener(self) -> str:
        assert self.audio is not None
        return self.instead.get(self.audio, self.tags[self.audio].kind)

    def _open_audio(self, index: int) -> None:
        if self.audio is not None and self._opener() == LABEL and self._follows(index, [LABEL]):
            self.instead[self.audio], self.audio = "", index
        elif self.audio is not None:
            self.instead[index] = ""
            self.inside.append(index)
        else:
            self.audio, self.inside, self.closed, self.spoken = index, [], None, False
            self.descriptions += 1

    def _close_audio(self, index: int) -> None:
        if self.audio is None:
            if self._follows(index, [END_AUDIO]):
                self.instead[index] = ""
            else:
                self._leave(index)
                self.doubts.append(f"{quoted(self.tags[index].written)} closes nothing: write <AUDCAP>…<ENDAUDCAP>")
        elif self.inside:
            self.inside.pop()
            self.instead[index], self.closed = "", index
        else:
            if self._opener() == LABEL:
                self.instead[self.audio] = AUDIO
            self._describe(self.audio, index)
            self.audio = None

    def _describe(self, start: int, end: int) -> None:
        """Check a description from the tag `start` to the tag `end`."""
        first, last = self.tags[start], self.tags[end]
        misspelt = first.written != AUDIO or last.written != END_AUDIO
        if misspelt and not self.part and first.start <= self.begin and last.end >= self.end:
            # The Ovi release reads no small letters. Where they would leave no scene (golden F), this does neither.
            self._leave(start)
            self._leave(end)
            self.descriptions -= 1
            self.doubts.append(
                f"{quoted(first.written)} is not read: the prompt would be the description of the audio alone"
            )
        elif self.spoken:
            self.doubts.append(
                "Speech stands in the description of the audio: write the description at the end of the prompt"
            )

    def _finish_audio(self) -> str:
        """Close the description that is still open; return what to append to the text."""
        assert self.audio is not None
        tag = self.tags[self.audio]
        if self._opener() == LABEL:
            if self.spoken:
                self._describe(self.audio, self.audio)
            return ""
        if self.closed is not None:  # more opening than closing tags
            self.instead[self.closed] = END_AUDIO
            self._describe(self.audio, self.closed)
            return ""
        alone = not self.part and tag.start <= self.begin
        one_paragraph = all(line.strip() for line in self.text[tag.end :].strip().split("\n"))
        if self.spoken or alone or not one_paragraph:
            self._leave(self.audio)
            self.doubts.append(f"{quoted(tag.written)} is not closed: write <AUDCAP>…<ENDAUDCAP>")
            return ""
        return END_AUDIO

    def finish(self) -> Reading:
        """Return the text with the changes, and what there is to say about them."""
        if self.speech:
            raise ValueError(f"{_where(self.text, self.tags, self.speech[0])} is not closed: write <S>words<E>.")
        appended = self._finish_audio() if self.audio is not None else ""
        pieces, at = [], 0
        changes: dict[tuple[str, str], str] = {}
        for index, tag in enumerate(self.tags):
            right = self.instead.get(index, tag.kind)
            pieces += [self.text[at : tag.start], right]
            at = tag.end
            if tag.kind == LABEL and right in ("", AUDIO):
                at = _SPACE.match(self.text, at).end()  # type: ignore[union-attr]  # it matches everywhere
            if right != tag.written and (tag.written, right) not in changes:
                done = f'read as "{right}"' if right else "left out: it stands inside or beside another such tag"
                changes[tag.written, right] = f"{quoted(tag.written)} was {done}"
        notes = list(changes.values())
        if appended:
            notes.append("<AUDCAP> was not closed: the description of the audio was read to the end")
        if self.descriptions > 1:
            self.doubts.append(f"The prompt has {self.descriptions} descriptions of the audio: Ovi was trained on one")
        text = "".join([*pieces, self.text[at:], appended])
        return Reading(text, few(notes), few([*self.doubts, *empty(text, self.speech_alone)]))


def _where(text: str, tags: list[Tag], index: int) -> str:
    tag = tags[index]
    end = next((t.start for t in tags[index + 1 :] if t.kind == SPEECH), len(text))
    if words := text[tag.end : end].strip():
        return f"The speech tag before {quoted(words)}"
    if words := text[max(0, tag.start - 40) : tag.start].strip():
        return f"The speech tag after {quoted(words)}"
    return f"The speech tag {quoted(tag.written)}"


def few(notes: Iterable[str]) -> tuple[str, ...]:
    """Return each note once, and only the first ones of many."""
    different = list(dict.fromkeys(notes))
    more = len(different) - _NOTES
    return (*different[:_NOTES], f"… and {more} more") if more > 0 else tuple(different)
