"""The rows of a table measured by several processes: which rows are whose, and what they print, put together.

A process with `--shard 1/4` measures every fourth row, from the second on. `--json` of `bench.quality` prints a row as
one line, and `--merge` reads such lines from files.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

COMMON = "prompts", "reference_prompts", "seed"  # what the rows of one table have in common


class Named(Protocol):
    """A row, by its name."""

    @property
    def name(self) -> str: ...


AnyRow = TypeVar("AnyRow", bound=Named)


class Line(NamedTuple):
    """What was measured of a row, and its place in the table."""

    place: int
    name: str
    measured: dict[str, Any]


def shard(text: str) -> tuple[int, int]:
    """Read "1/4": which of how many. Raises ValueError for what is none."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise ValueError(f"{text} is not like 0/4 to 3/4")
    return int(found[1]), int(found[2])


def chosen(rows: Sequence[AnyRow], args: argparse.Namespace) -> list[tuple[int, AnyRow]]:
    """Return the rows to measure, each with its place in the table."""
    which, count = args.shard
    named = [(place, row) for place, row in enumerate(rows) if re.search(args.named, row.name)]
    return named[: args.rows][which::count]


def written(args: argparse.Namespace, line: Line) -> str:
    """Return a row as a line of JSON."""
    return json.dumps({name: getattr(args, name) for name in COMMON} | line._asdict())


def merged(paths: Sequence[Path]) -> list[Line]:
    """Return the rows in files in the order of the table, the last of a name.

    Raises SystemExit where they are not of the same prompts and noise.
    """
    found: dict[str, Line] = {}
    first: list[Any] = []
    for path, one in _objects(paths):
        common = [one.pop(name) for name in COMMON]
        first = first or common
        if common != first:
            raise SystemExit(f"{path} has other prompts or another seed than {paths[0]}; measure them alike.")
        found[one["name"]] = Line(**one)
    return sorted(found.values())


def _objects(paths: Sequence[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Read the lines of files that are JSON objects: ComfyUI may have printed others."""
    for path in paths:
        for text in path.read_text().splitlines():
            if text.startswith("{"):
                yield path, json.loads(text)
