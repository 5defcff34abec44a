"""A miniature Ovi: a world made by a formula, codecs for it, and the weights that learned it.

ComfyUI takes this folder for a custom node; only then are the loaders imported, which need it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).parent / "weights"


async def comfy_entrypoint() -> Any:
    """Return the extension that lists the loaders."""
    from .nodes import Miniature

    return Miniature()
