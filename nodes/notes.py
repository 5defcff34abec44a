"""Notes that a node shows about what it did."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io, ui
from server import PromptServer

from ..ovi.quote import printable


def show(node: type[io.ComfyNode], notes: Sequence[str]) -> ui.PreviewText:
    """Show one line per note on the node, which must declare the hidden input `unique_id`; return its UI output."""
    text = "\n".join(map(printable, notes))
    client = getattr(getattr(PromptServer, "instance", None), "client_id", None)  # of the prompt that runs
    if client is not None and node.hidden is not None and node.hidden.unique_id is not None:
        PromptServer.instance.send_progress_text(text, node.hidden.unique_id, client)  # without it: to everybody
    return ui.PreviewText(text)
