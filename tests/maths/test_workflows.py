"""What a shipped workflow or subgraph must hold, read from its files alone."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from support import ROOT
from support.workflows import GRAPHS, SUBGRAPHS

MODEL_FILES = (".safetensors", ".pth", ".pt")
FOLDERS = ("diffusion_models", "text_encoders", "vae", "upscale_models", "frame_interpolation")
DIGITS = {"MD5": 32, "SHA256": 64}
EXPERIMENTAL = ("OviReference", "OviContinue", "OviRemake", "ContextWindowsManual")  # beyond what Ovi was trained on


@pytest.fixture(params=[*GRAPHS, *SUBGRAPHS], ids=lambda path: path.stem)
def nodes(request):
    graph = json.loads(request.param.read_text())
    subgraphs = graph.get("definitions", {}).get("subgraphs", [])
    return graph["nodes"] + [node for subgraph in subgraphs for node in subgraph["nodes"]]


def test_every_workflow_has_a_prompt_and_a_thumbnail():
    names = {path.stem for path in GRAPHS}
    assert len(names) == 8
    assert {path.stem for path in (ROOT / "workflows").glob("*.jpg")} == names
    assert {path.name for path in (ROOT / "workflows" / "api").iterdir()} == {f"{name}.json" for name in names}


@pytest.mark.parametrize("workflow", GRAPHS, ids=lambda path: path.stem)
def test_thumbnails_are_square_and_small(workflow):
    """As ComfyUI's Templates dialog shows them."""
    path = workflow.with_suffix(".jpg")
    assert path.stat().st_size <= 40_000
    with Image.open(path) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (400, 400))


def test_every_model_file_says_where_it_comes_from(nodes):
    for node in nodes:
        files = [value for value in node.get("widgets_values", []) if str(value).endswith(MODEL_FILES)]
        models = node["properties"].get("models", [])
        assert [model["name"] for model in models] == files, node["type"]
        for model in models:
            assert model["url"].startswith("https://huggingface.co/")
            assert model["url"].endswith("/" + model["name"])
            assert "/resolve/main/" in model["url"]
            assert model["directory"] in FOLDERS
            assert len(model.get("hash", "")) == DIGITS.get(model.get("hash_type"), 0)


def test_seeds_stay_as_they_are(nodes):
    sampled = [node for node in nodes if node["type"] in ("RandomNoise", "KSampler")]
    assert sampled
    assert all(node["widgets_values"][1] == "fixed" for node in sampled)


def test_audio_is_generated(nodes):
    types = [node["type"] for node in nodes]
    assert {"OviDecode", "OviAudioVAELoader", "CreateVideo"} <= set(types)
    videos = [node for node in nodes if node["type"] == "CreateVideo"]
    assert all(slot["link"] for node in videos for slot in node["inputs"] if slot["name"] in ("images", "audio"))


def test_a_note_explains(nodes):
    (note,) = [node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote"]
    assert 100 < len(note) < 700
    assert ("**Experimental**" in note) == any(node["type"] in EXPERIMENTAL for node in nodes)
