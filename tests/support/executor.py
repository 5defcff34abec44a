"""Prompts run by ComfyUI's own executor in this process, with its caches; stand-ins enter as nodes."""

from __future__ import annotations

import asyncio
from typing import Any

VALUES: dict[str, Any] = {}  # by name: what the node `Given` returns


class Given:
    """A node that returns one of `VALUES`."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "give", ("*",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - ComfyUI calls it so
        return {"required": {"name": ("STRING", {})}}

    def give(self, name):
        return (VALUES[name],)


class Executor:
    """One executor, whose cache lasts from prompt to prompt, and the messages that it sends to a client."""

    client_id = last_node_id = last_prompt_id = None

    def __init__(self, comfy, monkeypatch, cache="CLASSIC"):
        """`cache` is one of ComfyUI's: CLASSIC, or RAM_PRESSURE, which keeps little that the prompt has not."""
        import execution
        from server import PromptServer

        self.sockets_metadata: dict[str, Any] = {}
        self.sent: list[tuple[str, Any]] = []
        self.progress: list[tuple[str, str]] = []  # node and text of each note
        comfy.node["Given"] = Given
        monkeypatch.setattr(PromptServer, "instance", self, raising=False)
        sizes = {"lru": 0, "ram": 0, "ram_inactive": 1e6}  # GB: as on a machine whose memory is never all free
        self._validate = execution.validate_prompt
        self._executor = execution.PromptExecutor(self, execution.CacheType[cache], sizes)

    def send_sync(self, event, data, client=None):
        """Take a message, as the server would."""
        self.sent.append((event, data))

    def send_progress_text(self, text, node, client):
        """Take a note, as the server would."""
        self.progress.append((node, text))

    @property
    def notes(self):
        """The texts of the notes."""
        return [text for _, text in self.progress]

    def outputs(self, node):
        """Return what was shown on a node, in order."""
        shown = [data for event, data in self.sent if event == "executed" and data["display_node"] == node]
        return [data["output"] for data in shown if data["output"]]

    def videos(self, node):
        """Return the files of the videos that were shown on a node, in order."""
        return [output["images"][0] for output in self.outputs(node) if any(output.get("animated", ()))]

    def shown(self, node):
        """Return the texts that were shown on a node, in order."""
        return [output["text"][0] for output in self.outputs(node) if "text" in output]

    def run(self, prompt):
        """Run a prompt; return whether it succeeded and, if not, the last message, which says why."""
        self.sent, self.progress = [], []
        valid, error, outputs, of_nodes = asyncio.run(self._validate("1", prompt, None))
        assert valid, (error, of_nodes)
        self._executor.execute(prompt, "1", {"client_id": "tests"}, outputs)
        return None if self._executor.success else self._executor.status_messages[-1]

    def executed(self, ending=""):
        """Return the ids of the nodes that ran, of those that end so."""
        return [data["node"] for event, data in self.sent if event == "executing" and data["node"].endswith(ending)]
