"""A ComfyUI server as `batch` uses it: queue a prompt, follow it, and fetch the mp4 that it saves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import aiohttp

UPLOADS = "ovi_batch"  # the folder of the server's inputs that images go to
SECONDS_TO_CONNECT = 30
HEARTBEAT = 600  # seconds between checks whether a server is there; one that loads a model may not answer sooner

Prompt = dict[str, Any]


class Upload(NamedTuple):
    """An image for a server, and the node that loads it."""

    node: str
    name: str
    data: bytes


class Ticket(NamedTuple):
    """Where a prompt is queued, and under which id."""

    server: str
    prompt_id: str


class RowError(Exception):
    """ComfyUI refused a prompt or failed in it; the message is ComfyUI's own, in one line."""


def session(server: str) -> aiohttp.ClientSession:
    """Open a session with a server, in which HTTP errors raise."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=SECONDS_TO_CONNECT)
    return aiohttp.ClientSession(server, timeout=timeout, raise_for_status=True)


async def check(server: str) -> None:
    """Raise ValueError unless a ComfyUI answers there."""
    try:
        async with session(server) as http, http.get("/system_stats"):
            pass
    except aiohttp.ClientError as error:
        raise ValueError(f"There is no ComfyUI at {server} ({error}).") from error


async def generate(
    ticket: Ticket,
    prompt: Prompt,
    uploads: Sequence[Upload],
    progress: Callable[[int, int], None] = lambda *_: None,
) -> bytes:
    """Return the mp4 that a server generates from a prompt, which is queued unless the server has it already.

    `progress` is called with the current step of a node and its number of steps. Raises RowError where ComfyUI refuses
    the prompt or fails, and aiohttp.ClientError where the server is lost.
    """
    prompt_id = ticket.prompt_id
    async with session(ticket.server) as http:
        async with http.ws_connect(
            "/ws", params={"clientId": prompt_id}, max_msg_size=0, heartbeat=HEARTBEAT
        ) as events:
            if not await _is_queued(http, prompt_id) and await _result(http, prompt_id) is None:
                await _queue(http, prompt_id, prompt, uploads)
            async for event in events:
                if event.type != aiohttp.WSMsgType.TEXT:  # a preview
                    continue
                message = event.json()
                if message["type"] == "progress":
                    progress(message["data"]["value"], message["data"]["max"])
                # The status of the queue comes first, and whenever it changes.
                elif message["type"] == "status" and not await _is_queued(http, prompt_id):
                    break
            else:
                raise aiohttp.ServerDisconnectedError
        return await _clip(http, await _result(http, prompt_id))


async def _queue(http: aiohttp.ClientSession, prompt_id: str, prompt: Prompt, uploads: Sequence[Upload]) -> None:
    prompt = copy.deepcopy(prompt)
    for upload in uploads:
        form = aiohttp.FormData({"subfolder": UPLOADS})
        form.add_field("image", upload.data, filename=upload.name)
        async with http.post("/upload/image", data=form) as answer:
            name = (await answer.json())["name"]
        prompt[upload.node]["inputs"]["image"] = f"{UPLOADS}/{name}"
    order = {"prompt": prompt, "prompt_id": prompt_id, "client_id": prompt_id}
    async with http.post("/prompt", json=order, raise_for_status=False) as answer:
        if answer.status == 400:
            raise RowError(_refusal(await answer.json()))
        answer.raise_for_status()


def _refusal(answer: Mapping[str, Any]) -> str:
    """Return what is wrong with a prompt, in ComfyUI's words."""
    nodes = dict(answer["node_errors"])  # an empty one may come as a list
    errors = [
        f"{node['class_type']}: {error['message']}: {error['details']}"
        for node in nodes.values()
        for error in node["errors"]
    ]
    return _one_line("; ".join(errors) or f"{answer['error']['message']}: {answer['error']['details']}")


async def _is_queued(http: aiohttp.ClientSession, prompt_id: str) -> bool:
    """Return whether a prompt is waiting or running."""
    async with http.get("/queue") as answer:
        queue = await answer.json()
    return prompt_id in [item[1] for item in (*queue["queue_running"], *queue["queue_pending"])]


async def _result(http: aiohttp.ClientSession, prompt_id: str) -> dict[str, Any] | None:
    """Return the result of a prompt that is no longer queued; None for one that the server does not know."""
    async with http.get(f"/history/{prompt_id}") as answer:
        history = await answer.json()
    return history.get(prompt_id)


async def _clip(http: aiohttp.ClientSession, result: dict[str, Any] | None) -> bytes:
    """Fetch the one mp4 that a prompt saved."""
    if result is None:
        raise RowError("it was removed from ComfyUI's queue")
    if result["status"]["status_str"] != "success":
        name, details = result["status"]["messages"][-1]
        failed = name == "execution_error"
        raise RowError(_one_line(f"{details['node_type']}: {details['exception_message']}" if failed else name))
    shown = [item for output in result["outputs"].values() for items in output.values() for item in items]
    clips = [
        item
        for item in shown
        if isinstance(item, dict) and item.get("type") == "output" and item["filename"].endswith(".mp4")
    ]
    if len(clips) != 1:
        raise RowError(f"the workflow saved {len(clips)} mp4 files, but a row is one clip")
    async with http.get("/view", params=clips[0]) as answer:
        return await answer.read()


def _one_line(text: str) -> str:
    return " ".join(text.split())
