"""Notes and errors of nodes on a server that several people share."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from support.comfy_server import error

pytestmark = pytest.mark.server

TEXT = 3  # BinaryEventTypes.TEXT: what `send_progress_text` sends


def prompt(speech, node="1"):
    inputs = {"scene": "A pier.", "speech": speech, "sound": "Rain.", "prompt_style": "720x720_5s", "length": 121}
    return {
        node: {"class_type": "OviPrompt", "inputs": inputs},
        "2": {"class_type": "PreviewAny", "inputs": {"source": [node, 0]}},
    }


async def received(url, prompt, queued_by):
    """Queue a prompt as one of two connected clients, or as none; return the notes that reached each, by node."""
    notes = {"alice": [], "bob": []}

    async def listen(name, socket):
        async for message in socket:
            if message.type is aiohttp.WSMsgType.BINARY and int.from_bytes(message.data[:4], "big") == TEXT:
                size = int.from_bytes(message.data[4:8], "big")
                notes[name].append((message.data[8 : 8 + size].decode(), message.data[8 + size :].decode()))

    async with aiohttp.ClientSession() as session:
        sockets = {name: await session.ws_connect(f"{url}/ws?clientId={name}") for name in notes}
        tasks = [asyncio.create_task(listen(*item)) for item in sockets.items()]
        queued = await session.post(f"{url}/prompt", json={"prompt": prompt} | queued_by)
        prompt_id = (await queued.json())["prompt_id"]
        while prompt_id not in await (await session.get(f"{url}/history/{prompt_id}")).json():
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)  # for what is still on its way
        for task in tasks:
            task.cancel()
    return notes


@pytest.mark.parametrize(
    ("speech", "queued_by", "readers"),
    [
        ("Anna: One", {"client_id": "alice"}, ["alice"]),
        ("Anna: One two", {"client_id": "bob"}, ["bob"]),
        ("Anna: One two three", {}, []),
    ],
)
def test_only_who_queued_a_prompt_gets_its_notes(server, speech, queued_by, readers):
    notes = asyncio.run(received(server.url, prompt(speech), queued_by))
    assert [name for name, texts in notes.items() if texts] == readers
    assert all("Speech: " in text for texts in notes.values() for _, text in texts)


def test_a_note_of_a_node_in_a_subgraph_is_on_the_subgraph_too(server):
    """While the graph around it is open, ComfyUI shows nothing of the nodes inside."""
    inside = prompt("Anna: One two three four", node="7:3:1")
    notes = asyncio.run(received(server.url, inside, {"client_id": "alice"}))["alice"]
    assert [node for node, _ in notes] == ["7:3:1", "7"]
    assert notes[0][1].startswith("Speech: 4 words")
    assert notes[1][1].startswith("Ovi Prompt: Speech: 4 words")
    assert "\n" not in notes[1][1]


def test_half_an_emoji_does_not_stop_the_server(server):
    """An error that the log cannot print would end the thread that runs the prompts."""
    for speech in ("no speaker \ud83d", "Anna: Hi \ud83d"):
        assert "half a character" in error(server.wait(server.queue(prompt(speech))))
    assert server.wait(server.queue(prompt("Anna: Hi again")))["status"]["status_str"] == "success"
