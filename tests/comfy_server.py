"""A real ComfyUI server on the CPU, in a base folder of its own, with this pack and the stand-ins mounted."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKS = {"comfyui-ovi": ROOT, "ovi_stand_ins": ROOT / "tests" / "stand_ins"}
SETTINGS = {  # of a user who has seen the welcome pages and wants every workflow checked
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": "1.47.12",
    "Comfy.Workflow.Persist": False,
    "Comfy.Validation.Workflows": True,
    "Comfy.Minimap.Visible": False,
}
START_SECONDS = 600  # 15 on a quiet machine
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names


class ServerError(Exception):
    """ComfyUI refused a request or failed in a prompt; the message is its own."""


class Server:
    """ComfyUI's `main.py` as a child process; use it as a context manager, or call `stop`."""

    def __init__(self, comfyui: Path, base: Path, *options: str) -> None:
        """Lay out the folder `base` and start ComfyUI there; `options` are more of `main.py`'s own."""
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
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=base)

    def __enter__(self) -> Server:
        self.wait_until_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_until_ready(self) -> None:
        """Return once the server answers; if it ends or never does, say so with the end of its log."""
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"ComfyUI did not start; {self._end_of_log()}")
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop as Ctrl+C does, which lets ComfyUI clear its temporary folder."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(60)
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

    def wait(self, prompt_id: str, seconds: float = 300) -> dict[str, Any]:
        """Return the history entry of a prompt, whatever became of it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if entry := self.get(f"/history/{prompt_id}").get(prompt_id):
                return dict(entry)
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended; {self._end_of_log()}")
            time.sleep(0.1)
        raise TimeoutError(f"prompt {prompt_id} was not done after {seconds} s")

    def run(self, prompt: dict[str, Any], workflow: dict[str, Any] | None = None) -> list[Path]:
        """Run a prompt and return the files that it saved; a failure raises with ComfyUI's own message."""
        entry = self.wait(self.queue(prompt, workflow))
        if entry["status"]["status_str"] != "success":
            raise ServerError(error(entry))
        return self.files(entry)

    def files(self, entry: dict[str, Any]) -> list[Path]:
        """The files that a finished prompt saved."""
        shown = [item for output in entry["outputs"].values() for items in output.values() for item in items]
        return [
            self.base / item["type"] / item["subfolder"] / item["filename"]
            for item in shown
            if isinstance(item, dict) and "filename" in item
        ]

    def interrupt(self) -> None:
        """Cancel what runs."""
        self.post("/interrupt", {})

    def free(self) -> None:
        """Ask for every model to be unloaded and for the cache of results to be emptied; ComfyUI does so soon after."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    def memory(self) -> int:
        """Resident memory of the server in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) * 1024

    def _answers(self) -> bool:
        try:
            self.get("/system_stats")
        except OSError:
            return False
        return True

    def _end_of_log(self) -> str:
        return f"the end of its log:\n{self.log.read_text()[-4000:]}"

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
