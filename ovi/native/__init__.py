"""Ovi as ComfyUI sees it. With `nodes`, the only room that imports ComfyUI.

Its first import raises ImportError, one sentence, in a ComfyUI that lacks a name of `host`.
"""

from __future__ import annotations

from .host import require

require()

from .guidance import guide
from .load import load
from .model import NativeOviModel, Ovi

__all__ = ["NativeOviModel", "Ovi", "guide", "load"]
