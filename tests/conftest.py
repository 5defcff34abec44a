"""Shared set-up of the tests: where things are, and ComfyUI first on the path.

ComfyUI's `nodes.py` and this pack's `nodes/` share a name, so ComfyUI's is imported first wherever it is used.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from playwright.sync_api import Page

from support import GOLDEN, ROOT, browser, emulated_tests, tiny
from support.comfy_host import DEVICES, Host
from support.comfy_server import Server

COMFYUI = os.environ.get("COMFYUI_PATH")

if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the choice of the device that ComfyUI computes on."""
    parser.addoption("--device", choices=DEVICES, default="cpu", help="that ComfyUI computes on; needs tests/comfyui")
    parser.addoption("--dynamic-vram", action="store_true", help="on cuda: weights move as ComfyUI moves them there")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what the emulated device cannot do."""
    if config.getoption("--device") == "emulated":
        emulated_tests.mark(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run folders in two processes, of 5 GB each at most, and single files in this one, where a debugger can stop."""
    return 0 if all(".py" in argument for argument in config.args) else 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Give each of several processes one thread, the servers and commands that they start too."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference numbers."""
    return GOLDEN


@pytest.fixture(scope="session")
def comfy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """Real ComfyUI in this process, with the pack loaded, on the device of `--device`."""
    if COMFYUI is None:
        pytest.skip("COMFYUI_PATH is not set; 'nox -s tests' sets it")
    device, dynamic_vram = (request.config.getoption(name) for name in ("--device", "--dynamic-vram"))
    host = Host(Path(COMFYUI), tmp_path_factory.mktemp("comfyui"), device, dynamic_vram=dynamic_vram)
    gc.collect()
    gc.freeze()  # what is loaded by now: garbage collections that look at it take most of the tests' time
    return host


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The one ComfyUI server of the process, on a card or the CPU, with tiny random weights in its folder of models."""
    if COMFYUI is None:
        pytest.skip("COMFYUI_PATH is not set; 'nox -s tests' sets it")
    base = tmp_path_factory.mktemp("server")
    tiny.everything(base / "models")
    options = () if request.config.getoption("--device") == "cuda" else ("--cpu",)
    with Server(Path(COMFYUI), base, *options) as running:
        yield running
    shutil.rmtree(running.models)  # 0.6 GB, which pytest would keep for three sessions


@pytest.fixture(scope="module")
def page(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """ComfyUI's frontend, opened in Chromium for the tests of a file: while it is open, asyncio.run() does not work."""
    if browser.CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("CI needs a Chromium on PATH")
        pytest.skip("there is no Chromium on PATH; 'apt-get install chromium' on Debian")
    with browser.frontend(server.url, tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="session")
def input_video(server: Server) -> Path:
    """A silent video of 60 frames at 30 per second in ComfyUI's folder of inputs: the one that a workflow asks for."""
    from support.media import random_frames

    path = server.base / "input" / "video.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("h264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 256, 192, "yuv420p"
        for frame in (random_frames(60, 256, 192) * 255).byte().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def input_videos(server: Server) -> Path:
    """A folder of two videos with captions in ComfyUI's folder of inputs: the one that the workflow of clips asks for.

    One of them has no audio.
    """
    from support.videos import write_video

    folder = server.base / "input" / "my_videos"
    folder.mkdir()
    for name, rate in (("one", 48_000), ("two", None)):
        write_video(folder / f"{name}.mp4", 1.3, rate=rate)
        (folder / f"{name}.txt").write_text("A grey wall. Audio: A tone.")
    return folder


@pytest.fixture(scope="session")
def input_voices(server: Server) -> None:
    """Recordings of three seconds in ComfyUI's folder of inputs: those that the workflows with persons ask for."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * 44100)
    for name in ("voice", "voice_1", "voice_2"):
        soundfile.write(server.base / "input" / f"{name}.wav", noise, 44100)
