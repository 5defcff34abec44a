"""A stand-in for a ComfyUI server that generates at once, and misbehaves on demand."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter

from aiohttp import web

STATUS = json.dumps({"type": "status", "data": {}})


class FakeComfy:
    """A server in a thread of its own. `faults` replace its answers, by endpoint: called with it and the request."""

    def __init__(self, clip, **faults):
        """`clip` is the mp4 that it generates from every prompt."""
        self.clip, self.faults = clip, faults
        self.queue, self.history = {}, {}
        self.made = Counter()  # how often each prompt was generated, as JSON
        self.asked, self.uploads = [], []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def add(self, prompt_id, prompt):
        """Generate a clip from a prompt."""
        self.made[json.dumps(prompt)] += 1
        saved = {"images": [{"filename": "a.mp4", "subfolder": "", "type": "output"}], "animated": [True]}
        self.history[prompt_id] = {
            "status": {"status_str": "success", "completed": True, "messages": []},
            "outputs": {"4": saved},
        }

    async def ws(self, request):
        """Say at once, as ComfyUI does, how long the queue is."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str(STATUS)
        async for _ in socket:
            pass
        return socket

    async def _start(self):
        app = web.Application(client_max_size=2**26)
        for method, path, name in [
            ("GET", "/system_stats", "stats"),
            ("GET", "/queue", "look"),
            ("GET", "/history/{id}", "result"),
            ("GET", "/view", "view"),
            ("GET", "/ws", "ws"),
            ("POST", "/prompt", "prompt"),
            ("POST", "/upload/image", "upload"),
        ]:
            app.router.add_route(method, path, self._answer(name))
        self._runner = web.AppRunner(app, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stop(self):
        await self._runner.cleanup()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _answer(self, name):
        async def answer(request):
            return await self.faults.get(name, getattr(type(self), name))(self, request)

        return answer

    async def stats(self, request):
        return web.json_response({"system": {}})

    async def look(self, request):
        items = [[0, prompt_id, prompt, {}, []] for prompt_id, prompt in self.queue.items()]
        return web.json_response({"queue_running": items[:1], "queue_pending": items[1:]})

    async def result(self, request):
        prompt_id = request.match_info["id"]
        found = self.history.get(prompt_id)
        return web.json_response({prompt_id: found} if found else {})

    async def view(self, request):
        return web.Response(body=self.clip)

    async def prompt(self, request):
        order = await request.json()
        self.asked.append(order["prompt_id"])
        self.add(order["prompt_id"], order["prompt"])
        return web.json_response({"prompt_id": order["prompt_id"], "number": 0, "node_errors": {}})

    async def upload(self, request):
        form = await request.post()
        self.uploads.append((form["image"].filename, form["image"].file.read()))
        return web.json_response({"name": form["image"].filename, "subfolder": form["subfolder"], "type": "input"})
