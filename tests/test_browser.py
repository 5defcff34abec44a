"""The shipped workflows in ComfyUI's own frontend: they open, convert, and one runs to a film that plays."""

from __future__ import annotations

import json
from pathlib import Path

import browser
import pytest
import tiny

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_opens_and_converts(page, workflow):
    browser.load_workflow(page, json.loads(workflow.read_text()))
    prompt = browser.converted(page)[1]
    for node in prompt.values():
        del node["_meta"]
    assert prompt == json.loads((ROOT / "tests" / "workflows" / f"{workflow.stem}.api.json").read_text())
    assert browser.missing_types(page) == []
    assert browser.complaints(page) == []


def test_a_missing_model_is_offered_for_download(page):
    """The text encoder is the one file of the workflows that the tests have no stand-in for."""
    browser.load_workflow(page, json.loads(WORKFLOWS[0].read_text()))
    (offer,) = browser.missing_models(page)
    assert offer["name"] == "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
    assert offer["directory"] == "text_encoders"
    assert offer["url"].startswith("https://huggingface.co/Comfy-Org/")


def test_a_workflow_runs_to_a_film_that_plays(page):
    workflow = json.loads((ROOT / "workflows" / "ovi_text_to_video.json").read_text())
    (text_loader,) = [node for node in workflow["nodes"] if node["type"] == "CLIPLoader"]
    text_loader |= {"type": "OviTinyTextLoader", "widgets_values": [tiny.TEXT_DIM, 0]}
    browser.load_workflow(page, workflow)
    browser.set_widgets(page, tiny.SMALL)
    browser.run(page)
    film = browser.play_video(page)
    assert film["size"] == [256, 160]
    assert film["seconds"] == pytest.approx(49 / 24, abs=1 / 24)
    assert film["error"] is None
    assert film["frames"] > 1
    assert film["audio_bytes"] > 0
