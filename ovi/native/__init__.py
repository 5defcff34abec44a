"""Ovi as ComfyUI sees it. With `nodes`, the only room that imports ComfyUI."""

from __future__ import annotations

from .guidance import guide
from .load import load
from .model import NativeOviModel, Ovi

__all__ = ["NativeOviModel", "Ovi", "guide", "load"]
