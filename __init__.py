"""Ovi for ComfyUI: video and its sound, generated together by one native model.

The nodes, and ComfyUI with them, are imported only when ComfyUI asks for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import OviExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> OviExtension:
    """Return the extension that lists the nodes of this pack."""
    from .nodes import OviExtension

    return OviExtension()
