"""Many prompts: `python -m ovi.tools.batch`, on the real server."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import av
import numpy as np
import pytest
from safetensors.torch import save_file

from ovi.tools import batch, train
from support import ROOT, tiny, workflows
from support.batch import settings, still, write
from support.training import clips, tensors
from support.workflows import id_of, node_of

pytestmark = pytest.mark.server

# The settings that take the least time.
LEAST = {"width": "32", "height": "32", "frames": "1", "steps": "1"}
SEED = f"{id_of(workflows.prompt('ovi_text_to_video'), 'RandomNoise')}.noise_seed"

SKIP = f"{id_of(workflows.prompt('ovi_text_to_video'), 'OviGuidance')}.skip_blocks"
STYLE = f"{id_of(workflows.prompt('ovi_text_to_video'), 'OviTextEncode')}.prompt_style"


def fitted(folder, name="ovi_text_to_video"):
    """Write a workflow, fitted to the tiny weights and a CPU; return its path."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(workflows.fitted(name)))
    return path


def test_a_run_killed_at_row_5_ends_with_12_clips_and_no_row_twice(server, tmp_path):
    table = write(tmp_path, *[{"1.color": number} for number in range(1, 13)])
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "ovi.tools.batch",
        table,
        out,
        "--server",
        server.url,
        "--workflow",
        still(tmp_path),
    ]
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
        with av.open(out / f"{name}.mp4") as clip:
            assert json.loads(clip.metadata["prompt"])["1"]["inputs"]["color"] == number
        assert made[name]["row"] == {"1.color": str(number)}


def test_a_clip_that_the_server_finished_after_the_kill_is_fetched(server, tmp_path):
    table = write(tmp_path, {"1.color": "99"})
    run = [str(table), str(tmp_path), "--server", server.url, "--workflow", str(still(tmp_path))]
    assert batch.main(run) == 0
    clip, done = tmp_path / "0001.mp4", set(server.get("/history"))
    content = clip.read_bytes()
    clip.unlink()
    (tmp_path / "0001.json").rename(tmp_path / "0001.queued.json")
    assert batch.main(run) == 0
    assert clip.read_bytes() == content
    assert set(server.get("/history")) == done


def test_a_row_that_fails_is_reported_and_the_others_run(server, tmp_path, capsys):
    table = write(tmp_path, LEAST | {SKIP: "99"}, LEAST | {STYLE: "none"}, LEAST | {SEED: "77"})
    options = ["--server", server.url, "--workflow", str(fitted(tmp_path))]
    assert batch.main([str(table), str(tmp_path), *options]) == 1
    error = capsys.readouterr().err
    assert "Row 0001 failed: OviGuidance: " in error
    assert "Row 0002 failed: OviTextEncode: Value not in list: prompt_style: 'none'" in error
    assert set(settings(tmp_path)) == {"0003", "ovi_text_to_video"}


def test_rows_are_shared_between_servers_and_images_go_along(server, tmp_path):
    (tmp_path / "start.png").write_bytes((server.base / "input" / "example.png").read_bytes())
    table = write(tmp_path, *[LEAST | {"image": "start.png", SEED: str(number)} for number in range(2)])
    both = [server.url, server.url.replace("127.0.0.1", "localhost")]
    workflow = fitted(tmp_path, "ovi_image_to_video")
    out = tmp_path / "out"
    assert (
        batch.main([str(table), str(out), "--workflow", str(workflow), "--server", both[0], "--server", both[1]]) == 0
    )
    assert {entry["server"] for entry in settings(out).values()} == set(both)
    with av.open(out / "0002.mp4") as clip:
        assert node_of(json.loads(clip.metadata["prompt"]), "LoadImage")["inputs"]["image"] == "ovi_batch/start.png"
        assert clip.streams.video[0].width == 32


def test_rows_are_tasks_of_a_ray_cluster(server, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is an optional extra")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    table = write(tmp_path, {"1.width": 32}, {"1.width": 0}, {"1.width": 64})
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ovi.tools.batch", table, out, "--server", server.url]
    command += ["--workflow", still(tmp_path), "--ray"]
    with ray.init(num_cpus=1, resources={"comfyui": 1}, include_dashboard=False, log_to_driver=False) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address_info["gcs_address"])
        done = subprocess.run(command, cwd=ROOT, check=False, text=True, capture_output=True)
    assert done.returncode == 1
    assert "Row 0002 failed: EmptyImage: Value 0 smaller than min of 1: width" in done.stderr
    assert set(settings(out)) == {"0001", "0003"}
    with av.open(out / "0003.mp4") as clip:
        assert clip.streams.video[0].width == 64


def test_a_clip_is_a_workflow_too(server, tmp_path):
    table = write(tmp_path, LEAST)
    options = ["--server", server.url, "--workflow", str(fitted(tmp_path))]
    assert batch.main([str(table), str(tmp_path), *options]) == 0
    (row,) = batch.read(write(tmp_path, {SEED: "5"}), batch.load(tmp_path / "0001.mp4"))
    assert node_of(row.prompt, "EmptyOviLatent")["inputs"]["width"] == 32
    assert node_of(row.prompt, "RandomNoise")["inputs"]["noise_seed"] == 5


def test_a_training_shows_clips_with_its_lora(server, tmp_path):
    """Before the first step and after the last one, of the same prompt and noise."""
    (tmp_path / "clips").mkdir()
    save_file(tensors(clips(1)[0]), tmp_path / "clips" / "0.safetensors")
    table = write(tmp_path, LEAST | {"prompt": "A <S>bell<E> rings", "name": "bell", SEED: "1"})
    out, loras = tmp_path / "out.safetensors", server.models / "loras"
    before = sorted(loras.iterdir())
    command = [server.models / tiny.OVI, "--clips", tmp_path / "clips", "--out", out, "--device", "cpu"]
    command += ["--rank", 2, "--steps", 2, "--warmup", 1, "--lr", 0.1, "--layers", "ffn"]
    command += ["--validate", table, "--server", server.url, "--workflow", fitted(tmp_path), "--loras", loras]
    assert train.main([str(word) for word in command]) == 0
    shown = tmp_path / "out.clips"
    page = (shown / "index.html").read_text()
    names = [f"{step:07}/bell.mp4" for step in (0, 2)]
    assert [f'src="{name}"' in page for name in names] == [True, True]
    found = []
    for name in names:
        with av.open(shown / name) as clip:
            assert [stream.type for stream in clip.streams] == ["video", "audio"]
            found.append(next(clip.decode(video=0)).to_ndarray(format="rgb24").astype(int))
    assert np.abs(found[0] - found[1]).mean() > 1  # of 255
    assert sorted(loras.iterdir()) == before
