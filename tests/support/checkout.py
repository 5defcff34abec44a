"""The files of this checkout."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path

from . import ROOT


def shipped() -> Iterator[Path]:
    """Every file of the checkout that git does not ignore, found without git."""
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()} | {".git"}

    def tracked(names: list[str]) -> list[str]:
        return [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)]

    for folder, folders, files in os.walk(ROOT):
        folders[:] = tracked(folders)
        yield from (Path(folder, name) for name in tracked(files))


def relative(path: Path) -> str:
    """Return a path as it is written from the root, with slashes."""
    return path.relative_to(ROOT).as_posix()


SHIPPED = sorted(shipped())
