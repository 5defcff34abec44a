"""The shipped workflows in ComfyUI's own frontend: found, opened, told what they lack, run, watched, dropped back in.

A screenshot of each, as it opens, stays in output/screenshots/.
"""

from __future__ import annotations

import json
import re

import pytest

from support import ROOT, browser, tiny, workflows
from support.workflows import GRAPHS, node_of

SCREENSHOTS = ROOT / "output" / "screenshots"
PACK = "comfyui-ovi"  # the folder's name, by which the Templates dialog lists it
QUICK = {"EmptyOviLatent": {"width": 64, "height": 64, "length": 5}, "OviScheduler": {"steps": 2}}
HARMLESS = [  # what the console may say
    r"^(Connecting to|Fetch API cannot load) '?https://(huggingface\.co|api\.comfy\.org)/.* Content Security Policy",
    r"^Failed to load resource: .*404.* \S*/(user\.css|api/userdata\S*)$",
    r"^Failed to load resource: .*404.* \S*/api/view\?type=input&filename=video\.mp4\S*$",  # theirs, not shipped
]

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def console(page):
    """Errors on the page's console since the last look."""
    said = []
    page.on("console", lambda one: one.type == "error" and said.append(f"{one.text} {one.location['url']}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    return said


@pytest.fixture(autouse=True)
def harmless(console):
    """What the console may say in a test, which may add to it; anything else fails the test."""
    allowed = list(HARMLESS)
    yield allowed
    said = [text for text in console if not any(re.search(pattern, text, re.DOTALL) for pattern in allowed)]
    console.clear()
    assert said == []


def move_files(source, target):
    """Move every file from one folder of models to another; the folders stay, since ComfyUI watches them."""
    for path in [path for path in source.rglob("*") if path.is_file()]:
        moved = target / path.relative_to(source)
        moved.parent.mkdir(parents=True, exist_ok=True)
        path.rename(moved)


@pytest.fixture(scope="class")
def bare(server, page):
    """The frontend of a ComfyUI without any model."""
    aside = server.base / "aside"
    move_files(server.models, aside)
    page.evaluate("app.refreshComboInNodes()")
    yield page
    move_files(aside, server.models)
    page.evaluate("app.refreshComboInNodes()")


@pytest.fixture(scope="class", params=GRAPHS, ids=lambda path: path.stem)
def template(request, bare, console):
    """A workflow, opened from the Templates dialog where no model is there."""
    browser.open_template(bare, PACK, request.param.stem)
    return request.param


class TestATemplate:
    """Where no model is there yet."""

    def test_it_opens_and_converts(self, bare, template):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        bare.screenshot(path=SCREENSHOTS / f"{template.stem}.png")
        prompt = browser.converted(bare)[1]
        for node in prompt.values():
            del node["_meta"]
        assert prompt == workflows.prompt(template.stem)
        assert browser.missing_types(bare) == []
        assert browser.complaints(bare) == []

    def test_it_says_which_models_are_missing(self, bare, template):
        nodes = json.loads(template.read_text())["nodes"]
        files = [model for node in nodes for model in node["properties"].get("models", [])]
        assert len(files) >= 5
        listed = browser.missing_models(bare)
        assert sorted(listed) == sorted((file["name"], file["directory"], file["url"]) for file in files)


@pytest.fixture
def graph(page):
    """The text to video workflow, opened and fitted to tiny weights and little time."""
    workflow = workflows.graph("ovi_text_to_video")
    node_of(workflow, "CLIPLoader").update({"type": "OviTinyTextLoader", "widgets_values": [tiny.TEXT_DIM, 0]})
    browser.load_workflow(page, workflow)
    browser.set_widgets(page, QUICK)
    return page


def saved_clips(server):
    """The clips in ComfyUI's folder of outputs, oldest first."""
    return sorted((server.base / "output").rglob("*.mp4"), key=lambda path: path.stat().st_mtime_ns)


def test_a_workflow_runs_to_a_clip_that_plays(graph):
    browser.set_widgets(graph, {"EmptyOviLatent": {"width": 256, "height": 160, "length": 25}})
    browser.run(graph)
    clip = browser.play_video(graph)
    assert clip["size"] == [256, 160]
    assert clip["seconds"] == pytest.approx(25 / 24, abs=1 / 24)
    assert clip["error"] is None
    assert clip["frames"] > 1
    assert clip["audio_bytes"] > 0


def test_a_saved_clip_dropped_on_the_canvas_restores_its_graph(graph, server):
    before = browser.converted(graph)[1]
    browser.run(graph)
    graph.evaluate("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    browser.drop_file(graph, saved_clips(server)[-1], "video/mp4")
    graph.wait_for_function("app.graph._nodes.length > 0")
    assert browser.converted(graph)[1] == before


def test_a_queue_of_three_makes_three_clips(graph, server):
    browser.set_widgets(graph, {"RandomNoise": {"noise_seed": 11, "control_after_generate": "increment"}})
    made = len(saved_clips(server))
    browser.press_run(graph, times=3)
    browser.wait_for_queue(graph, 3)
    browser.wait_for_queue(graph, 0)
    graph.get_by_text("3 jobs completed").wait_for()
    assert len(saved_clips(server)) == made + 3


def test_a_cancel_is_told(graph, server):
    browser.set_widgets(graph, {"OviScheduler": {"steps": 1000}})
    made = len(saved_clips(server))
    browser.press_run(graph)
    graph.wait_for_function("document.title.includes('SamplerCustomAdvanced')")
    graph.get_by_label("Cancel current run").click()
    graph.get_by_text("Execution has been interrupted").wait_for()
    browser.wait_for_queue(graph, 0)
    assert len(saved_clips(server)) == made


def test_a_refused_prompt_is_told(graph, harmless):
    """ComfyUI checks the prompt before it runs it."""
    harmless += [r"400 \(Bad Request\) \S*/api/prompt$", r"^PromptExecutionError"]
    browser.set_widgets(graph, {"OviModelLoader": {"model_name": "ovi.safetensors"}})
    browser.press_run(graph)
    told = "The value ovi.safetensors for Load Ovi Model's model_name is not available."
    graph.get_by_test_id("error-overlay").get_by_text(told).wait_for()
    browser.wait_for_queue(graph, 0)


def test_a_node_s_refusal_is_told(graph):
    """In the node's own sentence."""
    browser.set_widgets(graph, {"EmptyOviLatent": {"length": 6}})
    browser.press_run(graph)
    graph.get_by_test_id("error-overlay").get_by_text("Empty Ovi Latent failed").wait_for()
    graph.get_by_test_id("error-overlay-see-errors").click()
    graph.get_by_test_id("runtime-error-panel").get_by_text("4n + 1").wait_for()
    browser.wait_for_queue(graph, 0)
