"""The structured caption that DreamID-Omni (arXiv 2602.12160) reads as its prompt.

It introduces the persons whose references are given, names them from there on, and holds their speech between <S> and
<E>. Image, voice and name of a person have the same number:

    <img1>: A tall man in a raincoat is identified as <sub1>.
    **Overall Environment/Scene**: A pier at dawn.
    **Main Characters/Subjects Appearance**: <sub1> is soaked.
    **Main Characters/Subjects Actions**: <sub1> looks at the sea.
    <sub1> says, <S>You came.<E>

Captions in full also have marks such as [VISUAL_DESCRIPTION_START], and blocks for what the model never reads: as its
authors do, those are deleted.
"""

from __future__ import annotations

import re

from . import tags
from .quote import quoted
from .tags import Reading

STYLE = "dreamid-omni"  # the prompt style
SCENE, LOOKS, ACTIONS = (
    "**Overall Environment/Scene**",
    "**Main Characters/Subjects Appearance**",
    "**Main Characters/Subjects Actions**",
)
NO_AUDIO = f"{STYLE} was trained without descriptions of the audio"

_NEVER_READ = ("SPEAKER_TIMESTAMPS", "AUDIO_DESCRIPTION")
_MARK = re.compile(r"\[[A-Z_]+\]")
_EMPTY_LINES = re.compile(r"\n\s*\n")


def read(text: str) -> Reading:
    """Read the speech tags of a caption as meant, and delete what the model never reads, marks and empty lines.

    Other tags, those of persons among them, stay as written. Raises ValueError for speech that is not closed.
    """
    notes, doubts = [], []
    for block in _NEVER_READ:
        start, end = f"[{block}_START]", f"[{block}_END]"
        rest = _without(text, start, end)
        if rest != text:
            notes.append(f"{start}…{end} was left out: {STYLE} was trained without it")
        if start in rest:
            doubts.append(f"{start} is not closed, so what follows is read: write {start}…{end}")
        text = rest
    reading = tags.read(text, speech_alone=True)
    if marks := list(dict.fromkeys(_MARK.findall(reading.text))):
        some = ", ".join(map(quoted, marks[:2])) + " …" * (len(marks) > 2)
        notes.append(f"Marks were left out, as {STYLE} was trained without them: {some}")
    text = _EMPTY_LINES.sub("\n", _MARK.sub("", reading.text)).strip()
    return Reading(text, (*notes, *reading.notes), (*doubts, *reading.doubts, *_described(text)))


def _without(text: str, start: str, end: str) -> str:
    """Delete each part of a text from `start` to the nearest `end` after it."""
    pieces, at = [], 0
    while (opens := text.find(start, at)) >= 0 and (closes := text.find(end, opens)) >= 0:
        pieces.append(text[at:opens])
        at = closes + len(end)
    return "".join([*pieces, text[at:]])


def _described(text: str) -> list[str]:
    """Return a doubt about the first tag outside of speech that describes the audio to Ovi."""
    speaking = False
    for tag in tags.find(text):
        if tag.kind in (tags.SPEECH, tags.END_SPEECH):
            speaking = tag.kind == tags.SPEECH
        elif tag.kind in (tags.AUDIO, tags.LABEL) and not speaking:
            return [f"{quoted(tag.written)} was read as text: {NO_AUDIO}"]
    return []
