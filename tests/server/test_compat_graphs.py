"""Graphs made with other Ovi packs: the nodes that ComfyUI replaces with ours, on the real server."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import ROOT, tiny
from support.workflows import fitted, id_of

pytestmark = pytest.mark.server


@pytest.fixture
def replacements(server):
    """The replacements by ours that ComfyUI offers, by the id of the old node."""
    offered = server.get("/node_replacements")
    return {old: new for old, (new,) in offered.items() if new["new_node_id"].startswith("Ovi")}


def test_loaders_of_other_packs_load_with_ours(server):
    prompt = fitted("ovi_text_to_video", width=32, height=32, length=1)
    prompt[id_of(prompt, "OviModelLoader")] = {
        "class_type": "OviEngineLoader",
        "inputs": {"model_precision": Path(tiny.OVI).name, "cpu_offload": True, "device": 0},
    }
    prompt[id_of(prompt, "OviAudioVAELoader")] = {
        "class_type": "OviMMAudioVAELoader",
        "inputs": {"vae": "v1-16.pth", "vocoder": "best_netG.pt", "precision": "fp32"},
    }
    for node in prompt.values():
        node["_meta"] = {"title": node["class_type"]}  # as the frontend sends; the server relies on it
    assert server.run(prompt)


def test_replacements_name_what_nodes_have(server, replacements):
    schemas = server.get("/object_info")
    assert set(replacements) == {"OviMMAudioVAELoader", "OviEngineLoader"}
    assert not replacements.keys() & schemas.keys(), "an old id is one of ComfyUI's or ours"
    for old, new in replacements.items():
        inputs = schemas[new["new_node_id"]]["input"]["required"]
        assert {given["new_id"] for given in new["input_mapping"]} == set(inputs), old
        assert {given["old_id"] for given in new["input_mapping"] if "old_id" in given} <= set(new["old_widget_ids"])


def test_the_page_of_other_packs_names_those_that_are_replaced(replacements):
    page = (ROOT / "docs" / "migration.md").read_text()
    assert [old for old in replacements if f"| `{old}` |" not in page] == []
