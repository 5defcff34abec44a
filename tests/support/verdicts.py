"""Rows of the talking world whose clips were judged."""

from __future__ import annotations

import dataclasses

import torch

from bench.talking import Result
from miniature import judge, lips, recogniser

SYNC = lips.Sync(0.8, 0.0, (0.01,), (0.02,))
OFF = lips.Sync(0.3, 0.1, (0.07,), (0.06,))
SEEN = lips.Seen(("red", "small", "left"), torch.zeros(49), (0.1,))
WORDS, OTHERS = judge.Words(0, 0), judge.Words(3, 2)
RIGHT = judge.Verdict(
    recogniser.Heard(("ma",), (0.1,), "low"), SEEN, 4, WORDS, OTHERS, True, True, True, SYNC, OFF, OFF
)


def result(errors, name="row", correlation=0.8, passes=2.0):
    """A row whose clips have these errors."""
    sync = dataclasses.replace(SYNC, correlation=correlation)
    verdicts = [dataclasses.replace(RIGHT, words=judge.Words(each, 0), sync=sync) for each in errors]
    return Result.of(name, verdicts, passes, seconds=1.0)
