"""What the rows of `--turbo` say: how near a student of few steps comes to its teacher.

Differences are paired: teacher, undistilled model and student have the same prompts and noise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from bench.talking import Result, share

TEACHER_STEPS = 20
TEACHER = f"teacher, {TEACHER_STEPS} steps, cfg 2"
STRENGTHS = 1.0, 0.75, 0.5
FAR = 0.2  # seconds: a first bounce that is farther from the teacher's is another one


def undistilled(steps: int) -> str:
    """Return the name of the row without the LoRA in a student's steps."""
    return f"undistilled, {steps} steps"


def student(steps: int, strength: float) -> str:
    """Return the name of the row of a student at a strength of its LoRA."""
    return f"student, {steps} steps, strength {strength:g}"


def talking_lines(rows: Mapping[str, Result]) -> Iterator[str]:
    """Say how each student of the talking world compares with its teacher and with the undistilled model."""
    teacher = rows.get(TEACHER)
    for name, row in rows.items():
        if teacher is None or row is teacher:
            continue
        yield f"{name} against the teacher: {_difference(row, teacher)}"
        found = re.match(r"student, (\d+) steps", name)
        before = rows.get(undistilled(int(found[1]))) if found else None
        if before is not None:
            yield f"{name} against {before.name}: {_difference(row, before)}{_closed(row, before, teacher)}"


def _difference(row: Result, other: Result) -> str:
    """Say how two rows differ in words, lip sync, voice and look."""
    more = row.more_errors(other)
    assert more is not None  # the prompts are the same
    parts = [f"{more.percent(signed=True)} points of syllable errors"]
    for key, what in (("to_vowel_ms", "to a vowel"), ("to_opening_ms", "to an opening")):
        parts.append(f"{row.summary[key] - other.summary[key]:+.1f} ms {what}")
    parts += [f"{key} {100 * (row.summary[key] - other.summary[key]):+.1f} points" for key in ("voice", "look")]
    return ", ".join(parts)


def _closed(row: Result, before: Result, teacher: Result) -> str:
    """Say which share of the gap between the undistilled model and the teacher is closed, where there is one."""
    gap = before.more_errors(teacher)
    if gap is None or gap.low <= 0:
        return ""
    closed = share(before.errors - row.errors, before.errors - teacher.errors)
    return f"; closed {closed.percent()} of the gap of {gap.percent(signed=True)} points"


def ball_lines(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Say how the first bounces of each row of the ball agree with the teacher's from the same noise.

    A row has `first_bounces` in seconds, None where there is none.
    """
    if TEACHER not in rows:
        return
    expected = rows[TEACHER]["first_bounces"]
    for name, row in rows.items():
        if name != TEACHER:
            correlation, ratio, near, far = agreement(row["first_bounces"], expected)
            yield (
                f"{name}: {near} first bounces correlate {correlation:.2f} with the teacher's, sd {ratio:.2f} times; "
                f"{far} more than {FAR} s away"
            )


def agreement(found: Sequence[float | None], expected: Sequence[float | None]) -> tuple[float, float, int, int]:
    """Return the correlation of times, the ratio of their standard deviations, the pairs near each other and the rest.

    Only near ones correlate: those that are more than `FAR` apart are another bounce, as one of the clips lacks its
    first. Clips without any bounce do not count.
    """
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a is not None and b is not None]
    near = [pair for pair in pairs if abs(pair[0] - pair[1]) <= FAR]
    ours, theirs = torch.tensor(near, dtype=torch.float64).reshape(-1, 2).T
    correlation = torch.corrcoef(torch.stack([ours, theirs]))[0, 1]
    return correlation.item(), (ours.std() / theirs.std()).item(), len(near), len(pairs) - len(near)
