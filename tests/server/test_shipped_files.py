"""What ComfyUI's server says of the files that ship: workflows, subgraphs, translations."""

from __future__ import annotations

import json

import pytest

from authoring.locales import LOCALES
from support import workflows
from support.cli import comfy_cli
from support.comfy_server import ServerError
from support.workflows import GRAPHS, PROMPTS, SUBGRAPHS, node_of

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def object_info(server, input_videos, tmp_path_factory):
    """The schemas of the server's nodes in a file."""
    path = tmp_path_factory.mktemp("schemas") / "object_info.json"
    path.write_text(json.dumps(server.get("/object_info")))
    return path


@pytest.mark.parametrize("workflow", GRAPHS, ids=lambda path: path.stem)
def test_comfy_cli_finds_no_fault_in_a_workflow(object_info, tmp_path, workflow):
    comfy_cli(tmp_path, "workflow", "validate", "--workflow", str(workflow), "--input", str(object_info))


def test_comfy_cli_finds_a_fault(object_info, tmp_path):
    wrong = tmp_path / "wrong.json"
    wrong.write_text(GRAPHS[-1].read_text().replace("wan2.2_vae.safetensors", "model_of_another_name.safetensors"))
    with pytest.raises(AssertionError, match="model_of_another_name"):
        comfy_cli(tmp_path, "workflow", "validate", "--workflow", str(wrong), "--input", str(object_info))


@pytest.mark.usefixtures("input_video", "input_videos", "input_voices")
@pytest.mark.parametrize("path", PROMPTS, ids=lambda path: path.stem)
def test_comfyui_refuses_no_value(server, path):
    """Except the one that is wrong here, so that nothing runs."""
    prompt = workflows.prompt(path.stem)
    for preview in workflows.ids(prompt, "PreviewAny"):  # it needs no VAE, so it would run
        del prompt[preview]
    node_of(prompt, "VAELoader")["inputs"]["vae_name"] = "absent.safetensors"
    with pytest.raises(ServerError) as refusal:
        server.queue(prompt)
    refused = {
        (node["class_type"], error["extra_info"]["input_name"])
        for node in json.loads(str(refusal.value))["node_errors"].values()
        for error in node["errors"]
    }
    assert refused == {("VAELoader", "vae_name")}


def test_comfyui_lists_the_subgraphs(server):
    listed = server.get("/global_subgraphs").values()
    ours = {entry["name"] for entry in listed if entry["info"]["node_pack"] == "custom_nodes.comfyui-ovi"}
    assert ours == {path.stem for path in SUBGRAPHS}


def test_comfyui_serves_every_language(server):
    served = server.get("/i18n")
    assert set(served) == {folder.name for folder in LOCALES.iterdir()}
    for language in served:
        written = json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))
        assert served[language] == {"nodeDefs": written}, language
