"""Clips of a training on its way, from a ComfyUI that generates at once."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest
from safetensors.torch import load_file, save_file

from ovi.tools import table
from ovi.tools import train as tool
from ovi.tools.previews import LORA_NODE, with_lora
from support import golden_model
from support.batch import clip, write
from support.fake_comfy import FakeComfy
from support.training import LAYERS, clips, tensors

PROMPTS = [{"prompt": "A <S>bell<E> rings", "name": "bell"}, {"prompt": "A dog barks", "name": "dog"}]


@pytest.fixture
def run(tmp_path):
    """A function that trains a LoRA for some steps and shows clips at each second one; returns the exit code."""
    (tmp_path / "clips").mkdir()
    (tmp_path / "loras").mkdir()
    golden_model.write(tmp_path / "model.safetensors", LAYERS)
    save_file(tensors(clips(1)[0]), tmp_path / "clips" / "0.safetensors")
    prompts = write(tmp_path, *PROMPTS)

    def run(server, *more):
        paths = ["--clips", tmp_path / "clips", "--out", tmp_path / "out.safetensors", "--validate", prompts]
        options = [*paths, "--loras", tmp_path / "loras", "--server", server, "--rank", 2, "--steps", 3]
        options += ["--save-every", 1, "--validate-every", 2, "--device", "cpu", *more]
        return tool.main([str(tmp_path / "model.safetensors"), *map(str, options)])

    return run


def test_clips_of_each_step_in_one_page(tmp_path, run):
    """The server gets each LoRA while it is in its folder, and the page shows every prompt at every step."""
    seen = []

    async def prompt(fake, request):
        graph = (await request.json())["prompt"]
        loader = graph.get(LORA_NODE)
        seen.append(None if loader is None else load_file(tmp_path / "loras" / loader["inputs"]["lora_name"]))
        return await FakeComfy.prompt(fake, request)

    with FakeComfy(clip(121), prompt=prompt) as fake:
        assert run(fake.url) == 0
    assert [lora is None for lora in seen] == [True] * 2 + [False] * 4
    final = load_file(tmp_path / "out.safetensors")
    assert all((seen[-1][key] == tensor).all() for key, tensor in final.items())
    assert not list((tmp_path / "loras").iterdir())
    text = (tmp_path / "out.clips" / "index.html").read_text()
    page = ElementTree.fromstring(text.split("<style>")[1].split("</style>")[1].removesuffix("</html>\n"))
    heads, *rows = page.findall("tr")
    assert [head.text for head in heads[1:]] == ["Without the LoRA", "Step 2", "Step 3"]
    assert [row[0].find("p").text for row in rows] == [one["prompt"] for one in PROMPTS]
    assert [cell.find("video").get("src") for cell in rows[0][1:]] == [f"{step:07}/bell.mp4" for step in (0, 2, 3)]
    assert all((tmp_path / "out.clips" / video.get("src")).exists() for video in page.iter("video"))


def test_a_server_that_is_not_there_costs_no_training(tmp_path, run, capsys):
    assert run("http://127.0.0.1:9") == 0
    said = capsys.readouterr().err
    assert "There is no ComfyUI at http://127.0.0.1:9" in said
    assert "Not all clips of step 3 were generated; the training goes on" in said
    assert (tmp_path / "out.safetensors").exists()
    assert (tmp_path / "out.clips" / "index.html").read_text().count("not generated") == 6


def test_the_lora_comes_between_the_model_and_what_uses_it():
    workflow = table.load(table.TEXT_TO_VIDEO)
    before = json.dumps(workflow)
    changed = with_lora(workflow, "a.safetensors")
    users = [node for node, content in changed.items() if [LORA_NODE, 0] in content["inputs"].values()]
    (loader,) = [node for node, content in workflow.items() if content["class_type"] == "OviModelLoader"]
    assert users == [node for node, content in workflow.items() if [loader, 0] in content["inputs"].values()]
    assert users
    assert changed[LORA_NODE]["inputs"]["model"] == [loader, 0]
    assert json.dumps(workflow) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rank", 0), "--validate needs LoRAs (--rank above 0) and --loras"),
        (
            ("--validate-every", 3, "--save-every", 2),
            "--validate-every is 3, but must be a multiple of --save-every, 2",
        ),
        (("--loras", "nowhere"), "There is no folder nowhere; give ComfyUI's models/loras"),
        (("--validate", "nowhere.csv"), "nowhere.csv: No such file"),
    ],
)
def test_what_cannot_be_shown_is_refused_before_training(tmp_path, run, capsys, options, message):
    assert run("http://127.0.0.1:9", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


def test_a_workflow_without_a_model_is_refused(tmp_path, run, capsys):
    (tmp_path / "w.json").write_text(json.dumps({"1": {"class_type": "EmptyImage", "inputs": {}}}))
    assert run("http://127.0.0.1:9", "--workflow", tmp_path / "w.json") == 2
    assert "has 0 nodes 'Load Ovi Model', but one is needed" in capsys.readouterr().err
