"""Ovi in miniature: a world made by a formula, codecs for it, and a model trained on it.

ComfyUI can load this folder as a custom node. The loaders need ComfyUI and are imported only then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).parent / "weights"


async def comfy_entrypoint() -> Any:
    """Return the extension with the loaders."""
    from .nodes import Miniature

    return Miniature()
