"""Many prompts: `python -m ovi.tools.batch`, without a server."""

from __future__ import annotations

import json

import pytest

from ovi.tools import batch
from support import ROOT
from support.batch import settings, still, write
from support.workflows import id_of, ids, node_of, prompt

FPS = f"{id_of(prompt('ovi_text_to_video'), 'CreateVideo')}.fps"
TEXTS = ids(prompt("ovi_three_clips"), "OviTextEncode")
HERE, LOST = "http://127.0.0.1:1", "http://127.0.0.1:2"


def test_cells_set_the_inputs_of_the_workflow_that_fits(tmp_path):
    (tmp_path / "start.png").touch()
    table = write(
        tmp_path,
        {"text": "A fox, in snow", "image": "", "seed": "7", "frames": "241", "cfg": "3.5", FPS: "25"},
        {"text": "", "image": "start.png", "seed": "", "frames": "", "cfg": "", FPS: ""},
    )
    first, second = batch.read(table)
    changed = {"OviTextEncode": {"prompt": "A fox, in snow"}, "RandomNoise": {"noise_seed": 7}}
    changed |= {"CFGGuider": {"cfg": 3.5}, "EmptyOviLatent": {"length": 241}, "CreateVideo": {"fps": 25}}
    expected = prompt("ovi_text_to_video")
    for kind, inputs in changed.items():
        node_of(expected, kind)["inputs"] |= inputs
    assert first.prompt == expected
    assert first.images == {}
    expected = prompt("ovi_image_to_video")
    node_of(expected, "LoadImage")["inputs"]["image"] = "start.png"
    assert second.prompt == expected
    assert second.images == {id_of(expected, "LoadImage"): tmp_path / "start.png"}


def test_every_image_of_a_workflow_is_checked_and_uploaded(tmp_path):
    """A column NODE.image of one of several Load Image nodes as well."""
    (tmp_path / "first.png").write_bytes(b"first")
    (tmp_path / "last.png").write_bytes(b"last")
    loaders = {node: {"class_type": "LoadImage", "inputs": {"image": "example.png"}} for node in ("16", "17")}
    workflow = prompt("ovi_text_to_video") | loaders
    (row,) = batch.read(write(tmp_path, {"16.image": "first.png", "17.image": "last.png"}), workflow)
    assert row.uploads() == [("16", "first.png", b"first"), ("17", "last.png", b"last")]
    with pytest.raises(ValueError, match=r"Row 0001: there is no image .*lost\.png"):
        batch.read(write(tmp_path, {"16.image": "lost.png"}), workflow)


def test_ray_takes_one_address(tmp_path, capsys):
    """It would use the first and ignore the others."""
    table = write(tmp_path, {"seed": "1"})
    assert batch.main([str(table), str(tmp_path), "--ray", "--server", HERE, "--server", LOST]) == 2
    assert "--ray uses one address" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "workflow", "message"),
    [
        ("prompt\nx", None, "has a column 'prompt', but columns are text, video_negative"),
        ("text\n", None, "has no rows"),
        ("text\nA fox, in snow", None, "Row 0001 has more cells than there are columns: put quotes"),
        ("seed\n1\n2.5", None, "Row 0002: seed is '2.5', but a whole number is needed"),
        ("cfg\nhigh", None, "Row 0001: cfg is 'high', but a number is needed"),
        (f"{FPS}\nmany", None, f"{FPS} is 'many', but a number, true or false is needed"),
        ("image\nnone.png", None, "Row 0001: there is no image"),
        ("99.fps\n24", None, "no input for the column '99.fps'"),
        (
            "text\nx",
            "ovi_three_clips",
            f"'text' matches several nodes of the workflow ({', '.join(TEXTS)}): choose one, such as {TEXTS[0]}.prompt",
        ),
        ("image\nx", "ovi_text_to_video", "no input for the column 'image'"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(tmp_path, capsys, rows, workflow, message):
    table = tmp_path / "prompts.csv"
    table.write_text(rows)
    options = ["--workflow", str(batch.PROMPTS / f"{workflow}.json")] if workflow else []
    assert batch.main([str(table), str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["workflow.json", "thumbnail.jpg", "clip.mp4", "empty.json"])
def test_a_workflow_in_another_form_is_refused(tmp_path, capsys, name):
    graph = (ROOT / "workflows" / "ovi_text_to_video.json").read_bytes()
    thumbnail = (ROOT / "workflows" / "ovi_text_to_video.jpg").read_bytes()
    other = tmp_path / name
    other.write_bytes({"workflow.json": graph, "empty.json": b"{}"}.get(name, thumbnail))
    assert batch.main([str(write(tmp_path, {"seed": "1"})), str(tmp_path), "--workflow", str(other)]) == 2
    assert "has no workflow in API form: use a file from 'Export (API)'" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_named(tmp_path, capsys):
    nobody = "http://127.0.0.1:9"
    assert batch.main([str(write(tmp_path, {"seed": "1"})), str(tmp_path), "--server", nobody]) == 2
    assert f"There is no ComfyUI at {nobody} (" in capsys.readouterr().err


def test_the_clips_of_other_settings_are_not_taken_for_done(tmp_path, capsys):
    (row,) = batch.read(write(tmp_path, {"seed": "1"}))
    (tmp_path / "0001.mp4").touch()
    (tmp_path / "0001.json").write_text(json.dumps({"prompt": row.prompt}))
    assert batch.is_done(row, tmp_path)
    assert batch.main([str(write(tmp_path, {"seed": "2"})), str(tmp_path)]) == 2
    assert "0001.json belongs to a row with other settings" in capsys.readouterr().err


def test_a_lost_server_leaves_the_others_working(tmp_path, monkeypatch, capsys):
    """Not even a row that waits at the lost one stops them."""

    async def generate(ticket, *_):
        if ticket.server == LOST:
            raise batch.aiohttp.ServerDisconnectedError
        return b"clip"

    async def check(server):
        pass

    monkeypatch.setattr(batch, "generate", generate)
    monkeypatch.setattr(batch, "check", check)
    rows = batch.read(
        write(tmp_path, *[{"1.width": str(width)} for width in (32, 64, 96)]), batch.load(still(tmp_path))
    )
    out = tmp_path / "out"
    out.mkdir()
    batch._ticket(rows[0], out, [LOST], LOST)
    with batch.tqdm(disable=True) as bar:
        assert batch.asyncio.run(batch.run(rows, out, [HERE, LOST], bar)) == 2
    assert f"{LOST} is lost at row 0001" in capsys.readouterr().err
    assert set(settings(out)) == {"0001.queued", "0002", "0003"}
