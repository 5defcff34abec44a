"""What a shipped workflow or subgraph must hold, read from its files alone."""

from __future__ import annotations

import json
import re
from itertools import combinations

import pytest
from PIL import Image

from authoring import notes
from authoring.templates import BLUEPRINTS, TEMPLATES
from support import ROOT
from support.workflows import GRAPHS, SUBGRAPHS, every_node, graph, overlap

MODEL_FILES = (".safetensors", ".pth", ".pt")
FOLDERS = ("diffusion_models", "text_encoders", "vae", "loras", "upscale_models", "frame_interpolation")
DIGITS = {"MD5": 32, "SHA256": 64}
MORE_FILES = ("Ovi 7 Upscale and 48 fps", "Ovi Fast", "Ovi Idea")  # than Ovi itself needs
SUBGRAPH = r"[\da-f]{8}-[\da-f-]{27}"  # the type of a subgraph's node
EXPERIMENTAL = (
    "OviReference",
    "OviContinue",
    "OviGuide",
    "OviRemake",
    "OviStoryboard",
    "OviTimeline",
    "ContextWindowsManual",
)  # beyond what Ovi was trained on


@pytest.fixture(params=[*GRAPHS, *SUBGRAPHS], ids=lambda path: path.stem)
def nodes(request):
    return every_node(json.loads(request.param.read_text()))


@pytest.fixture
def generating(nodes):
    """The nodes of a workflow that generates clips: another makes the files for training."""
    if any(node["type"] == "OviTrainingClips" for node in nodes):
        pytest.skip("this workflow generates nothing")
    return nodes


def test_every_workflow_has_a_prompt_and_a_thumbnail():
    assert {path.stem for path in GRAPHS} == set(TEMPLATES)
    assert {path.stem for path in (ROOT / "workflows").glob("*.jpg")} == set(TEMPLATES)
    prompts = {template.prompt for template in TEMPLATES.values()}
    assert {path.name for path in (ROOT / "workflows" / "api").iterdir()} == {f"{name}.json" for name in prompts}


@pytest.mark.parametrize("workflow", GRAPHS, ids=lambda path: path.stem)
def test_thumbnails_are_square_and_small(workflow):
    """As ComfyUI's Templates dialog shows them."""
    path = workflow.with_suffix(".jpg")
    assert path.stat().st_size <= 40_000
    with Image.open(path) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (400, 400))


def test_every_model_file_says_where_it_comes_from(nodes):
    for node in nodes:
        if re.fullmatch(SUBGRAPH, node["type"]):  # it shows the values of the loaders inside
            continue
        files = [value for value in node.get("widgets_values", []) if str(value).endswith(MODEL_FILES)]
        models = node["properties"].get("models", [])
        assert [model["name"] for model in models] == files, node["type"]
        for model in models:
            assert model["url"].startswith("https://huggingface.co/")
            assert model["url"].endswith("/" + model["name"])
            assert "/resolve/main/" in model["url"]
            assert model["directory"] in FOLDERS
            assert len(model.get("hash", "")) == DIGITS.get(model.get("hash_type"), 0)


def test_every_run_has_a_new_seed(generating):
    sampled = [node for node in generating if node["type"] in ("RandomNoise", "KSampler", "OviStoryboard")]
    assert sampled
    fixed = [node for node in sampled if node["type"] == "OviStoryboard"]  # a new seed would make every shot anew
    assert all("fixed" in node["widgets_values"] for node in fixed)
    assert all("randomize" in node["widgets_values"] for node in sampled if node not in fixed)


def test_audio_is_generated(generating):
    types = [node["type"] for node in generating]
    assert "OviAudioVAELoader" in types
    assert "OviStoryboard" in types or {"OviDecode", "CreateVideo"} <= set(types)
    videos = [node for node in generating if node["type"] == "CreateVideo"]
    assert all(slot["link"] for node in videos for slot in node["inputs"] if slot["name"] in ("images", "audio"))


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
def test_notes_explain(path):
    graph = json.loads(path.read_text())
    nodes = every_node(graph)
    texts = {node["title"]: node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "MarkdownNote"}
    assert set(texts) == {notes.MODEL_LINKS, notes.ABOUT}
    assert 400 < len(texts[notes.ABOUT]) < 1300
    assert ("**Experimental**" in texts[notes.ABOUT]) == any(node["type"] in EXPERIMENTAL for node in nodes)
    for model in (model for node in nodes for model in node["properties"].get("models", [])):
        assert f"[{model['name']}]({model['url']})" in texts[notes.MODEL_LINKS]
    if any(node["type"] in ("OviModelLoader", "OviStoryboard") for node in nodes):
        assert any(file in texts[notes.MODEL_LINKS] for file in (notes.BF16, notes.DREAMID_BF16))


@pytest.mark.parametrize("title", [title for title in TEMPLATES if title not in MORE_FILES])
def test_what_is_downloaded_at_once_fits_most_disks(title):
    """The panel of missing models offers all of a graph's files at once; the sizes are those of the note."""
    models = {model["url"] for node in every_node(graph(title)) for model in node["properties"].get("models", [])}
    sizes = [re.match(r"([\d.]+) (GB|MB)", notes.SIZES[url]).groups() for url in models]
    assert sum(float(size) * (1 if unit == "GB" else 1e-3) for size, unit in sizes) <= 22


@pytest.mark.parametrize("path", [*GRAPHS, *SUBGRAPHS], ids=lambda path: path.stem)
def test_nothing_overlaps_inside_a_subgraph(path):
    for subgraph in json.loads(path.read_text()).get("definitions", {}).get("subgraphs", []):
        places = []  # left, top of the title, right, bottom
        for node in subgraph["nodes"]:
            (left, top), (width, height) = node["pos"], node["size"]
            places.append((node["type"], (left, top - 30, left + width, top + height)))
        for (one, a), (other, b) in combinations(places, 2):
            assert not overlap(a, b), f"{one} overlaps {other} in {subgraph['name']}"


def test_the_subgraphs_are_those_of_the_main_workflows():
    for path in SUBGRAPHS:
        (box,) = json.loads(path.read_text())["definitions"]["subgraphs"]
        assert path.stem in BLUEPRINTS
        (main,) = (graph(title) for title in TEMPLATES if path.stem in {part.title for part in TEMPLATES[title].boxes})
        (same,) = main["definitions"]["subgraphs"]
        assert [node["type"] for node in box["nodes"]] == [node["type"] for node in same["nodes"]]
        assert [given["name"] for given in box["inputs"]] == [given["name"] for given in same["inputs"]]
