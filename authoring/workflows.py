"""Make the graphs of workflows/ and the boxes of subgraphs/ from the prompts of workflows/api/ (written by hand).

    python -m authoring.workflows COMFYUI

ComfyUI's own frontend makes them; authoring/templates.py says how they look.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from tests.support import ROOT, browser
from tests.support.comfy_server import Server

from .templates import BLUEPRINTS, TEMPLATES, layout

PROMPTS = ROOT / "workflows" / "api"
LAYOUT = Path(__file__).with_name("layout.js").read_text(encoding="utf-8")
ID = r"[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}"  # of a subgraph, or of one of its inputs and outputs


def main() -> None:
    """Write every graph, and the boxes of the main ones alone."""
    comfyui = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder, Server(comfyui, Path(folder, "base"), "--cpu") as server:
        for title in TEMPLATES:
            with browser.frontend(server.url, Path(folder, title)) as page:
                graph = made(page, title)
                write(ROOT / "workflows" / f"{title}.json", graph)
                for box in TEMPLATES[title].boxes:
                    if box.title in BLUEPRINTS:
                        write(ROOT / "subgraphs" / f"{box.title}.json", blueprint(graph, box.title))


def made(page: browser.Page, title: str) -> dict[str, Any]:
    """Return a template's graph in UI form."""
    template = TEMPLATES[title]
    browser.load_prompt(page, json.loads((PROMPTS / f"{template.prompt}.json").read_text()))
    page.evaluate(LAYOUT, json.dumps(layout(template)))
    return browser.converted(page)[0]


def blueprint(graph: dict[str, Any], title: str) -> dict[str, Any]:
    """Return a graph's box of that title alone, with ComfyUI's category for it and what it does."""
    (box,) = (node for node in graph["nodes"] if node.get("title") == title)
    (subgraph,) = (each for each in graph["definitions"]["subgraphs"] if each["id"] == box["type"])
    inputs = [given | {"link": None} for given in box["inputs"]]
    outputs = [given | {"links": None} for given in box["outputs"]]
    node = box | {"pos": [0, 0], "inputs": inputs, "outputs": outputs}
    definition = subgraph | BLUEPRINTS[title]
    return graph | {"nodes": [node], "links": [], "groups": [], "definitions": {"subgraphs": [definition]}}


def write(path: Path, graph: dict[str, Any]) -> None:
    """Write a graph in UI form, with ids that are the same each time: those of subgraphs and of their inputs."""
    text = json.dumps(graph, indent=2, ensure_ascii=False) + "\n"
    for index, found in enumerate(dict.fromkeys(re.findall(ID, text))):
        text = text.replace(found, str(uuid.uuid5(uuid.NAMESPACE_URL, f"{path.name}#{index}")))
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
