"""What a shipped workflow must hold, read from its file alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

WORKFLOWS = sorted((Path(__file__).resolve().parent.parent / "workflows").glob("*.json"))
MODEL_FILES = (".safetensors", ".pth", ".pt")
FOLDERS = ("diffusion_models", "text_encoders", "vae", "upscale_models", "frame_interpolation")


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def nodes(request):
    return json.loads(request.param.read_text())["nodes"]


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


def test_seeds_stay_as_they_are(nodes):
    sampled = [node for node in nodes if node["type"] in ("RandomNoise", "KSampler")]
    assert sampled
    assert all(node["widgets_values"][1] == "fixed" for node in sampled)


def test_sound_is_made_and_saved(nodes):
    types = [node["type"] for node in nodes]
    assert {"OviDecode", "OviAudioVAELoader", "CreateVideo", "SaveVideo"} <= set(types)
    videos = [node for node in nodes if node["type"] == "CreateVideo"]
    assert all(slot["link"] for node in videos for slot in node["inputs"] if slot["name"] in ("images", "audio"))
