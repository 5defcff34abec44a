"""Many prompts: servers that break, lie or stall, and rows that are neither lost nor generated twice."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json

import numpy as np
import pytest
from aiohttp import web
from PIL import Image

from ovi.tools import batch
from ovi.tools.server import Limits
from support.batch import clip, settings, still, write
from support.fake_comfy import FakeComfy

CLIP = clip()
LIMITS = Limits(connect=5, answer=5, look=0.02, pause=0, row=5, json=2**16, clip=2**20)
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def generate(tmp_path, monkeypatch, capsys):
    """Return a function that runs batch on some servers; it returns the exit code and what was said."""

    def run(*servers, rows=2, **limits):
        monkeypatch.setattr(batch, "Limits", lambda **given: LIMITS._replace(**given | limits))
        table = write(tmp_path, *[{"1.color": number} for number in range(rows)])
        command = [str(table), str(tmp_path / "out"), "--workflow", str(still(tmp_path)), "--timeout", str(LIMITS.row)]
        for server in servers:
            command += ["--server", getattr(server, "url", server)]
        code = batch.main(command)
        return code, capsys.readouterr().err

    return run


def answer(*arguments, **options):
    """Return a fault: an answer, whatever was asked."""

    async def fault(fake, request):
        return web.Response(*arguments, **options)

    return fault


def lie(text):
    """Return a fault: JSON, or what is announced as such."""
    return answer(text=text, content_type="application/json")


async def silence(fake, request):
    """Never answer."""
    await asyncio.Event().wait()


async def hang_up(fake, request):
    """Close the connection without an answer."""
    request.transport.close()
    return web.Response()


async def endless(fake, request):
    """Send more than anybody wants."""
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(bytes(2**16))


async def cut(fake, request):
    """Announce more than comes."""
    response = web.StreamResponse(headers={"Content-Length": "5000"})
    await response.prepare(request)
    await response.write(CLIP[:1000])
    request.transport.close()
    return response


async def stall(fake, request):
    """Stop in the middle."""
    response = web.StreamResponse(headers={"Content-Length": "5000"})
    await response.prepare(request)
    await response.write(CLIP[:1000])
    await asyncio.Event().wait()


async def drip(fake, request):
    """Send a byte now and then, for ever."""
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.05)


def raw(data):
    """Return a fault: bytes that are no HTTP, or hardly."""

    async def fault(fake, request):
        request.transport.write(data)
        request.transport.close()
        return web.Response()

    return fault


def after(fault):
    """Return a fault that queues a prompt all the same."""

    async def queue(fake, request):
        await fake.prompt(request)
        return await fault(fake, request)

    return queue


ERRORS = {str(status): answer(status=status) for status in (302, 404, 429, 500)}
RAW = {
    "garbage": raw(np.random.default_rng(1).bytes(500)),
    "version": raw(b"HTTP/9.9 200 OK\r\n\r\n{}"),
    "status": raw(b"HTTP/1.1 99999 \xff\r\n\r\n"),
    "headers": raw(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 50_000 + b"\r\n"),
    "length": raw(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}"),
    "chunks": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}"),
}
CUTS = {"hang up": hang_up, "endless": endless, "cut": cut}
STALLS = {"silence": silence, "stall": stall, "drip": drip}
LIES = {
    "nothing": answer(),
    "html": answer(text="<html>Welcome</html>", content_type="text/html"),
    "random": answer(body=np.random.default_rng(0).bytes(3000)),
    "no json": lie('{"prompt_id": '),
    "deep": lie("[" * 50_000),
    "null": lie("null"),
    "list": lie("[1, 2]"),
    "number": lie("NaN"),
    "keys": lie('{"error": {}}'),
    "charset": answer(body=b"{}x", headers={"Content-Type": "application/json; charset=klingon"}),
    "zipped": answer(body=b"{}", headers={"Content-Encoding": "gzip"}),
    "bomb": answer(body=gzip.compress(bytes(2**24)), headers={"Content-Encoding": "gzip"}),
}
QUEUES = {
    f"queue {text}": lie(text)
    for text in (
        '{"queue_running": null, "queue_pending": []}',
        '{"queue_running": [[]], "queue_pending": []}',
        '{"queue_running": [7], "queue_pending": []}',
        '{"queue_running": {"a": 1}, "queue_pending": 0}',
    )
}


def history(**changed):
    """Return a fault: the history of the prompt that is asked for, changed."""

    async def fault(fake, request):
        prompt_id = request.match_info["id"]
        return web.json_response({prompt_id: fake.history[prompt_id] | changed} if prompt_id in fake.history else {})

    return fault


HISTORIES = {
    "no status": history(status=None),
    "other status": history(status={"status_str": 7}),
    "no outputs": history(outputs=None),
    "odd outputs": history(outputs={"4": {"images": 3}}),
    "no name": history(outputs={"4": {"images": [{"type": "output"}]}}),
}
BROKEN = [
    *[("look", name) for name in (*ERRORS, *RAW, *CUTS, *STALLS, *LIES, *QUEUES)],
    *[("result", name) for name in ("404", "500", *CUTS, "silence", "no json", "null", "list", "deep", *HISTORIES)],
    *[("prompt", name) for name in (*ERRORS, *CUTS, "silence")],
    *[("prompt, after it is queued", name) for name in (*ERRORS, *CUTS, "silence")],
    *[("view", name) for name in (*ERRORS, *RAW, *CUTS, *STALLS)],
    *[("ws", name) for name in ("302", "404", "500", "hang up", "silence", "html", "random")],
]


@pytest.mark.parametrize(("where", "name"), BROKEN)
def test_a_broken_server_costs_no_row_and_makes_none_twice(tmp_path, generate, where, name):
    fault = (ERRORS | RAW | CUTS | STALLS | LIES | QUEUES | HISTORIES)[name]
    endpoint, _, queued = where.partition(",")
    with FakeComfy(CLIP, **{endpoint: after(fault) if queued else fault}) as fake:
        code, said = generate(fake, **{"answer": 0.1, "row": 1} if name in STALLS else {})
        if not queued or code:  # where the prompt is queued, its queue tells as well as the answer
            assert code == 1
            assert set(settings(tmp_path / "out")) <= {"0001.queued", "0002.queued"}
            assert not list((tmp_path / "out").glob("*.mp4"))
            assert "Row 0001" in said
        assert "Traceback" not in said
        assert all(len(line) < 400 for line in said.splitlines())
        fake.faults.clear()
        assert generate(fake)[0] == 0
        assert sorted(fake.made.values()) == [1, 1]
    assert set(settings(tmp_path / "out")) == {"0001", "0002"}


@pytest.mark.parametrize("name", ["hang up", "404", "silence"])
@pytest.mark.parametrize("where", ["stats", "ws", "look", "prompt", "view"])
def test_a_broken_server_takes_no_rows_from_the_others(tmp_path, generate, where, name):
    """All the rows that it was not asked for are generated."""
    fault = (ERRORS | CUTS | STALLS)[name]
    with FakeComfy(CLIP, **{where: fault}) as broken, FakeComfy(CLIP) as good:
        generate(broken, good, rows=8, answer=0.5)
        out = tmp_path / "out"
        waiting = {name for name in settings(out) if name.endswith(".queued")}
        assert len(waiting) + len(broken.made) <= 2 * batch.FAILURES
        assert len(good.made) >= 8 - batch.FAILURES
        broken.faults.clear()
        assert generate(broken, good, rows=8)[0] == 0
        assert len(settings(out)) == 8


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("0 bytes", b""),
        ("html", b"<html></html>"),
        ("random", np.random.default_rng(0).bytes(3000)),
        ("cut", CLIP[:2000]),
        ("silent", clip(audio=False)),
        ("black", clip(video=False)),
    ],
)
def test_what_is_no_clip_is_reported_and_generated_again(tmp_path, generate, name, body):
    with FakeComfy(CLIP, view=answer(body=body)) as fake:
        code, said = generate(fake)
        assert code == 1
        assert "Row 0002 failed: what the server saved is no clip of the row: it" in said
        assert settings(tmp_path / "out") == {}
        fake.faults.clear()
        assert generate(fake) == (0, "")
        assert set(settings(tmp_path / "out")) == {"0001", "0002"}
        assert sorted(fake.made.values()) == [2, 2]


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (["execution_error", {"node_type": "X", "exception_message": "no\n\x1b[31m\ud800"}], "X: no [31m"),
        (["execution_interrupted", {}], "execution_interrupted"),
        ([], "it failed, without a message"),
        (["execution_error", 7], "it failed, without a message"),
    ],
)
def test_a_row_that_fails_on_the_server_is_reported_and_generated_again(generate, last, message):
    with FakeComfy(CLIP, result=history(status={"status_str": "error", "messages": [last]})) as fake:
        code, said = generate(fake, rows=5)
        assert code == 1
        assert [line for line in said.splitlines() if line] == [f"Row 000{n} failed: {message}" for n in range(1, 6)]
        fake.faults.clear()
        assert generate(fake, rows=5) == (0, "")


def test_a_refused_row_is_reported_in_comfyui_s_words(tmp_path, generate):
    refusal = {"error": {"message": "Bad", "details": "prompt"}, "node_errors": []}
    with FakeComfy(CLIP, prompt=answer(status=400, text=json.dumps(refusal))) as fake:
        code, said = generate(fake)
        assert (code, said) == (1, "Row 0001 failed: Bad: prompt\nRow 0002 failed: Bad: prompt\n")
        assert settings(tmp_path / "out") == {}


IMAGES = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "2": {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "audio": ["3", 0], "fps": 24.0}},
    "3": {"class_type": "EmptyAudio", "inputs": {"duration": 0.1}},
}


def with_images(folder, fake, *names):
    """Run batch with images; return the exit code."""
    (folder / "images.json").write_text(json.dumps(IMAGES))
    table = write(folder, *[{"1.image": name} for name in names])
    return batch.main(
        [str(table), str(folder / "out"), "--workflow", str(folder / "images.json"), "--server", fake.url]
    )


def test_images_are_uploaded_and_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(batch, "Limits", lambda **given: LIMITS)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with FakeComfy(CLIP, upload=answer(status=413)) as fake:
        assert with_images(tmp_path, fake, "a.png", "a.png", "a.png", "a.png") == 1
        said = capsys.readouterr().err
        assert said.count("refuses the image a.png (413)") == 4
        assert not fake.asked
        for fault in (answer(status=500), answer(text="{}"), answer(text="[]"), hang_up):
            fake.faults["upload"] = fault
            assert with_images(tmp_path, fake, "a.png") == 1
            assert "Row 0001 was not queued at" in capsys.readouterr().err
        fake.faults.clear()
        assert with_images(tmp_path, fake, "a.png") == 0
        assert f"Row 0001: {tmp_path / 'a.png'} is uploaded to {fake.url}" in capsys.readouterr().err
        assert fake.uploads == [("a.png", (tmp_path / "a.png").read_bytes())]
        (made,) = fake.made
        assert json.loads(made)["1"]["inputs"]["image"] == "ovi_batch/a.png"


async def deaf(fake, request):
    """A websocket that closes at once."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.close()
    return socket


async def mute(fake, request):
    """A websocket that never says anything."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await asyncio.Event().wait()


async def babble(fake, request):
    """A websocket that says what no ComfyUI says."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    for text in ("", "{", "[]", "7", '{"type": 3}', '{"type": "progress"}', "[" * 9999, '{"type": "status"}'):
        await socket.send_str(text)
    for data in ({"value": "x", "max": None}, {"value": 1}, [], None, {"value": 1, "max": 3}):
        await socket.send_json({"type": "progress", "data": data})
    await socket.send_bytes(bytes(100))
    async for _ in socket:
        pass
    return socket


async def slowly(fake, request):
    """Generate a clip a little later."""
    order = await request.json()
    fake.queue[order["prompt_id"]] = order["prompt"]
    fake.asked.append(order["prompt_id"])

    async def work():
        await asyncio.sleep(0.1)
        fake.add(order["prompt_id"], fake.queue.pop(order["prompt_id"]))

    fake.work = asyncio.create_task(work())
    return web.json_response({})


@pytest.mark.parametrize("socket", [deaf, mute, babble, FakeComfy.ws])
def test_the_queue_tells_where_the_websocket_does_not(generate, socket):
    with FakeComfy(CLIP, ws=socket, prompt=slowly) as fake:
        assert generate(fake) == (0, "")
        assert sorted(fake.made.values()) == [1, 1]


def test_a_row_that_takes_too_long_waits_for_the_next_run(tmp_path, generate):
    async def never(fake, request):
        order = await request.json()
        fake.queue[order["prompt_id"]] = order["prompt"]
        return web.json_response({})

    with FakeComfy(CLIP, prompt=never) as fake:
        code, said = generate(fake, row=0.2)
        assert code == 1
        assert "Row 0001 waits at" in said
        assert "(the clip was not there after 0.2 seconds)" in said
        fake.faults.clear()
        for prompt_id, prompt in fake.queue.items():
            fake.add(prompt_id, prompt)
        fake.queue.clear()
        assert generate(fake) == (0, "")
        assert sorted(fake.made.values()) == [1, 1]


def test_a_server_that_forgot_a_row_is_asked_again(generate):
    """It was started anew."""
    with FakeComfy(CLIP, view=answer(status=500)) as fake:
        generate(fake)
        fake.history.clear()
        fake.faults.clear()
        assert generate(fake) == (0, "")
        assert fake.asked[:2] == fake.asked[2:]


def test_a_server_under_another_address_is_the_same(tmp_path, generate):
    """What it was asked for as 127.0.0.1 is there as localhost."""
    with FakeComfy(CLIP, view=answer(status=500)) as fake, FakeComfy(CLIP) as other:
        assert generate(fake)[0] == 1
        fake.faults["look"] = answer(status=500)
        alias = fake.url.replace("127.0.0.1", "localhost")
        code, said = generate(alias, other)
        assert code == 1
        assert "Row 0001 waits: it was queued at" in said
        fake.faults.clear()
        assert generate(alias, other) == (0, "")
        assert sorted(fake.made.values()) == [1, 1]
        assert not other.made


def test_two_addresses_of_a_server_make_no_row_twice(generate):
    with FakeComfy(CLIP, prompt=slowly) as fake:
        assert generate(fake, fake.url.replace("127.0.0.1", "localhost"), rows=5) == (0, "")
        assert sorted(fake.made.values()) == [1] * 5


def test_a_row_of_a_server_that_is_gone_is_generated_by_another(generate, tmp_path):
    with FakeComfy(CLIP, view=answer(status=500)) as gone:
        generate(gone)
    with FakeComfy(CLIP) as fake:
        code, said = generate(gone, fake, rows=4)  # it may come back
        assert code == 1
        assert f"There is no ComfyUI at {gone.url}" in said
        assert set(settings(tmp_path / "out")) == {"0001.queued", "0002.queued", "0003", "0004"}
        assert generate(fake, rows=4) == (0, "")


@pytest.mark.parametrize("fault", [hang_up, silence, answer(status=500), None])
def test_no_server_at_all_is_one_sentence(generate, fault):
    with FakeComfy(CLIP, stats=fault) as fake:
        server = fake.url if fault else NOWHERE
        code, said = generate(server, answer=0.1)
        assert code == 2
        assert said.startswith(f"There is no ComfyUI at {server} (")
        assert said.count("\n") == 1
