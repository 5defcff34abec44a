"""Notes that a node shows about what it did."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io, ui
from comfy_execution.progress import get_progress_state
from server import PromptServer

from ..ovi.quote import printable


def show(node: type[io.ComfyNode], notes: Sequence[str]) -> ui.PreviewText:
    """Show one line per note on the node, which must declare the hidden input `unique_id`; return its UI output.

    There is room for about one line, so the first has to be the one that matters. It appears on the node of a subgraph
    too: while the graph around that is open, ComfyUI shows nothing of the nodes inside. The notes of a node that
    another was expanded to appear on that other one, after the title that it gave it.
    """
    text = "\n".join(map(printable, notes))
    client = getattr(getattr(PromptServer, "instance", None), "client_id", None)  # of the prompt that runs
    if client is not None and node.hidden is not None and node.hidden.unique_id is not None:
        own_id = str(node.hidden.unique_id)
        graph = get_progress_state().dynprompt
        shown_on = str(graph.get_display_node_id(own_id))
        title = graph.get_node(own_id).get("_meta", {}).get("title", "") if shown_on != own_id else ""
        before = f"{title}: " if title else ""
        PromptServer.instance.send_progress_text(before + text, shown_on, client)  # without a client: to everybody
        box, inside, _ = shown_on.partition(":")
        if inside:
            name = title or node.define_schema().display_name
            PromptServer.instance.send_progress_text(f"{name}: {printable(notes[0])}", box, client)
    return ui.PreviewText(text)
