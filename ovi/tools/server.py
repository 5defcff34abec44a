"""A ComfyUI server as `batch` uses it: queue a prompt, follow it, and fetch the mp4 that it saves.

Whatever a server does ends in time, in an mp4, a RowError or a ServerError. Its queue and its history say what became
of a prompt; the websocket shows progress, and says when the queue has changed.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import aiohttp

UPLOADS = "ovi_batch"  # the folder of the server's inputs that images go to
ENDED = (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
MESSAGE = 1000  # characters of a server's message that are shown

Prompt = dict[str, Any]


class Limits(NamedTuple):
    """What a server may take, in seconds and bytes."""

    connect: float = 30
    answer: float = 300  # without a byte; a server that loads a model may be silent for minutes
    look: float = 5  # between looks at the queue
    pause: float = 2  # after a failure; twice as long after the second in a row
    row: float = 86_400  # from queueing a row to its clip
    json: int = 2**28  # a queue holds the prompts that wait in it
    clip: int = 2**31

    def in_all(self) -> aiohttp.ClientTimeout:
        """Return the limits of a short answer, which may not come byte by byte for ever either."""
        return aiohttp.ClientTimeout(total=self.answer, connect=self.connect)


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


class ServerError(Exception):
    """A server is lost, or answers as no ComfyUI does: what became of a prompt is not known."""


class _Connection(NamedTuple):
    """A session with a server. Its methods raise ServerError."""

    http: aiohttp.ClientSession
    server: str
    limits: Limits

    async def get(self, path: str) -> Any:
        """Return the JSON that the server answers."""
        with _broken(path):
            timeout = self.limits.in_all()
            async with self.http.get(self.server + path, allow_redirects=False, timeout=timeout) as answer:
                return json.loads(await _body(answer, self.limits.json))

    async def is_queued(self, prompt_id: str) -> bool:
        """Return whether a prompt is waiting or running."""
        queue = await self.get("/queue")
        with _broken("/queue"):
            return prompt_id in [item[1] for item in (*queue["queue_running"], *queue["queue_pending"])]

    async def result(self, prompt_id: str) -> dict[str, Any] | None:
        """Return the result of a prompt that is no longer queued; None for one that the server does not know."""
        history = await self.get(f"/history/{prompt_id}")
        with _broken("/history"):
            return None if history.get(prompt_id) is None else dict(history[prompt_id])

    async def knows(self, prompt_id: str) -> bool:
        """Return whether a prompt is queued or finished."""
        return await self.is_queued(prompt_id) or await self.result(prompt_id) is not None

    async def upload(self, upload: Upload) -> str:
        """Hand over an image; return its name there. Raises RowError where the server refuses it."""
        with _broken("/upload/image"):
            form = aiohttp.FormData({"subfolder": UPLOADS})
            form.add_field("image", upload.data, filename=upload.name)
            async with self.http.post(f"{self.server}/upload/image", data=form, allow_redirects=False) as answer:
                if 400 <= answer.status < 500:
                    raise RowError(f"the server refuses the image {upload.name} ({answer.status})")
                return f"{UPLOADS}/{json.loads(await _body(answer, self.limits.json))['name']}"

    async def queue(self, prompt_id: str, prompt: Prompt) -> None:
        """Queue a prompt. Raises RowError where ComfyUI refuses it."""
        order = {"prompt": prompt, "prompt_id": prompt_id, "client_id": prompt_id}
        with _broken("/prompt"):
            async with self.http.post(f"{self.server}/prompt", json=order, allow_redirects=False) as answer:
                if answer.status == 400:
                    raise RowError(_refusal(json.loads(await _body(answer, self.limits.json, 400))))
                _check_status(answer)  # the queue tells the rest

    async def follow(self, prompt_id: str, events: Any, progress: Callable[[int, int], None]) -> None:
        """Return when a prompt is no longer queued."""
        while await self.is_queued(prompt_id):
            await self._wait(events, progress)

    async def _wait(self, events: Any, progress: Callable[[int, int], None]) -> None:
        """Wait until it is time to look at the queue again."""
        try:
            changed = await asyncio.wait_for(_until_the_queue_changes(events, progress), self.limits.look)
        except asyncio.TimeoutError:
            return
        if not changed:  # there is no websocket any more
            await asyncio.sleep(self.limits.look)

    async def clip(self, result: Mapping[str, Any] | None) -> bytes:
        """Fetch the one mp4 that a prompt saved. Raises RowError where it failed or saved another number."""
        if result is None:  # removed by hand, or the server started anew: the next run queues it under the same id
            raise ServerError("the prompt is no longer in its queue, nor in its history")
        with _broken("/history"):
            if result["status"]["status_str"] == "error":
                raise RowError(_failure(result["status"]))
            clips = _saved(result["outputs"]) if result["status"]["status_str"] == "success" else None
        if clips is None:
            raise ServerError("/history has a result that neither failed nor succeeded")
        if len(clips) != 1:
            raise RowError(f"the workflow saved {len(clips)} mp4 files, but a row is one clip")
        with _broken("/view"):
            async with self.http.get(f"{self.server}/view", params=clips[0], allow_redirects=False) as answer:
                return await _body(answer, self.limits.clip)


async def check(server: str, limits: Limits) -> None:
    """Raise ServerError unless something answers as a ComfyUI would."""
    async with _connect(server, limits) as connection:
        with _broken("/system_stats"):
            url, timeout = f"{server}/system_stats", limits.in_all()
            async with connection.http.get(url, allow_redirects=False, timeout=timeout) as answer:
                _check_status(answer)


async def knows(prompt_id: str, server: str, limits: Limits) -> bool:
    """Return whether a server has a prompt, queued or finished. Raises ServerError."""
    async with _connect(server, limits) as connection:
        return await connection.knows(prompt_id)


async def generate(
    ticket: Ticket,
    prompt: Prompt,
    uploads: Callable[[], Sequence[Upload]],
    limits: Limits,
    progress: Callable[[int, int], None] = lambda *_: None,
    before_queueing: Callable[[], None] = lambda: None,
) -> bytes:
    """Return the mp4 that a server generates from a prompt, which is queued unless the server has it already.

    `uploads` reads the images when they are needed, `before_queueing` is called before the order itself is sent, and
    `progress` with the current step of a node and its number of steps. Raises RowError where ComfyUI refuses the prompt
    or fails, and ServerError where the server is lost or breaks its limits.
    """

    async def work() -> bytes:
        async with _connect(ticket.server, limits) as connection, _events(connection, ticket.prompt_id) as events:
            if not await connection.knows(ticket.prompt_id):
                order = copy.deepcopy(prompt)
                for upload in uploads():
                    order[upload.node]["inputs"]["image"] = await connection.upload(upload)
                before_queueing()
                await connection.queue(ticket.prompt_id, order)
            await connection.follow(ticket.prompt_id, events, progress)
            return await connection.clip(await connection.result(ticket.prompt_id))

    try:
        return await asyncio.wait_for(work(), limits.row)
    except asyncio.TimeoutError:
        raise ServerError(f"the clip was not there after {limits.row:g} seconds") from None


@asynccontextmanager
async def _connect(server: str, limits: Limits) -> AsyncIterator[_Connection]:
    """Open a session with a server."""
    timeout = aiohttp.ClientTimeout(total=None, connect=limits.connect, sock_read=limits.answer)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        yield _Connection(http, server, limits)


@asynccontextmanager
async def _events(connection: _Connection, client_id: str) -> AsyncIterator[Any]:
    """Open the websocket of a client."""
    with _broken("/ws"):
        events = await connection.http.ws_connect(
            f"{connection.server}/ws",
            params={"clientId": client_id},
            max_msg_size=connection.limits.json,
            timeout=aiohttp.ClientWSTimeout(ws_close=1),
        )
    try:
        yield events
    finally:
        await events.close()


async def _until_the_queue_changes(events: Any, progress: Callable[[int, int], None]) -> bool:
    """Report progress until the server says that its queue has changed; return False where the websocket closes."""
    while (event := await events.receive()).type not in ENDED:
        if event.type == aiohttp.WSMsgType.TEXT and (message := _message(event.data)):
            if message[0] == "status":
                return True
            progress(*message[1:])
    return False


def _message(text: str) -> tuple[str, int, int] | None:
    """Return a message about the queue or the progress, with the step and the number of steps; None for others."""
    try:
        message = json.loads(text)
        if message["type"] == "status":
            return "status", 0, 0
        step, steps = (message["data"][key] for key in ("value", "max"))
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return ("progress", step, steps) if isinstance(step, int) and isinstance(steps, int) else None


@contextmanager
def _broken(path: str) -> Iterator[None]:
    """Turn whatever can go wrong with an answer, and with reading values from it, into a ServerError."""
    try:
        yield
    except asyncio.TimeoutError as error:
        raise ServerError(f"{path} took too long") from error
    except (aiohttp.ClientError, OSError) as error:
        raise ServerError(f"{path}: {_one_line(str(error)[:200]) or type(error).__name__}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ServerError(f"{path} answers as no ComfyUI does") from error


def _check_status(answer: aiohttp.ClientResponse, status: int = 200) -> None:
    """Raise ServerError for another status: a redirection is none of ComfyUI's, and could lead elsewhere."""
    if answer.status != status:
        raise ServerError(f"{answer.url.path} answers {answer.status} {_one_line(answer.reason or '')}".rstrip())


async def _body(answer: aiohttp.ClientResponse, limit: int, status: int = 200) -> bytes:
    """Return the body of an answer. Raises ServerError for another status, and for more than `limit` bytes."""
    _check_status(answer, status)
    body = bytearray()
    async for chunk in answer.content.iter_chunked(2**16):
        body += chunk
        if len(body) > limit:
            raise ServerError(f"{answer.url.path} sends more than {limit:,} bytes")
    return bytes(body)


def _refusal(answer: Mapping[str, Any]) -> str:
    """Return what is wrong with a prompt, in ComfyUI's words."""
    nodes = dict(answer["node_errors"])  # an empty one may come as a list
    errors = [
        f"{node['class_type']}: {error['message']}: {error['details']}"
        for node in nodes.values()
        for error in node["errors"]
    ]
    return _one_line("; ".join(errors) or f"{answer['error']['message']}: {answer['error']['details']}")


def _failure(status: Mapping[str, Any]) -> str:
    """Return why a prompt failed, in ComfyUI's words."""
    try:
        name, details = status["messages"][-1]
        failed = name == "execution_error"
        return _one_line(f"{details['node_type']}: {details['exception_message']}" if failed else str(name))
    except (ValueError, LookupError, TypeError):
        return "it failed, without a message"


def _saved(outputs: Mapping[str, Mapping[str, Sequence[Any]]]) -> list[dict[str, str]]:
    """Return the mp4 files that a prompt saved, as `/view` asks for them."""
    shown = [item for output in outputs.values() for items in output.values() for item in items]
    return [
        {"filename": str(item["filename"]), "subfolder": str(item.get("subfolder", "")), "type": "output"}
        for item in shown
        if isinstance(item, dict) and item.get("type") == "output" and str(item["filename"]).endswith(".mp4")
    ]


def _one_line(text: str) -> str:
    """Return a message, whatever it is, as one line that can be printed."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text[:MESSAGE])
    return " ".join(printable.split())
