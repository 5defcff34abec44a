"""The pack as ComfyUI loads it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from support import ROOT

NODES = {
    "EmptyOviLatent", "OviAnswer", "OviAudioVAELoader", "OviContinue", "OviDecode", "OviGuidance", "OviGuide",
    "OviIdea", "OviImageToVideo", "OviJoin", "OviLoraLoader", "OviModelLoader", "OviParallel", "OviPerson",
    "OviPrompt", "OviReference", "OviRemake", "OviScheduler", "OviShot", "OviStoryboard", "OviTextEncode",
    "OviTimeline", "OviTrainingClips", "OviUniPCSampler",
}  # fmt: skip


@pytest.mark.comfyui
def test_comfyui_registers_the_pack(comfy):
    """Each node under its id, with a title of its own, and the folder of help pages, under the name of its folder."""
    import nodes  # ComfyUI's nodes.py

    module = f"custom_nodes.{ROOT.name}"
    ours = {key for key, cls in comfy.node.items() if getattr(cls, "RELATIVE_PYTHON_MODULE", "") == module}
    assert ours == NODES
    titles = {nodes.NODE_DISPLAY_NAME_MAPPINGS[key] for key in ours}
    assert len(titles) == len(NODES)
    assert all("Ovi" in title for title in titles)
    assert Path(nodes.EXTENSION_WEB_DIRS[ROOT.name]).resolve() == ROOT / "web"


@pytest.mark.comfyui
@pytest.mark.parametrize(
    ("version", "loads"), [("0.3.75", False), ("0.16.2", False), ("0.16.3", True), ("1.0.0", True)]
)
def test_a_comfyui_that_is_too_old_gets_one_sentence(comfy, monkeypatch, caplog, version, loads):
    import comfyui_version

    import nodes  # ComfyUI's nodes.py

    monkeypatch.setattr(comfyui_version, "__version__", version)
    loaded = asyncio.run(nodes.load_custom_node(str(ROOT), module_parent="custom_nodes"))
    assert loaded == loads
    sentence = f"Ovi needs ComfyUI 0.16.3 or later, but this is {version}; update ComfyUI."
    logged = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert loads or (len(logged) == 1 and logged[0].endswith(sentence))


def test_the_floor_is_the_one_that_the_registry_reads():
    (floor,) = re.findall(r'^COMFYUI_FLOOR = "(.+)"', (ROOT / "__init__.py").read_text(), re.M)
    assert f'requires-comfyui = ">={floor}"\n' in (ROOT / "pyproject.toml").read_text()
