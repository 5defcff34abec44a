"""The pack as ComfyUI finds it."""

from __future__ import annotations

import asyncio
import re

import comfy_host
import pytest


def test_pack_loads_in_comfyui(comfy):
    assert comfy.module("ovi") is not None


@pytest.mark.parametrize(
    ("version", "loads"), [("0.3.75", False), ("0.16.2", False), ("0.16.3", True), ("1.0.0", True)]
)
def test_a_comfyui_that_is_too_old_gets_one_sentence(comfy, monkeypatch, caplog, version, loads):
    import comfyui_version

    import nodes  # ComfyUI's nodes.py

    monkeypatch.setattr(comfyui_version, "__version__", version)
    loaded = asyncio.run(nodes.load_custom_node(str(comfy_host.ROOT), module_parent="custom_nodes"))
    assert loaded == loads
    sentence = f"Ovi needs ComfyUI 0.16.3 or later, but this is {version}; update ComfyUI."
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert loads or (len(said) == 1 and said[0].endswith(sentence))


def test_the_floor_is_the_one_that_the_registry_reads():
    (floor,) = re.findall(r'^COMFYUI_FLOOR = "(.+)"', (comfy_host.ROOT / "__init__.py").read_text(), re.M)
    assert f'requires-comfyui = ">={floor}"\n' in (comfy_host.ROOT / "pyproject.toml").read_text()
