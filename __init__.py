"""Ovi for ComfyUI: video and audio, generated together by one native model.

The nodes, and ComfyUI with them, are imported only when ComfyUI asks for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import OviExtension

WEB_DIRECTORY = "./web"
COMFYUI_FLOOR = "0.16.3"


async def comfy_entrypoint() -> OviExtension:
    """Return the extension that lists the nodes of this pack.

    Raises ImportError, which ComfyUI logs as one sentence, in a ComfyUI that is too old for them, or lacks a name that
    they rely on.
    """
    from comfyui_version import __version__

    from .ovi.version import numbers

    if numbers(__version__) < numbers(COMFYUI_FLOOR):
        raise ImportError(f"Ovi needs ComfyUI {COMFYUI_FLOOR} or later, but this is {__version__}; update ComfyUI.")
    from .ovi import native  # noqa: F401 - looks up those names before anything else imports them

    # isort: split
    from .nodes import OviExtension

    return OviExtension()
