"""The parts of a prompt (scene, speech, sound) put together, however they were written or pasted.

Each part may hold tags of its own. The prompt gets one description of the audio, at its end and without speech in it.
DreamID-Omni's has none, and more parts: persons, their looks and their actions (see `caption`).
"""

# ruff: noqa: RUF001  full-width colons and commas are meant

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from . import caption, tags
from .geometry import VARIANTS
from .quote import check_characters, quoted
from .tags import AUDIO, END_AUDIO, END_SPEECH, LABEL, SPEECH, Reading

STYLES = (*VARIANTS, caption.STYLE)  # forms that a prompt is composed in: the checkpoints'

VERBS = (
    r"(?<!\bwho )(?<!\bthat )\b(?:says?|said|speaks|spoke|asks?|asked|answers|answered|replies|replied|whispers?|"
    "whispered|shouts?|shouted|yells?|yelled|screams?|screamed|cries|cried|calls|called|murmurs?|murmured|mutters?|muttered|"
    "mumbles|mumbled|exclaims|exclaimed|adds|added|continues|continued|sings|sang|sagt|fragt|ruft|dit|dice|diz|говорит)"
)
_SAYS = re.compile(rf"{VERBS}(?:\s+\S+){{0,3}}$|[说說问問喊]$")  # at the end of who speaks
_SAYS_COMMA = re.compile(rf"(?:[^:：,，]|(?<=\d)[:：](?=\d))*(?:{VERBS}|[说說问問喊])\s*[,，]")
_OPENING, _CLOSING = "\"“„”«「『'‘", "\"”“»」』'’"
_QUOTED = re.compile(r'([^"“„”«»「」『』]*)["“„”«「『]([^"“„”«»「」『』]+)["”“»」』]\s*[.]?')
_COLON = re.compile(r"[:：](?!//|(?<=\d[:：])\d)")  # after a speaker: neither in 10:30 nor in http://
_TIME = r"(?:\d{1,2}:)?\d{1,2}:\d{2}(?:[.,:;]\d{1,3})?(?!\w)"
_SPAN = rf"{_TIME}(?:\s*(?:-->|[-–—])\s*{_TIME})?"
_LEADING_TIME = re.compile(rf"\s*(?:\[{_SPAN}\]|\({_SPAN}\)|{_SPAN})[\s:：,，–—-]*")
_CUE = re.compile(rf"^(?:[^\S\n]*\d+[^\S\n]*\n)?[^\S\n]*{_TIME}[^\S\n]*-->[^\S\n]*{_TIME}[^\S\n]*$", re.MULTILINE)
_IDENTIFIED = re.compile(r"(?:,| is) identified as <sub\d+>\.?$")  # at the end of a person's line in a caption
BULLET = re.compile(r"\s*(?:[-–•*]|\d+[.)])\s+")  # of a list
_IN_WORD = r"[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]"  # a letter of a language with spaces between words
_STARS = re.compile(r"\s*(?:[-–•*]\s+)?(\*{1,3})(?=[^\s*])([^*]+)\1")  # Markdown at the beginning of a line


class _Turn(NamedTuple):
    text: str  # in the form of a prompt
    heard: list[str]  # descriptions of the audio that stood in the line
    notes: list[str]


def read(
    scene: str, speech: str, sound: str, style: str, persons: str = "", looks: str = "", actions: str = ""
) -> Reading:
    """Compose a prompt in the form that the checkpoint `style` was trained on.

    `speech` has one line per turn, "speaker: words", which becomes "speaker says, <S>words<E>"; lines in that form,
    with "says" or with quotation marks are taken, too. Empty parts and lines are skipped. Descriptions of the audio in
    `scene` and `speech` go in front of `sound`.

    The style "dreamid-omni" has no description of the audio. `persons` has one line for each, "name: description", in
    the order of their references; a name becomes <sub1>, <sub2> and so on in all but the spoken words. `looks` and
    `actions` are theirs. Other styles do not have these three.

    Raises ValueError for a line without a speaker or without words, a person without name or description or with
    another's name, and for speech that is not closed or that stands in a description of the audio.
    """
    for part in (scene, speech, sound, persons, looks, actions):
        check_characters(part)
    if style == caption.STYLE:
        return _read_caption(_names(persons), scene, looks, actions, speech, sound)
    in_scene = tags.read(scene, part=True)
    seen, heard = _without_audio(in_scene.text, "scene")
    notes = list(in_scene.notes)
    if heard:
        notes.append("The description of the audio in the scene was put at the end of the prompt")
    said, of_speech, heard_in_speech = _read_speech(speech)
    notes += of_speech
    if heard_in_speech:
        notes.append("The description of the audio in the speech was put at the end of the prompt")
        heard += heard_in_speech
    in_sound, of_sound = _read_sound(sound)
    text = " ".join(filter(None, [seen, *said]))
    if description := " ".join(filter(None, [*heard, in_sound])):
        form = "<AUDCAP>{}<ENDAUDCAP>" if VARIANTS[style].audio_tag == "AUDCAP" else "Audio: {}"
        text = f"{text}\n\n{form.format(description)}".lstrip()
    doubts = tags.read(text).doubts
    if any(map(str.strip, (persons, looks, actions))):
        doubts = (*doubts, f"Persons, looks and actions are not read: only {caption.STYLE} has them")
    return Reading(text, tags.few([*notes, *of_sound]), doubts)


def _read_speech(speech: str) -> tuple[list[str], list[str], list[str]]:
    """Return the turns in the form of a prompt, notes, and the descriptions of the audio that stood among them."""
    said: list[str] = []
    notes: list[str] = []
    heard: list[str] = []
    speech, cues = _CUE.subn("", speech)
    if cues:
        notes.append("The time codes of subtitles in the speech were left out")
    for line in _lines(speech):
        turn = _read_turn(line)
        said.append(turn.text)
        notes += turn.notes
        heard += turn.heard
    return said, notes, heard


def _names(persons: str) -> dict[str, str]:
    """Return the description of each person by name, from lines "name: description" or of a caption."""
    found: dict[str, str] = {}
    for written in filter(str.strip, persons.splitlines()):
        line = written
        for pattern, kept in ((BULLET, ""), (_STARS, r"\2")):
            if match := pattern.match(line):
                line = match.expand(kept) + line[match.end() :]
        colon = _COLON.search(line)
        name, who = (line[: colon.start()].strip(), line[colon.end() :].strip()) if colon else ("", "")
        who = _IDENTIFIED.sub("", who).rstrip(".")
        if not name or not who:
            raise ValueError(
                f'The person {quoted(written.strip())} has no name or no description: write "name: description".'
            )
        if name in found:
            raise ValueError(f"Two persons are called {quoted(name)}: give each a name of its own.")
        found[name] = who
    return found


def _read_caption(persons: dict[str, str], scene: str, looks: str, actions: str, speech: str, sound: str) -> Reading:
    """Compose a prompt in DreamID-Omni's form: one line for each person and part, then the speech."""
    notes: list[str] = []
    described = bool(sound.strip())
    lines = [
        f"<img{j}>: {_with_numbers(who, persons)} is identified as <sub{j}>."
        for j, who in enumerate(persons.values(), 1)
    ]
    for what, title, part in (
        ("scene", caption.SCENE, scene),
        ("looks", caption.LOOKS, looks),
        ("actions", caption.ACTIONS, actions),
    ):
        reading = tags.read(part, part=True)
        seen, heard = _without_audio(reading.text, what)
        notes += reading.notes
        described |= bool(heard)
        if seen := " ".join(_with_numbers(seen, persons).split()):
            lines.append(seen if seen.startswith("**") else f"{title}: {seen}")
    said, of_speech, heard = _read_speech(speech)
    notes += of_speech
    if described or heard:
        notes.append(f"The description of the audio was left out: {caption.NO_AUDIO}")
    if turns := " ".join(filter(None, said)):
        lines.append(_with_numbers(turns, persons))
    text = "\n".join(lines)
    return Reading(text, tags.few(notes), caption.read(text).doubts)


def _with_numbers(text: str, persons: Iterable[str]) -> str:
    """Write <sub1>, <sub2>, ... for the names of persons, but not between <S> and <E>."""
    numbers = {name: f"<sub{j}>" for j, name in enumerate(persons, 1)}
    if not numbers:
        return text
    longest_first = sorted(map(re.escape, numbers), key=len, reverse=True)
    pattern = re.compile(
        rf"{SPEECH}.*?{END_SPEECH}|(?<!{_IN_WORD})(?:{'|'.join(longest_first)})(?!{_IN_WORD})", re.DOTALL
    )
    return pattern.sub(lambda found: numbers.get(found[0], found[0]), text)


def _without_audio(text: str, part: str) -> tuple[str, list[str]]:
    """Take the descriptions of the audio out of a text whose tags were read; return the rest, and them."""
    seen, heard, at = [], [], 0
    speaking, opened = False, ""
    for tag in tags.well_formed(text):
        if speaking and tag[0] in (AUDIO, END_AUDIO):
            raise ValueError(
                f"A description of the audio stands between <S> and <E> in the {part}: write it after <E>."
            )
        if opened and tag[0] in (SPEECH, END_SPEECH):
            raise ValueError(f"Speech stands in the description of the audio in the {part}: write it before that.")
        if tag[0] in (SPEECH, END_SPEECH):
            speaking = tag[0] == SPEECH
        elif opened == AUDIO and tag[0] == END_AUDIO:
            heard.append(text[at : tag.start()].strip())
            opened, at = "", tag.end()
        elif not opened and not speaking and tag[0] == END_AUDIO:
            raise ValueError(f"<ENDAUDCAP> closes nothing in the {part}: write <AUDCAP>description<ENDAUDCAP>.")
        elif not opened and not speaking:
            seen.append(text[at : tag.start()].strip())
            opened, at = tag[0], tag.end()
    if opened == AUDIO:
        raise ValueError(f"<AUDCAP> is not closed in the {part}: write <AUDCAP>description<ENDAUDCAP>.")
    (heard if opened else seen).append(text[at:].strip())
    return " ".join(filter(None, seen)), list(filter(None, heard))


def _lines(speech: str) -> list[str]:
    """Split speech into lines, but not between <S> and <E>, unless another turn begins there."""
    lines: list[list[str]] = []
    speaking = 0
    for line in filter(str.strip, speech.splitlines()):
        found = tags.find(line)
        begins = any(tag.kind != END_SPEECH for tag in found) or _COLON.search(line) or _SAYS_COMMA.match(line)
        if speaking and not begins:
            lines[-1].append(line)
        else:
            lines.append([line])
            speaking = 0
        for tag in found:
            speaking += {SPEECH: 1, END_SPEECH: -1}.get(tag.kind, 0)
        speaking = max(0, speaking)
    return [" ".join(parts) for parts in lines]


def _read_turn(line: str) -> _Turn:
    plain_line = line
    for pattern, kept in ((_STARS, r"\2"), (_LEADING_TIME, ""), (_STARS, r"\2")):
        if match := pattern.match(plain_line):
            plain_line = match.expand(kept) + plain_line[match.end() :]
    if not plain_line:
        return _Turn("", [], [f"{quoted(line)} in the speech was left out: it is a time code"])
    closed = _close(plain_line)
    reading = tags.read(closed, part=True)
    text, heard = _without_audio(reading.text, "speech")
    notes = list(reading.notes)
    if not text:
        return _Turn("", heard, notes)
    turn, plain = _turn(text, line)
    if closed != line or not plain:
        notes.append(f"{quoted(line)} was read as {quoted(turn, 60)}")
    return _Turn(turn, heard, notes)


def _close(line: str) -> str:
    """Leave out each <E> of a line that closes nothing; close what is open at its end, or where the audio begins."""
    pieces: list[str] = []
    at = depth = 0
    audio: int | None = None  # the piece in front of which the audio begins
    for tag in tags.find(line):
        pieces.append(line[at : tag.start])
        at = tag.end
        if tag.kind == SPEECH:
            depth, audio = depth + 1, None
        elif tag.kind in (AUDIO, LABEL) and audio is None and depth:
            audio = len(pieces)
        if tag.kind == END_SPEECH and not depth:
            continue
        depth -= tag.kind in (END_SPEECH, "</>") and depth > 0
        pieces.append(tag.written)
    pieces.append(line[at:])
    end = len(pieces) if audio is None else audio
    spoken = "".join(pieces[:end])
    return (spoken.rstrip() if depth else spoken) + END_SPEECH * depth + "".join(pieces[end:])


def _turn(line: str, written: str) -> tuple[str, bool]:
    """Write one turn in the form of a prompt; say whether the line was plain: "speaker: words" or in that form.

    `written` is the line as the user wrote it, for the error.
    """
    head, tag, rest = line.partition(SPEECH)
    if tag:
        who, words = head.strip(), rest.partition(END_SPEECH)[0].strip()
        if who.strip(":：,， ") and words:
            return (f"{_says(who)} {SPEECH}{rest}", False) if who[-1] in ":：" else (line, True)
        raise _no_turn(written)
    if (match := _QUOTED.fullmatch(line)) and not _COLON.search(match[1].rstrip()[:-1]):
        who, words = match[1].strip(), match[2].strip()
        if who and words and (who[-1] in ":：,，" or _SAYS.search(who)):
            return f"{_says(who)} {SPEECH}{words}{END_SPEECH}", False
    if match := _SAYS_COMMA.match(line):
        who, words = match[0], line[match.end() :].strip()
        if words:
            return f"{_says(who)} {SPEECH}{_unquoted(words)}{END_SPEECH}", False
    colon = _COLON.search(line)
    who, words = (line[: colon.start()].strip(), line[colon.end() :].strip()) if colon else ("", "")
    if not who or not words:
        raise _no_turn(written)
    bare = _unquoted(words)
    return f"{_says(who + ':')} {SPEECH}{bare}{END_SPEECH}", bare == words and not _SAYS.search(who)


def _no_turn(line: str) -> ValueError:
    return ValueError(f'The speech line {quoted(line)} has no speaker or no words: write "speaker: words".')


def _says(who: str) -> str:
    """Write "Anna:", "Anna says:" and "Anna says" as "Anna says,"; a comma stays as it is."""
    name = who.rstrip(":：,， ")
    return f"{name}," if who[-1] in ",，" or _SAYS.search(name) else f"{name} says,"


def _unquoted(words: str) -> str:
    inside = words[1:-1].strip()
    pair = len(words) > 2 and words[0] in _OPENING and words[-1] in _CLOSING
    return inside if pair and inside and not re.search('["“„”«»「」『』]', inside) else words


def _read_sound(sound: str) -> tuple[str, list[str]]:
    """Leave the tags out of the description of the audio: they are written anew."""
    pieces, notes, at = [], [], 0
    for tag in tags.find(sound):
        if tag.kind == SPEECH:
            raise ValueError(
                f"The sound holds a speech tag, {quoted(tag.written)}: write what is said into the speech."
            )
        pieces.append(sound[at : tag.start].strip())
        notes.append(
            f"{quoted(tag.written)} in the sound was left out: the tags of the description are written for you"
        )
        at = tag.end
    pieces.append(sound[at:].strip())
    return " ".join(filter(None, pieces)), notes
