"""Notes that a node shows about what it did."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io, ui
from server import PromptServer

from ..ovi.quote import printable


def show(node: type[io.ComfyNode], notes: Sequence[str]) -> ui.PreviewText:
    """Show one line per note on the node, which must declare the hidden input `unique_id`; return its UI output.

    There is room for about one line, so the first has to be the one that matters. It appears on the node of a subgraph
    too: while the graph around that is open, ComfyUI shows nothing of the nodes inside.
    """
    text = "\n".join(map(printable, notes))
    client = getattr(getattr(PromptServer, "instance", None), "client_id", None)  # of the prompt that runs
    if client is not None and node.hidden is not None and node.hidden.unique_id is not None:
        PromptServer.instance.send_progress_text(text, node.hidden.unique_id, client)  # without it: to everybody
        box, inside, _ = str(node.hidden.unique_id).partition(":")
        if inside:
            line = f"{node.define_schema().display_name}: {printable(notes[0])}"
            PromptServer.instance.send_progress_text(line, box, client)
    return ui.PreviewText(text)
