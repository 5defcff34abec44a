"""The shipped workflows in ComfyUI's own frontend: found, opened, told what they lack, run, watched, dropped back in.

A screenshot of each, as it opens, stays in output/screenshots/.
"""

from __future__ import annotations

import importlib.util
import re
from itertools import combinations, pairwise, product
from pathlib import Path

import pytest

from authoring.templates import TEMPLATES
from support import ROOT, browser, workflows
from support.workflows import every_node, overlap

SCREENSHOTS = ROOT / "output" / "screenshots"
PACK = "comfyui-ovi"  # the folder's name, by which the Templates dialog lists it
MAIN = list(TEMPLATES)[:2]
RUN = [  # those whose outer graphs are unlike; tests/server runs others
    *MAIN,
    "Ovi 3 Three Clips in a Row",
    "Ovi 6 Second Pass",
    "Ovi 9 Text to Video, All Nodes",
    "Ovi Guides",
    "Ovi Person 3 Story",
]
OPENED_UP = "Ovi 9 Text to Video, All Nodes"
COMFYUI_S_OWN = ["video_ltx2_3_t2v", "video_wan2_2_14B_t2v"]
TEMPLATES_OF_COMFYUI = Path(importlib.util.find_spec("comfyui_workflow_templates_json").origin).parent
SEEDS = """app.graph.nodes.flatMap(node => node.widgets ?? [])
    .filter(widget => ['seed', 'noise_seed'].includes(widget.name)).map(widget => widget.value)"""
QUICK = {"EmptyOviLatent": {"width": 64, "height": 64, "length": 5}, "OviScheduler": {"steps": 2}}
HARMLESS = [  # what the console may say
    r"^(Connecting to|Fetch API cannot load) '?https://(huggingface\.co|api\.comfy\.org)/.* Content Security Policy",
    r"^Failed to load resource: .*404.* \S*/(user\.css|api/userdata\S*)$",
    r"^Failed to load resource: .*404.* \S*/api/view\?\S*filename=(video\.mp4|voice\S*\.wav)\S*$",  # the user's
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


@pytest.fixture(scope="class", params=TEMPLATES)
def template(request, bare, console):
    """The title of a workflow, opened from the Templates dialog where no model is there."""
    browser.open_template(bare, PACK, request.param)
    return request.param


def faults(shape):
    """What is wrong with the places of an open graph: nodes over nodes, over the edge of a group, crossing wires."""
    for one, other in combinations(shape["nodes"], 2):
        if overlap(one["bounds"], other["bounds"]):
            yield f"{one['title']} overlaps {other['title']}"
    for group, node in product(shape["groups"], shape["nodes"]):
        (left, top, right, bottom), bounds = group["bounds"], node["bounds"]
        inside = left <= bounds[0] and top <= bounds[1] and bounds[2] <= right and bounds[3] <= bottom
        if overlap(group["bounds"], bounds) and not inside:
            yield f"{node['title']} reaches out of {group['title']}"
    for one, other in combinations(shape["wires"], 2):
        if any(cross(*pair) for pair in product(pairwise(one["points"]), pairwise(other["points"]))):
            yield f"{one['name']} crosses {other['name']}"


def cross(one, other):
    """Whether two line segments cross: each has its ends on both sides of the other."""

    def side(line, point):
        (ax, ay), (bx, by) = line
        return (bx - ax) * (point[1] - ay) - (by - ay) * (point[0] - ax)

    return all(side(line, points[0]) * side(line, points[1]) < -1e-6 for line, points in ((one, other), (other, one)))


class TestATemplate:
    """Where no model is there yet."""

    def test_it_opens_and_converts(self, bare, template):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        bare.screenshot(path=SCREENSHOTS / f"{template}.png")
        prompt = browser.converted(bare)[1]
        assert workflows.meaning(prompt) == workflows.meaning(workflows.prompt(TEMPLATES[template].prompt))
        assert browser.missing_types(bare) == []
        assert browser.complaints(bare) == []

    def test_it_reads_at_a_glance(self, bare, template):
        shape = browser.shape(bare)
        assert shape["zoom"] >= (0.45 if template == OPENED_UP else 0.58)
        assert shape["unreadable"] == (template == OPENED_UP)
        assert template not in MAIN or len(shape["nodes"]) <= 5
        assert list(faults(shape)) == []

    def test_it_says_which_models_are_missing(self, bare, template):
        graph = workflows.graph(template)
        files = [model for node in every_node(graph) for model in node["properties"].get("models", [])]
        files = {file["name"]: (file["name"], file["directory"], file["url"]) for file in files}
        assert len(files) >= 4
        assert sorted(browser.missing_models(bare)) == sorted(files.values())


class TestARun:
    """Of a template, with tiny weights."""

    @pytest.fixture(params=RUN, scope="class")
    def ran(self, request, page, input_video, input_voices):
        """A template, opened and run at a small size; its title."""
        browser.open_template(page, PACK, request.param)
        page.evaluate(
            """values => {
                for (const widget of app.graph.nodes.flatMap(node => node.widgets ?? [])) {
                    if (widget.name in values) widget.value = values[widget.name];
                    if (widget.name === 'shots') widget.value = widget.value.replaceAll('5s', '9f');
                }
            }""",
            {"width": 64, "height": 64, "length": 9, "steps": 1, "overlap": 0.2, "middle_frame": 4},
        )
        seeds = page.evaluate(SEEDS)
        browser.run(page)
        page.wait_for_function("document.querySelector('video')?.readyState >= 1", timeout=60_000)
        return request.param, seeds

    def test_everything_stays_in_its_place(self, page, ran):
        page.screenshot(path=SCREENSHOTS / f"{ran[0]} after a run.png")
        assert list(faults(browser.shape(page))) == []

    def test_seeds_are_new_for_the_next_run(self, page, ran):
        """Except for those of storyboards, where a new one would make every shot anew."""
        (title, before), after = ran, page.evaluate(SEEDS)
        assert before
        assert len(after) == len(before)
        assert before == after if "Stor" in title else not set(before) & set(after)


def test_the_main_templates_next_to_comfyui_s(page, harmless):
    """Their screenshots are kept beside those of ComfyUI's own, which open no larger."""
    harmless.append(r"")  # ComfyUI's own templates ask for media and models of others
    for name in COMFYUI_S_OWN:
        theirs = next(TEMPLATES_OF_COMFYUI.rglob(f"{name}.json")).read_text(encoding="utf-8")
        page.evaluate(
            "async text => { await app.loadGraphData(JSON.parse(text), true, true, null, {openSource: 'template'}) }",
            theirs,
        )
        page.screenshot(path=SCREENSHOTS / f"ComfyUI {name}.png")
        zoom = browser.shape(page)["zoom"]
        for title in MAIN:
            browser.open_template(page, PACK, title)
            assert browser.shape(page)["zoom"] >= zoom, (title, name)


def test_templates_sorted_by_name_are_in_order(page):
    page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_role("dialog").get_by_text(PACK, exact=True).click()
    page.get_by_test_id(f"template-workflow-{next(iter(TEMPLATES))}").wait_for()
    cards = page.locator("[data-testid^='template-workflow-Ovi']")
    titles = [card.locator("h3").inner_text() for card in cards.all()]
    page.keyboard.press("Escape")
    assert sorted(titles) == list(TEMPLATES)


@pytest.fixture
def graph(page):
    """The text to video workflow with all its nodes, opened and fitted to little time, with its end in sight."""
    browser.load_workflow(page, workflows.graph(OPENED_UP))
    page.evaluate(
        """() => {
            app.canvas.ds.scale = 0.7;
            app.canvas.centerOnNode(app.graph.nodes.find(node => node.type === 'SaveVideo'));
        }"""
    )
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
    graph.wait_for_function("document.title.includes('2 nodes running')")  # the sampler, and Ovi Decode waits for it
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
