"""The boxes of subgraphs/ in ComfyUI's frontend: found in the search, and equal to the workflows inside them."""

from __future__ import annotations

import re

import pytest

from ovi.tools import batch
from support import browser, tiny, workflows
from support.media import read_clip
from support.workflows import SUBGRAPHS, id_of, node_of

pytestmark = pytest.mark.browser

SHOWN = [
    "prompt", "video_negative", "audio_negative", "prompt_style", "width", "height", "length", "seed", "steps", "model",
    "text_encoder", "video_vae", "audio_vae", "vocoder",
]  # fmt: skip
BOXES = {  # title: the workflow inside, and the inputs of the box
    "Text to Video (Ovi)": ("ovi_text_to_video", SHOWN),
    "Image to Video (Ovi)": ("ovi_image_to_video", ["start_image", *SHOWN]),
}


def test_every_box_is_tested():
    assert set(BOXES) == {path.stem for path in SUBGRAPHS}


@pytest.fixture(params=BOXES)
def title(request, page):
    """The title of a box, which is found in the search for nodes and placed on an empty canvas."""
    page.evaluate("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    browser.add_node(page, request.param)
    return request.param


def wire(page):
    """Give the box what stays outside: an image to load, where it takes one, and a place for the video."""
    page.evaluate(
        """() => {
            const [box] = app.graph._nodes;
            const add = type => app.graph.add(LiteGraph.createNode(type)) ?? app.graph._nodes.at(-1);
            box.connect(0, add('SaveVideo'), 0);
            if (box.inputs[0].type === 'IMAGE') add('LoadImage').connect(0, box, 0);
        }"""
    )


def test_a_box_is_the_workflow_inside(page, title):
    workflow, inputs = BOXES[title]
    wire(page)
    assert page.evaluate("app.graph._nodes[0].inputs.map(input => input.name)") == inputs
    assert page.evaluate("app.graph._nodes[0].outputs.map(output => output.type)") == ["VIDEO"]
    inside = workflows.prompt(workflow)
    node_of(inside, "SaveVideo")["inputs"]["filename_prefix"] = "video/ComfyUI"
    graph, prompt = browser.converted(page)
    assert workflows.meaning(prompt) == workflows.meaning(inside)
    browser.load_workflow(page, graph)
    assert browser.converted(page)[1] == prompt
    assert browser.complaints(page) == []


def test_batch_finds_its_inputs_in_a_box(page, title, tmp_path):
    """By the names of the nodes inside, and by their ids, such as 5:12."""
    wire(page)
    workflow = browser.converted(page)[1]
    inside = id_of(workflow, "OviGuidance")
    assert re.fullmatch(r"\d+:\d+", inside)
    cells = {"prompt": "A fox.", "video_negative": "rain", "seed": "7", "width": "960", "steps": "30", "cfg": "3.5"}
    table = tmp_path / "prompts.csv"
    table.write_text(f"{','.join(cells)},{inside}.skip_blocks\n{','.join(cells.values())},9\n")
    (row,) = batch.read(table, workflow)
    set_inputs = {name: value for node in row.prompt.values() for name, value in node["inputs"].items()}
    assert {name: str(set_inputs[{"seed": "noise_seed"}.get(name, name)]) for name in cells} == cells
    assert row.prompt[inside]["inputs"]["skip_blocks"] == "9"


def test_a_box_runs_to_the_clip_that_was_asked_for(page, title, server):
    asked = {"prompt": "A bell rings.", "width": 96, "height": 64, "length": 9, "seed": 8}
    wire(page)
    page.evaluate(
        "values => { for (const one of app.graph._nodes[0].widgets) one.value = values[one.name] ?? one.value }", asked
    )
    graph, prompt = browser.converted(page)
    passed_on = {name: value for node in prompt.values() for name, value in node["inputs"].items()}
    assert {name: passed_on[{"seed": "noise_seed"}.get(name, name)] for name in asked} == asked
    tiny.fit(prompt)
    for node in prompt.values():
        node["inputs"] |= {name: value for name, value in (asked | {"steps": 2}).items() if name in node["inputs"]}
    (clip,) = server.run(prompt, graph)
    frames, wave, rate, seconds = read_clip(clip)
    assert frames.shape == (9, 64, 96, 3)
    assert rate == 24
    assert seconds == pytest.approx(9 / 24, abs=1 / 24)
    assert abs(wave).max() > 0.01
