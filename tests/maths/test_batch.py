"""Many prompts: `python -m ovi.batch`, on the real server."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest
import tiny

from ovi import batch

ROOT = Path(__file__).resolve().parent.parent
# What takes least time. The stand-in for the text encoder has a seed too, so the noise is named by its node.
LEAST = {"width": "32", "height": "32", "frames": "1", "steps": "1"}
SEED = "7.noise_seed"
HERE, LOST = "http://127.0.0.1:1", "http://127.0.0.1:2"


@pytest.fixture
def write(tmp_path):
    """Write a CSV of rows, each a dict of cells by column; return its path."""

    def write(*rows):
        path = tmp_path / "prompts.csv"
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, {column: None for row in rows for column in row})
            table.writeheader()
            table.writerows(rows)
        return path

    return write


def fitted(folder, name="ovi_text_to_video"):
    """Write a workflow that the tiny weights and a CPU can do; return its path."""
    prompt = json.loads((batch.PROMPTS / f"{name}.json").read_text())
    tiny.fit(prompt)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(prompt))
    return path


def still(folder):
    """Write a workflow of ComfyUI's own nodes, a silent frame of one colour, which takes no time; return its path."""
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": 0}},
        "2": {"class_type": "EmptyAudio", "inputs": {"duration": 0.1, "sample_rate": 44100, "channels": 1}},
        "3": {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "audio": ["2", 0], "fps": 24.0}},
        "4": {
            "class_type": "SaveVideo",
            "inputs": {"video": ["3", 0], "filename_prefix": "still", "format": "auto", "codec": "auto"},
        },
    }
    path = folder / "still.json"
    path.write_text(json.dumps(prompt))
    return path


def settings(out):
    """The settings of every row that is done, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}


def test_cells_set_the_inputs_of_the_workflow_that_fits(write, tmp_path):
    (tmp_path / "start.png").touch()
    table = write(
        {"text": "A fox, in snow", "image": "", "seed": "7", "frames": "241", "cfg": "3.5", "14.fps": "25"},
        {"text": "", "image": "start.png", "seed": "", "frames": "", "cfg": "", "14.fps": ""},
    )
    first, second = batch.read(table)
    changed = {"5": {"prompt": "A fox, in snow"}, "7": {"noise_seed": 7}, "8": {"cfg": 3.5}}
    changed |= {"11": {"length": 241}, "14": {"fps": 25}}
    expected = json.loads(batch.TEXT_TO_VIDEO.read_text())
    for node, inputs in changed.items():
        expected[node]["inputs"] |= inputs
    assert first.prompt == expected
    assert first.image is None
    expected = json.loads(batch.IMAGE_TO_VIDEO.read_text())
    expected["16"]["inputs"]["image"] = "start.png"
    assert second.prompt == expected
    assert second.image == ("16", tmp_path / "start.png")


@pytest.mark.parametrize(
    ("rows", "workflow", "message"),
    [
        ("prompt\nx", None, "has a column 'prompt', but columns are text, video_negative"),
        ("text\n", None, "has no rows"),
        ("text\nA fox, in snow", None, "Row 0001 has more cells than there are columns: put quotes"),
        ("seed\n1\n2.5", None, "Row 0002: seed is '2.5', but a whole number is needed"),
        ("cfg\nhigh", None, "Row 0001: cfg is 'high', but a number is needed"),
        ("14.fps\nmany", None, "14.fps is 'many', but a number, true or false is needed"),
        ("image\nnone.png", None, "Row 0001: there is no image"),
        ("99.fps\n24", None, "no input for the column '99.fps'"),
        (
            "text\nx",
            "ovi_three_clips",
            "'text' fits several nodes of the workflow (6, 7, 8): name one, such as 6.prompt",
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


@pytest.mark.parametrize("name", ["workflow.json", "thumbnail.jpg", "film.mp4", "empty.json"])
def test_a_workflow_in_another_form_is_refused(tmp_path, write, capsys, name):
    graph = (ROOT / "workflows" / "ovi_text_to_video.json").read_bytes()
    picture = (ROOT / "workflows" / "ovi_text_to_video.jpg").read_bytes()
    other = tmp_path / name
    other.write_bytes({"workflow.json": graph, "empty.json": b"{}"}.get(name, picture))
    assert batch.main([str(write({"seed": "1"})), str(tmp_path), "--workflow", str(other)]) == 2
    assert "holds no workflow in API form: give what 'Export (API)' saves" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_named(write, tmp_path, capsys):
    nobody = "http://127.0.0.1:9"
    assert batch.main([str(write({"seed": "1"})), str(tmp_path), "--server", nobody]) == 2
    assert f"There is no ComfyUI at {nobody} (" in capsys.readouterr().err


def test_the_films_of_other_settings_are_not_taken_for_done(write, tmp_path, capsys):
    (row,) = batch.read(write({"seed": "1"}))
    (tmp_path / "0001.mp4").touch()
    (tmp_path / "0001.json").write_text(json.dumps({"prompt": row.prompt}))
    assert batch.is_done(row, tmp_path)
    assert batch.main([str(write({"seed": "2"})), str(tmp_path)]) == 2
    assert "0001.json is of a row with other settings" in capsys.readouterr().err


@pytest.mark.server
def test_a_run_killed_at_row_5_ends_with_12_films_and_no_row_made_twice(server, write, tmp_path):
    table = write(*[{"1.color": number} for number in range(1, 13)])
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ovi.batch", table, out, "--server", server.url, "--workflow", still(tmp_path)]
    before = set(server.get("/history"))
    killed = subprocess.Popen(command, cwd=ROOT)
    while not (out / "0005.queued.json").exists():
        assert killed.poll() is None
        time.sleep(0.001)
    killed.kill()
    killed.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("000[1-4].*")}
    assert len(kept) == 8

    subprocess.run(command, cwd=ROOT, check=True)
    names = [f"{number:04}" for number in range(1, 13)]
    assert sorted(path.name for path in out.iterdir()) == [
        f"{name}.{kind}" for name in names for kind in ("json", "mp4")
    ]
    assert kept == {name: (out / name).stat().st_mtime_ns for name in kept}
    made = settings(out)
    assert {entry["prompt_id"] for entry in made.values()} == set(server.get("/history")) - before
    for number, name in enumerate(names, 1):
        with av.open(out / f"{name}.mp4") as film:
            assert json.loads(film.metadata["prompt"])["1"]["inputs"]["color"] == number
        assert made[name]["row"] == {"1.color": str(number)}


@pytest.mark.server
def test_what_a_server_made_after_the_kill_is_fetched(server, write, tmp_path):
    run = [str(write({"1.color": "99"})), str(tmp_path), "--server", server.url, "--workflow", str(still(tmp_path))]
    assert batch.main(run) == 0
    film, made = tmp_path / "0001.mp4", set(server.get("/history"))
    bytes_of_it = film.read_bytes()
    film.unlink()
    (tmp_path / "0001.json").rename(tmp_path / "0001.queued.json")
    assert batch.main(run) == 0
    assert film.read_bytes() == bytes_of_it
    assert set(server.get("/history")) == made


@pytest.mark.server
def test_a_row_that_fails_is_reported_and_the_others_are_made(server, write, tmp_path, capsys):
    table = write(LEAST | {"frames": "2"}, LEAST | {"width": "16"}, LEAST | {SEED: "77"})
    options = ["--server", server.url, "--workflow", str(fitted(tmp_path))]
    assert batch.main([str(table), str(tmp_path), *options]) == 1
    error = capsys.readouterr().err
    assert "Row 0001 failed: EmptyOviLatent: The length must be 4n + 1 frames, got 2" in error
    assert "Row 0002 failed: EmptyOviLatent: Value 16 smaller than min of 32: width" in error
    assert set(settings(tmp_path)) == {"0003", "ovi_text_to_video"}


@pytest.mark.server
def test_rows_are_shared_between_servers_and_images_go_along(server, write, tmp_path):
    (tmp_path / "start.png").write_bytes((server.base / "input" / "example.png").read_bytes())
    table = write(*[LEAST | {"image": "start.png", SEED: str(number)} for number in range(2)])
    both = [server.url, server.url.replace("127.0.0.1", "localhost")]
    workflow = fitted(tmp_path, "ovi_image_to_video")
    out = tmp_path / "out"
    assert (
        batch.main([str(table), str(out), "--workflow", str(workflow), "--server", both[0], "--server", both[1]]) == 0
    )
    assert {entry["server"] for entry in settings(out).values()} == set(both)
    with av.open(out / "0002.mp4") as film:
        assert json.loads(film.metadata["prompt"])["16"]["inputs"]["image"] == "ovi_batch/start.png"
        assert film.streams.video[0].width == 32


def test_a_lost_server_leaves_the_others_working(write, tmp_path, monkeypatch, capsys):
    """Not even a row that waits at the lost one stops them."""

    async def make(ticket, *_):
        if ticket.server == LOST:
            raise batch.aiohttp.ServerDisconnectedError
        return b"film"

    async def check(server):
        pass

    monkeypatch.setattr(batch, "make", make)
    monkeypatch.setattr(batch, "_check", check)
    rows = batch.read(write(*[{"1.width": str(width)} for width in (32, 64, 96)]), batch.load(still(tmp_path)))
    out = tmp_path / "out"
    out.mkdir()
    batch._ticket(rows[0], out, [LOST], LOST)
    with batch.tqdm(disable=True) as bar:
        assert batch.asyncio.run(batch.run(rows, out, [HERE, LOST], bar)) == 2
    assert f"{LOST} is lost at row 0001" in capsys.readouterr().err
    assert set(settings(out)) == {"0001.queued", "0002", "0003"}


@pytest.mark.server
def test_rows_are_tasks_of_a_ray_cluster(server, write, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is an optional extra")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    table = write({"1.width": 32}, {"1.width": 0}, {"1.width": 64})
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "ovi.batch",
        table,
        out,
        "--server",
        server.url,
        "--workflow",
        still(tmp_path),
        "--ray",
    ]
    with ray.init(num_cpus=1, resources={"comfyui": 1}, include_dashboard=False, log_to_driver=False) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address_info["gcs_address"])
        done = subprocess.run(command, cwd=ROOT, check=False, text=True, capture_output=True)
    assert done.returncode == 1
    assert "Row 0002 failed: EmptyImage: Value 0 smaller than min of 1: width" in done.stderr
    assert set(settings(out)) == {"0001", "0003"}
    with av.open(out / "0003.mp4") as film:
        assert film.streams.video[0].width == 64


@pytest.mark.server
def test_a_film_is_a_workflow_too(server, write, tmp_path):
    assert (
        batch.main([str(write(LEAST)), str(tmp_path), "--server", server.url, "--workflow", str(fitted(tmp_path))]) == 0
    )
    (row,) = batch.read(write({SEED: "5"}), batch.load(tmp_path / "0001.mp4"))
    assert row.prompt["11"]["inputs"]["width"] == 32
    assert row.prompt["7"]["inputs"]["noise_seed"] == 5
