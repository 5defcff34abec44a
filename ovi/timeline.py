"""A timeline: one text for a clip whose prompt changes over time.

A line such as "--- from 5s" opens a stretch, whose prompt is below it (see `lines`). It lasts until the
next one begins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from . import lines, prompt

FORM = lines.Form.of(
    part="stretch", options={"from": r"(from|at)", "seconds": lines.SECONDS}, known="write from 5s", words="from|at"
)


@dataclass(frozen=True)
class Stretch:
    """A part of a clip with a prompt of its own, between two times in seconds; the last one has no end."""

    line: int
    prompt: str
    start: float
    end: float = math.inf


class Timeline(NamedTuple):
    """The stretches of a clip, without a gap between them, and what there is to say about their prompts."""

    stretches: tuple[Stretch, ...]
    notes: tuple[str, ...]

    @property
    def summary(self) -> str:
        """How many prompts there are, and when each begins."""
        count = len(self.stretches)
        return f"{count} prompt{'s' * (count > 1)}, from {', '.join(f'{each.start:g}' for each in self.stretches)} s"


def read(text: str, style: str) -> Timeline:
    """Read a timeline of prompts of a `style`; text in front of the first line begins at 0 s.

    Raises ValueError, naming the line of each problem, for unknown options, a stretch that does not say when it begins
    or begins before the one before it, a first one that begins later than the clip, a stretch without text, speech that
    is not closed, and where there is no stretch.
    """
    problems: list[str] = []
    parts, common = lines.divided(text, FORM, problems)
    lines.refuse(problems)
    if not parts:
        raise ValueError('The timeline has no prompt: write one, and a line such as "--- from 5s" before each further.')
    stretches: list[Stretch] = []
    notes: list[str] = []
    for part in parts:
        with lines.collected(problems, part.line):
            stretches.append(_stretch(part, common, stretches, style))
            doubts = (*lines.almost_opens(part.text, FORM), *prompt.doubts(stretches[-1].prompt, style))
            notes += [f"Line {part.line}: {note}" for note in doubts]
    lines.refuse(problems)
    ends = [*(each.start for each in stretches[1:]), math.inf]
    lasting = tuple(replace(each, end=end) for each, end in zip(stretches, ends, strict=True))
    return Timeline(lasting, tuple(notes))


def _stretch(part: lines.Part, common: str, before: Sequence[Stretch], style: str) -> Stretch:
    """Return the stretch of a part, which follows others; its end is not known yet."""
    start = _start(part, is_first=not before)
    if before and start <= before[-1].start:
        raise ValueError(
            f"The stretch begins at {start:g} s, and the one before at {before[-1].start:g} s: write them in the order "
            "of time"
        )
    if not before and start:
        raise ValueError(f"The first stretch begins at {start:g} s, but the clip at 0: write from 0s")
    if not part.text:
        raise ValueError("The stretch has no text: write its prompt below the line")
    words = f"{common}\n{part.text}".strip()
    prompt.format_prompt(words, style)  # raises for speech that is not closed
    return Stretch(part.line, words, start)


def _start(part: lines.Part, *, is_first: bool) -> float:
    """Return when a part begins, in seconds."""
    if part.options.keys() == {"from", "seconds"}:
        return lines.number(part.options["seconds"])
    if "seconds" in part.options:
        written = part.options["seconds"]
        raise ValueError(f'"{written}s" could be when the stretch begins or how long it is: write from {written}s')
    if is_first and not part.options:
        return 0.0
    raise ValueError("The line does not say when the stretch begins: write from 5s")
