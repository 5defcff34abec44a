"""A real ComfyUI server on the CPU, in a base folder of its own, with this pack and the stand-ins mounted."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from . import ROOT

PACKS = {
    "comfyui-ovi": ROOT,
    "ovi_miniature": ROOT / "miniature",
    "ovi_stand_ins": ROOT / "tests" / "support" / "stand_ins",
}
SETTINGS = {  # of a user who has seen the welcome pages and wants every workflow checked
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": "1.47.12",
    "Comfy.Workflow.Persist": False,
    "Comfy.Validation.Workflows": True,
    "Comfy.Minimap.Visible": False,
}
SECONDS = 600  # for starting or for one prompt; 15 on a quiet machine
# glibc keeps freed tensors below 32 MB for later use; so they go back at once from 1 MB on, and memory can be told.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "1000000"}
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names


class ServerError(Exception):
    """ComfyUI refused a request or failed in a prompt; the message is its own."""


class Server:
    """ComfyUI's `main.py` as a child process. It starts at once; `with` waits until it answers, and stops it."""

    def __init__(self, comfyui: Path, base: Path, *options: str) -> None:
        """Lay out the folder `base` and start ComfyUI there; `options` are more of `main.py`'s own."""
        comfyui, base = comfyui.resolve(), base.resolve()
        self.base = base
        self.log = base / "comfyui.log"
        self.models = base / "models"
        user = base / "user" / "default"
        for folder in (base / "custom_nodes", base / "input", self.models, user / "workflows", user / "subgraphs"):
            folder.mkdir(parents=True, exist_ok=True)
        for name, target in PACKS.items():
            (base / "custom_nodes" / name).symlink_to(target, target_is_directory=True)
        (base / "input" / "example.png").write_bytes((comfyui / "input" / "example.png").read_bytes())
        (user / "comfy.settings.json").write_text(json.dumps(SETTINGS))
        (user / "comfy.templates.json").write_text("[]")
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [
            sys.executable, str(comfyui / "main.py"), "--listen", "127.0.0.1", "--port", str(self.port),
            "--base-directory", str(base), "--database-url", "sqlite:///:memory:", "--disable-api-nodes",
            "--disable-all-custom-nodes", "--whitelist-custom-nodes", *PACKS, *options,
        ]  # fmt: skip
        with self.log.open("wb") as log:
            environment = os.environ | ENVIRONMENT
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=base, env=environment)

    def __enter__(self) -> Server:
        self._wait_until(self._answers)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop as Ctrl+C does, which lets ComfyUI clear its temporary folder."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def get(self, path: str) -> Any:
        """GET a JSON answer."""
        return self._request(path, None)

    def post(self, path: str, data: object) -> Any:
        """POST JSON; return the JSON answer, None for an empty one."""
        return self._request(path, json.dumps(data).encode())

    def queue(self, prompt: dict[str, Any], workflow: dict[str, Any] | None = None) -> str:
        """Queue a prompt in API form, with its workflow as the browser sends it along; return the prompt's id."""
        extra = {"extra_pnginfo": {"workflow": workflow}} if workflow else {}
        answer = self.post("/prompt", {"prompt": prompt, "client_id": uuid.uuid4().hex, "extra_data": extra})
        return str(answer["prompt_id"])

    def wait(self, prompt_id: str) -> dict[str, Any]:
        """Return the history entry of a prompt, whatever became of it."""
        self._wait_until(lambda: prompt_id in self.get(f"/history/{prompt_id}"))
        return dict(self.get(f"/history/{prompt_id}")[prompt_id])

    def wait_for_log(self, text: str) -> None:
        """Return once the log holds a text."""
        self._wait_until(lambda: text in self.log.read_text())

    def run(self, prompt: dict[str, Any], workflow: dict[str, Any] | None = None) -> list[Path]:
        """Run a prompt and return the files that it saved; a failure raises with ComfyUI's own message."""
        entry = self.wait(self.queue(prompt, workflow))
        if entry["status"]["status_str"] != "success":
            raise ServerError(error(entry))
        return self.files(entry)

    def files(self, entry: dict[str, Any]) -> list[Path]:
        """The files that a finished prompt saved, without those that nodes only show."""
        shown = [item for output in entry["outputs"].values() for items in output.values() for item in items]
        return [
            self.base / item["type"] / item["subfolder"] / item["filename"]
            for item in shown
            if isinstance(item, dict) and item.get("type") == "output"
        ]

    def memory_when_free(self) -> int:
        """Unload every model and empty the cache of results; return the bytes of memory that are the server's alone."""
        self.post("/free", {"unload_models": True, "free_memory": True})
        for text in ("one prompt, after which it is done", "another, which starts when it is done"):
            self.run({"1": {"class_type": "PreviewAny", "inputs": {"source": text}}})
        return int(psutil.Process(self.process.pid).memory_full_info().uss)

    def _answers(self) -> bool:
        try:
            self.get("/system_stats")
        except OSError:
            return False
        return True

    def _wait_until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not done():
            if (ended := self.process.poll() is not None) or time.monotonic() > deadline:
                self.stop()
                what = "ended by itself" if ended else f"took more than {SECONDS} s"
                raise RuntimeError(f"ComfyUI {what}; the end of its log:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.1)

    def _request(self, path: str, body: bytes | None) -> Any:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        try:
            with LOCAL.open(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as refusal:
            raise ServerError(refusal.read().decode()) from None
        return json.loads(text) if text else None


def error(entry: dict[str, Any]) -> str:
    """What went wrong in a prompt, in ComfyUI's words."""
    name, message = entry["status"]["messages"][-1]
    return f"{message['node_type']}: {message['exception_message']}" if name == "execution_error" else name


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
