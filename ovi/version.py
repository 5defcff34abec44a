"""Version numbers as they are compared."""

from __future__ import annotations

import re


def numbers(version: str) -> list[int]:
    """Return the numbers of a version: "0.16.3" → [0, 16, 3]."""
    return [int(number) for number in re.findall(r"\d+", version)]
