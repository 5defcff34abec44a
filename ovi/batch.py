"""Many prompts: a film for every row of a CSV, made by one or several ComfyUI servers; `python -m ovi.batch --help`.

A column sets an input of a workflow in API form; an empty cell leaves what the workflow has. Row 1 becomes 0001.mp4 and
its settings, 0001.json. Before a row is queued, 0001.queued.json holds the id that it gets; that file is renamed last.
So a run that was stopped goes on without making a row twice, not even the one that a server was at.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import csv
import json
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from tqdm import tqdm

PROMPTS = Path(__file__).resolve().parent.parent / "workflows" / "api"
TEXT_TO_VIDEO = PROMPTS / "ovi_text_to_video.json"
IMAGE_TO_VIDEO = PROMPTS / "ovi_image_to_video.json"
SERVER = "http://127.0.0.1:8188"  # where ComfyUI listens if it is not told otherwise
UPLOADS = "ovi_batch"  # the folder of the server's inputs that images go to
SECONDS_TO_CONNECT = 30
HEARTBEAT = 600  # seconds between questions whether a server is there; loading a model may keep it from answering soon

Prompt = dict[str, Any]


class Kind(NamedTuple):
    """What cells are, in words, and how one is read; ValueError for another."""

    what: str
    read: Callable[[str], Any]


TEXT = Kind("a text", str)
WHOLE = Kind("a whole number", int)
NUMBER = Kind("a number", float)
VALUE = Kind("a number, true or false", json.loads)


class Column(NamedTuple):
    """What a column sets: the inputs of these names, and what its cells are."""

    inputs: tuple[str, ...]
    kind: Kind


COLUMNS = {
    "text": Column(("prompt",), TEXT),
    "video_negative": Column(("video_negative",), TEXT),
    "audio_negative": Column(("audio_negative",), TEXT),
    "image": Column(("image",), TEXT),
    "seed": Column(("noise_seed", "seed"), WHOLE),
    "width": Column(("width",), WHOLE),
    "height": Column(("height",), WHOLE),
    "frames": Column(("length",), WHOLE),
    "steps": Column(("steps",), WHOLE),
    "cfg": Column(("cfg",), NUMBER),
    "audio_cfg": Column(("audio_cfg",), NUMBER),
}


class Upload(NamedTuple):
    """An image for a server, and the node that loads it."""

    node: str
    name: str
    data: bytes


class Row(NamedTuple):
    """A row: the name of its files, its cells by column, the prompt (API form) that they make, and its image."""

    name: str
    cells: Mapping[str, str]
    prompt: Prompt
    image: tuple[str, Path] | None  # the node that loads it, and the file

    def upload(self) -> Upload | None:
        """Read the image."""
        return self.image and Upload(self.image[0], self.image[1].name, self.image[1].read_bytes())


class Ticket(NamedTuple):
    """Where a row is queued, and under which id."""

    server: str
    prompt_id: str


class RowError(Exception):
    """ComfyUI refused a row or failed in it; the message is its own, in one line."""


def load(path: Path) -> Prompt:
    """Return a workflow in API form, from its JSON file or from an mp4 that ComfyUI saved; ValueError for others."""
    try:
        prompt = json.loads(_metadata(path) if path.suffix == ".mp4" else path.read_text(encoding="utf-8"))
        if prompt and all("class_type" in node for node in prompt.values()):
            return dict(prompt)
    except (ValueError, TypeError, AttributeError):  # of another kind or form
        pass
    raise ValueError(f"{path} holds no workflow in API form: give what 'Export (API)' saves, or an mp4 from ComfyUI.")


def _metadata(film: Path) -> str:
    """The prompt that ComfyUI wrote into an mp4."""
    import av

    with av.open(film) as container:
        return str(container.metadata.get("prompt", ""))


def read(table: Path, workflow: Prompt | None = None) -> list[Row]:
    """Return the rows of a CSV file, set into a workflow; by default image to video for those that have an image.

    Raises ValueError for a column or a cell that cannot be used.
    """
    with table.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.DictReader(file)
        if unknown := [name for name in lines.fieldnames or () if name not in COLUMNS and "." not in name]:
            raise ValueError(
                f"{table} has a column '{unknown[0]}', but columns are {', '.join(COLUMNS)}, or NODE.INPUT of the "
                "workflow, such as 1.model_name."
            )
        rows = [_row(f"{number:04}", cells, table.parent, workflow) for number, cells in enumerate(lines, 1)]
    if not rows:
        raise ValueError(f"{table} has no rows; needed are a line with the names of columns, and a line for each film.")
    return rows


def _row(name: str, cells: Mapping[str | None, str | None], folder: Path, workflow: Prompt | None) -> Row:
    """Set the cells of a row into a copy of the workflow."""
    if None in cells:
        raise ValueError(f"Row {name} has more cells than there are columns: put quotes around a text with commas.")
    given = {column: cell for column, cell in cells.items() if column and cell and cell.strip()}
    prompt = copy.deepcopy(workflow) or load(IMAGE_TO_VIDEO if "image" in given else TEXT_TO_VIDEO)
    image = None
    for column, cell in given.items():
        node, name_of_input, kind = _target(prompt, column)
        try:
            prompt[node]["inputs"][name_of_input] = kind.read(cell)
        except ValueError:
            raise ValueError(f"Row {name}: {column} is '{cell}', but {kind.what} is needed.") from None
        if column == "image":
            image = node, folder / cell
            if not image[1].is_file():
                raise ValueError(f"Row {name}: there is no image {image[1]}.")
    return Row(name, given, prompt, image)


def _target(prompt: Prompt, column: str) -> tuple[str, str, Kind]:
    """Return the one node and input that a column sets, and what its cells are; ValueError where there is not one."""
    node_id, _, input_id = column.partition(".")
    inputs, kind = COLUMNS.get(column) or Column((input_id,), VALUE)
    found = [
        (node, name)
        for node in ([node_id] if input_id else prompt)
        for name in inputs
        if node in prompt and not isinstance(prompt[node]["inputs"].get(name, []), list)  # a list is a wire
    ]
    if not found:
        raise ValueError(f"The workflow has no input for the column '{column}'.")
    if len(found) > 1:
        nodes = ", ".join(node for node, _ in found)
        raise ValueError(
            f"The column '{column}' fits several nodes of the workflow ({nodes}): name one, such as "
            f"{'.'.join(found[0])}."
        )
    node, name = found[0]
    return node, name, TEXT if isinstance(prompt[node]["inputs"][name], str) else kind


def is_done(row: Row, out: Path) -> bool:
    """Whether a row has its film and settings; ValueError where they are those of another row."""
    settings = out / f"{row.name}.json"
    if not (settings.exists() and (out / f"{row.name}.mp4").exists()):
        return False
    if json.loads(settings.read_text(encoding="utf-8"))["prompt"] != row.prompt:
        raise ValueError(
            f"{settings} is of a row with other settings: name another folder, or delete it to make the row anew."
        )
    return True


def _ticket(row: Row, out: Path, servers: Sequence[str], server: str) -> Ticket:
    """Return where the row was queued by a run that was stopped, or write down that it goes to `server`."""
    path = out / f"{row.name}.queued.json"
    if path.exists():
        queued = json.loads(path.read_text(encoding="utf-8"))
        if queued["prompt"] == row.prompt and queued["server"] in servers:
            return Ticket(queued["server"], queued["prompt_id"])
    ticket = Ticket(server, str(uuid.uuid4()))
    settings = {**ticket._asdict(), "row": row.cells, "prompt": row.prompt}
    _write(path, json.dumps(settings, indent=2, ensure_ascii=False).encode())
    return ticket


def _keep(row: Row, out: Path, film: bytes) -> None:
    """Write the film of a row; its settings, last, say that it is done."""
    _write(out / f"{row.name}.mp4", film)
    (out / f"{row.name}.queued.json").replace(out / f"{row.name}.json")


def _drop(row: Row, out: Path, error: object) -> None:
    """Report a row that failed; the next run queues it anew."""
    (out / f"{row.name}.queued.json").unlink()
    tqdm.write(f"Row {row.name} failed: {error}", file=sys.stderr)


def _write(path: Path, data: bytes) -> None:
    """Write a file that is whole or not there."""
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_bytes(data)
    temporary.replace(path)


def _session(server: str) -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=SECONDS_TO_CONNECT)
    return aiohttp.ClientSession(server, timeout=timeout, raise_for_status=True)


async def make(
    ticket: Ticket, prompt: Prompt, upload: Upload | None, progress: Callable[[int, int], None] = lambda *_: None
) -> bytes:
    """Return the mp4 that a server makes of a prompt, which is queued unless the server has it already.

    `progress` is told the step that a node is at, and of how many. Raises RowError where ComfyUI refuses or fails, and
    aiohttp.ClientError where the server is lost.
    """
    prompt_id = ticket.prompt_id
    async with _session(ticket.server) as http:
        async with http.ws_connect(
            "/ws", params={"clientId": prompt_id}, max_msg_size=0, heartbeat=HEARTBEAT
        ) as events:
            if not await _is_queued(http, prompt_id) and await _result(http, prompt_id) is None:
                await _queue(http, prompt_id, prompt, upload)
            async for event in events:
                if event.type != aiohttp.WSMsgType.TEXT:  # a preview
                    continue
                message = event.json()
                if message["type"] == "progress":
                    progress(message["data"]["value"], message["data"]["max"])
                # The state of the queue comes at first, and whenever it changes.
                elif message["type"] == "status" and not await _is_queued(http, prompt_id):
                    break
            else:
                raise aiohttp.ServerDisconnectedError
        return await _film(http, await _result(http, prompt_id))


async def _queue(http: aiohttp.ClientSession, prompt_id: str, prompt: Prompt, upload: Upload | None) -> None:
    if upload:
        form = aiohttp.FormData({"subfolder": UPLOADS})
        form.add_field("image", upload.data, filename=upload.name)
        async with http.post("/upload/image", data=form) as answer:
            name = (await answer.json())["name"]
        prompt = copy.deepcopy(prompt)
        prompt[upload.node]["inputs"]["image"] = f"{UPLOADS}/{name}"
    order = {"prompt": prompt, "prompt_id": prompt_id, "client_id": prompt_id}
    async with http.post("/prompt", json=order, raise_for_status=False) as answer:
        if answer.status == 400:
            raise RowError(_refusal(await answer.json()))
        answer.raise_for_status()


def _refusal(answer: Mapping[str, Any]) -> str:
    """What is wrong with a prompt, in ComfyUI's words."""
    nodes = dict(answer["node_errors"])  # an empty one may come as a list
    errors = [
        f"{node['class_type']}: {error['message']}: {error['details']}"
        for node in nodes.values()
        for error in node["errors"]
    ]
    return _one_line("; ".join(errors) or f"{answer['error']['message']}: {answer['error']['details']}")


async def _is_queued(http: aiohttp.ClientSession, prompt_id: str) -> bool:
    """Whether a prompt waits or runs."""
    async with http.get("/queue") as answer:
        queue = await answer.json()
    return prompt_id in [item[1] for item in (*queue["queue_running"], *queue["queue_pending"])]


async def _result(http: aiohttp.ClientSession, prompt_id: str) -> dict[str, Any] | None:
    """What became of a prompt that is no longer queued; None for one that the server does not know."""
    async with http.get(f"/history/{prompt_id}") as answer:
        history = await answer.json()
    return history.get(prompt_id)


async def _film(http: aiohttp.ClientSession, result: dict[str, Any] | None) -> bytes:
    """Fetch the one mp4 that a prompt saved."""
    if result is None:
        raise RowError("it was taken from ComfyUI's queue")
    if result["status"]["status_str"] != "success":
        name, details = result["status"]["messages"][-1]
        failed = name == "execution_error"
        raise RowError(_one_line(f"{details['node_type']}: {details['exception_message']}" if failed else name))
    shown = [item for output in result["outputs"].values() for items in output.values() for item in items]
    films = [
        item
        for item in shown
        if isinstance(item, dict) and item.get("type") == "output" and item["filename"].endswith(".mp4")
    ]
    if len(films) != 1:
        raise RowError(f"the workflow saved {len(films)} mp4 files, but a row is one film")
    async with http.get("/view", params=films[0]) as answer:
        return await answer.read()


def _one_line(text: str) -> str:
    return " ".join(text.split())


async def run(rows: Sequence[Row], out: Path, servers: Sequence[str], bar: tqdm[None]) -> int:
    """Make the films of the rows, one at a time on each server; return how many were made.

    A server that is lost takes no more rows. Raises ValueError where a server cannot be reached at first.
    """
    for server in servers:
        await _check(server)
    left = iter(rows)
    return sum(await asyncio.gather(*[_serve(server, left, out, servers, bar) for server in servers]))


async def _check(server: str) -> None:
    try:
        async with _session(server) as http, http.get("/system_stats"):
            pass
    except aiohttp.ClientError as error:
        raise ValueError(f"There is no ComfyUI at {server} ({error}).") from error


async def _serve(server: str, rows: Iterator[Row], out: Path, servers: Sequence[str], bar: tqdm[None]) -> int:
    """Have a server make what the others have not taken yet; return how many rows it made."""
    made = 0
    for row in rows:

        def progress(step: int, steps: int, name: str = row.name) -> None:
            bar.set_postfix_str(f"{name}: {step}/{steps}")

        ticket = _ticket(row, out, servers, server)
        try:
            film = await make(ticket, row.prompt, row.upload(), progress)
        except (RowError, aiohttp.ClientResponseError) as error:
            _drop(row, out, error)
        except aiohttp.ClientError as error:
            tqdm.write(f"{ticket.server} is lost at row {row.name} ({error}).", file=sys.stderr)
            if ticket.server == server:
                break
            continue  # it waits at another server
        else:
            _keep(row, out, film)
            made += 1
        bar.update()
    return made


def run_on_ray(rows: Sequence[Row], out: Path, server: str, bar: tqdm[None]) -> int:
    """Make the films of the rows as tasks of a running Ray cluster; return how many were made.

    A task takes one unit of the resource `comfyui` and asks the ComfyUI at `server`, as seen from the machine that it
    runs on.
    """
    import ray

    def task(ticket: Ticket, prompt: Prompt, upload: Upload | None) -> bytes | str:
        try:
            return asyncio.run(make(ticket, prompt, upload))
        except (RowError, aiohttp.ClientError) as error:
            return str(error)

    ray.init(address="auto", log_to_driver=False)
    remote = ray.remote(num_cpus=0, resources={"comfyui": 1})(task)
    tasks = {remote.remote(_ticket(row, out, [server], server), row.prompt, row.upload()): row for row in rows}
    made = 0
    while tasks:
        (ready, *_), _ = ray.wait(list(tasks))
        row = tasks.pop(ready)
        outcome = ray.get(ready)
        if isinstance(outcome, bytes):
            _keep(row, out, outcome)
            made += 1
        else:
            _drop(row, out, outcome)
        bar.update()
    return made


def _address(text: str) -> str:
    """Check the address of a server."""
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"'{text}' is no address of a ComfyUI; one is {SERVER}")
    return text.rstrip("/")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ovi.batch", description="Make a film for every row of a CSV file.")
    parser.add_argument("csv", type=Path, help=f"columns, all optional: {', '.join(COLUMNS)}, or NODE.INPUT")
    parser.add_argument("out", type=Path, help="a folder, for an mp4 and its settings in JSON for each row")
    parser.add_argument(
        "--server", type=_address, action="append", help=f"a ComfyUI ({SERVER}); may be given several times"
    )
    parser.add_argument("--workflow", type=Path, help="a workflow in API form, or an mp4 that ComfyUI made with it")
    parser.add_argument("--ray", action="store_true", help="spread the rows over a running Ray cluster")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Make what is left of a CSV; return the exit code: 0, or 1 where rows failed, 2 with one line on stderr, 130."""
    args = _parser().parse_args(argv)
    servers = args.server or [SERVER]
    try:
        rows = read(args.csv, load(args.workflow) if args.workflow else None)
        args.out.mkdir(parents=True, exist_ok=True)
        left = [row for row in rows if not is_done(row, args.out)]
        before = len(rows) - len(left)
        with tqdm(total=len(rows), initial=before, unit="film", disable=None) as bar:  # None: on a terminal alone
            if args.ray:
                made = run_on_ray(left, args.out, servers[0], bar)
            else:
                made = asyncio.run(run(left, args.out, servers, bar))
    except ModuleNotFoundError as error:
        sys.stderr.write(f"There is no Python package {error.name} here; 'pip install {error.name}' gets it.\n")
        return 2
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; the same command goes on from here.\n")
        return 130
    print(f"{args.out}: {made} films made, {before} were there, {len(left) - made} are missing.")
    return int(made < len(left))


if __name__ == "__main__":
    sys.exit(main())
