"""Take the screenshots in docs/: each graph of workflows/ as ComfyUI's own frontend shows it.

python -m authoring.pictures COMFYUI
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support import ROOT, browser
from tests.support.comfy_server import Server
from tests.support.workflows import every_node

from .templates import TEMPLATES

NAMES = {"Ovi 9 Text to Video, All Nodes": "text_to_video_all_nodes"}  # of those that are not named after the prompt
MEDIA = ("LoadVideo", "LoadAudio")  # whose first value is a file of the user's
FOLDERS = ("LoadVideoTextDataSetFromFolder",)  # whose first value is a folder
WIDTH = 1800  # pixels of a screenshot, at least
SCALE = 0.6  # pixels for each unit of the graph, at least: below, the frontend draws no text
MARGIN = 20  # pixels around the graph
HIDDEN = {"Comfy.Graph.CanvasInfo": False, "Comfy.Graph.CanvasMenu": False}  # settings: what lies over the graph


def main() -> None:
    """Write a screenshot of every graph."""
    comfyui = Path(sys.argv[1]).resolve()
    graphs = {title: json.loads((ROOT / "workflows" / f"{title}.json").read_text()) for title in TEMPLATES}
    with tempfile.TemporaryDirectory() as folder, Server(comfyui, Path(folder, "base"), "--cpu") as server:
        for title, graph in graphs.items():
            pretend_files(server.base, graph)
            with browser.frontend(server.url, Path(folder, title)) as page:
                screenshot(page, graph, ROOT / "docs" / f"{NAMES.get(title, TEMPLATES[title].prompt[4:])}.png")


def pretend_files(base: Path, graph: dict[str, Any]) -> None:
    """Make empty files for a graph's models, video and audio, since the frontend marks missing ones in red."""
    paths = [base / "input" / node["widgets_values"][0] for node in graph["nodes"] if node["type"] in MEDIA]
    for node in every_node(graph):
        paths += [base / "models" / file["directory"] / file["name"] for file in node["properties"].get("models", ())]
    for node in graph["nodes"]:
        if node["type"] in FOLDERS:
            (base / "input" / node["widgets_values"][0]).mkdir(exist_ok=True)
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()


def screenshot(page: browser.Page, graph: dict[str, Any], path: Path) -> None:
    """Show a graph alone and save it as PNG."""
    browser.load_workflow(page, graph)
    shape = browser.shape(page)
    boxes = [each["bounds"] for each in shape["nodes"] + shape["groups"]]
    left, top = (min(box[i] for box in boxes) for i in (0, 1))
    right, bottom = (max(box[i] for box in boxes) for i in (2, 3))
    scale = max((WIDTH - 2 * MARGIN) / (right - left), SCALE)
    width, height = (round(side * scale) + 2 * MARGIN for side in (right - left, bottom - top))
    page.set_viewport_size({"width": width, "height": height})
    page.evaluate(
        """async ([hidden, scale, offset]) => {
            for (const [id, value] of Object.entries(hidden)) await app.extensionManager.setting.set(id, value);
            await app.extensionManager.command.execute('Workspace.ToggleFocusMode');
            app.canvas.ds.scale = scale;
            app.canvas.ds.offset = offset;
            app.canvas.setDirty(true, true);
        }""",
        [HIDDEN, scale, [MARGIN / scale - left, MARGIN / scale - top]],
    )
    page.add_style_tag(content="button, .p-toast { visibility: hidden }")
    page.wait_for_timeout(1000)  # the canvas follows the viewport, and the texts follow the canvas
    shown = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shown.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
