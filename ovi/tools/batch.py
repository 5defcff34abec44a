"""Many prompts: a clip for every row of a CSV, from one or several ComfyUI servers; `python -m ovi.tools.batch --help`.

A column sets an input of a workflow in API form; an empty cell leaves what the workflow has. Row 1 becomes 0001.mp4 and
its settings, 0001.json. Before a row is queued, its id is written to 0001.queued.json, which is renamed to 0001.json
last. So a run that was stopped resumes without generating a row twice, not even the one that a server was working on.
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

from .files import complete, exit_code, program
from .server import Prompt, RowError, Ticket, Upload, check, generate

PROMPTS = Path(__file__).resolve().parents[2] / "workflows" / "api"
TEXT_TO_VIDEO = PROMPTS / "ovi_text_to_video.json"
IMAGE_TO_VIDEO = PROMPTS / "ovi_image_to_video.json"
SERVER = "http://127.0.0.1:8188"  # where ComfyUI listens by default


class Kind(NamedTuple):
    """What a cell holds, in words, and how it is read; `read` raises ValueError for anything else."""

    what: str
    read: Callable[[str], Any]


TEXT = Kind("a text", str)
WHOLE = Kind("a whole number", int)
NUMBER = Kind("a number", float)
VALUE = Kind("a number, true or false", json.loads)


class Column(NamedTuple):
    """The inputs that a column sets, by name, and what its cells hold."""

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


class Target(NamedTuple):
    """The input that a column sets: of which node, its name, and what the cells hold."""

    node: str
    input: str
    kind: Kind


class Row(NamedTuple):
    """A row: the name of its files, its cells by column, the prompt (API form), and its images by the node's id."""

    name: str
    cells: Mapping[str, str]
    prompt: Prompt
    images: Mapping[str, Path]

    def uploads(self) -> list[Upload]:
        """Read the images."""
        return [Upload(node, path.name, path.read_bytes()) for node, path in self.images.items()]


def load(path: Path) -> Prompt:
    """Return a workflow in API form, from its JSON file or from an mp4 that ComfyUI saved; ValueError for others."""
    try:
        prompt = json.loads(_metadata(path) if path.suffix == ".mp4" else path.read_text(encoding="utf-8"))
        if prompt and all("class_type" in node for node in prompt.values()):
            return dict(prompt)
    except (ValueError, TypeError, AttributeError):  # JSON of another kind, or no JSON
        pass
    raise ValueError(f"{path} has no workflow in API form: use a file from 'Export (API)', or an mp4 from ComfyUI.")


def _metadata(clip: Path) -> str:
    """Return the prompt that ComfyUI wrote into an mp4."""
    import av

    with av.open(clip) as container:
        return str(container.metadata.get("prompt", ""))


def read(table: Path, workflow: Prompt | None = None) -> list[Row]:
    """Return the rows of a CSV file, set into a workflow; by default image to video for rows that have an image.

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
        raise ValueError(f"{table} has no rows; it needs a line with the names of columns, and a line for each clip.")
    return rows


def _row(name: str, cells: Mapping[str | None, str | None], folder: Path, workflow: Prompt | None) -> Row:
    """Set the cells of a row into a copy of the workflow."""
    if None in cells:
        raise ValueError(f"Row {name} has more cells than there are columns: put quotes around a text with commas.")
    given = {column: cell for column, cell in cells.items() if column and cell and cell.strip()}
    prompt = copy.deepcopy(workflow) or load(IMAGE_TO_VIDEO if "image" in given else TEXT_TO_VIDEO)
    images = {}
    for column, cell in given.items():
        target = _target(prompt, column)
        node = prompt[target.node]
        try:
            node["inputs"][target.input] = target.kind.read(cell)
        except ValueError:
            raise ValueError(f"Row {name}: {column} is '{cell}', but {target.kind.what} is needed.") from None
        if target.input == "image" and node["class_type"] == "LoadImage":
            images[target.node] = folder / cell
            if not images[target.node].is_file():
                raise ValueError(f"Row {name}: there is no image {images[target.node]}.")
    return Row(name, given, prompt, images)


def _target(prompt: Prompt, column: str) -> Target:
    """Return the one input that a column sets. Raises ValueError where there is none, or several."""
    if column in COLUMNS:
        names, kind = COLUMNS[column]
        candidates = [(node, name) for node in prompt for name in names]
    else:
        node_id, _, name = column.partition(".")
        candidates, kind = [(node_id, name)], VALUE
    found = [(node, name) for node, name in candidates if _has_widget(prompt, node, name)]
    if not found:
        raise ValueError(f"The workflow has no input for the column '{column}'.")
    if len(found) > 1:
        nodes = ", ".join(node for node, _ in found)
        raise ValueError(
            f"The column '{column}' matches several nodes of the workflow ({nodes}): choose one, such as "
            f"{'.'.join(found[0])}."
        )
    node, name = found[0]
    return Target(node, name, TEXT if isinstance(prompt[node]["inputs"][name], str) else kind)


def _has_widget(prompt: Prompt, node: str, name: str) -> bool:
    """Return whether a node has an input of that name with a value of its own; a list is a wire."""
    return node in prompt and name in prompt[node]["inputs"] and not isinstance(prompt[node]["inputs"][name], list)


def is_done(row: Row, out: Path) -> bool:
    """Return whether a row has its clip and settings. Raises ValueError where they are those of another row."""
    settings = out / f"{row.name}.json"
    if not (settings.exists() and (out / f"{row.name}.mp4").exists()):
        return False
    if json.loads(settings.read_text(encoding="utf-8"))["prompt"] != row.prompt:
        raise ValueError(
            f"{settings} belongs to a row with other settings: use another folder, or delete it to generate the row "
            "again."
        )
    return True


def _ticket(row: Row, out: Path, servers: Sequence[str], server: str) -> Ticket:
    """Return where an earlier run queued the row, or write down that it goes to `server`."""
    path = out / f"{row.name}.queued.json"
    if path.exists():
        queued = json.loads(path.read_text(encoding="utf-8"))
        if queued["prompt"] == row.prompt and queued["server"] in servers:
            return Ticket(queued["server"], queued["prompt_id"])
    ticket = Ticket(server, str(uuid.uuid4()))
    settings = {**ticket._asdict(), "row": row.cells, "prompt": row.prompt}
    _write(path, json.dumps(settings, indent=2, ensure_ascii=False).encode())
    return ticket


def _finish(row: Row, out: Path, clip: bytes) -> None:
    """Write the clip of a row; its settings, last, say that it is done."""
    _write(out / f"{row.name}.mp4", clip)
    (out / f"{row.name}.queued.json").replace(out / f"{row.name}.json")


def _fail(row: Row, out: Path, error: object) -> None:
    """Report a row that failed; the next run queues it again."""
    (out / f"{row.name}.queued.json").unlink()
    tqdm.write(f"Row {row.name} failed: {error}", file=sys.stderr)


def _write(path: Path, data: bytes) -> None:
    with complete(path) as (part,):
        part.write_bytes(data)


async def run(rows: Sequence[Row], out: Path, servers: Sequence[str], bar: tqdm[None]) -> int:
    """Generate the clips of the rows, one at a time on each server; return how many were generated.

    A server that is lost gets no more rows. Raises ValueError where a server cannot be reached at first.
    """
    for server in servers:
        await check(server)
    left = iter(rows)
    return sum(await asyncio.gather(*[_serve(server, left, out, servers, bar) for server in servers]))


async def _serve(server: str, rows: Iterator[Row], out: Path, servers: Sequence[str], bar: tqdm[None]) -> int:
    """Let a server generate rows that no other has taken yet; return how many it generated."""
    generated = 0
    for row in rows:

        def progress(step: int, steps: int, name: str = row.name) -> None:
            bar.set_postfix_str(f"{name}: {step}/{steps}")

        ticket = _ticket(row, out, servers, server)
        try:
            clip = await generate(ticket, row.prompt, row.uploads(), progress)
        except (RowError, aiohttp.ClientResponseError) as error:
            _fail(row, out, error)
        except aiohttp.ClientError as error:
            tqdm.write(f"{ticket.server} is lost at row {row.name} ({error}).", file=sys.stderr)
            if ticket.server == server:
                break
            continue  # it is queued at another server
        else:
            _finish(row, out, clip)
            generated += 1
        bar.update()
    return generated


def run_on_ray(rows: Sequence[Row], out: Path, server: str, bar: tqdm[None]) -> int:
    """Generate the clips of the rows as tasks of a running Ray cluster; return how many were generated.

    A task takes one unit of the resource `comfyui` and uses the ComfyUI at `server`, an address as seen from the
    machine that the task runs on.
    """
    import ray

    def task(ticket: Ticket, prompt: Prompt, uploads: Sequence[Upload]) -> bytes | str:
        try:
            return asyncio.run(generate(ticket, prompt, uploads))
        except (RowError, aiohttp.ClientError) as error:
            return str(error)

    ray.init(address="auto", log_to_driver=False)
    remote = ray.remote(num_cpus=0, resources={"comfyui": 1})(task)
    tasks = {remote.remote(_ticket(row, out, [server], server), row.prompt, row.uploads()): row for row in rows}
    generated = 0
    while tasks:
        (ready, *_), _ = ray.wait(list(tasks))
        row = tasks.pop(ready)
        outcome = ray.get(ready)
        if isinstance(outcome, bytes):
            _finish(row, out, outcome)
            generated += 1
        else:
            _fail(row, out, outcome)
        bar.update()
    return generated


def _address(text: str) -> str:
    """Return the address of a server without a slash at its end."""
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"'{text}' is not the address of a ComfyUI, such as {SERVER}")
    return text.rstrip("/")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ovi.tools.batch", description="Generate a clip for every row of a CSV file."
    )
    parser.add_argument("csv", type=Path, help=f"columns, all optional: {', '.join(COLUMNS)}, or NODE.INPUT")
    parser.add_argument("out", type=Path, help="a folder; each row gets an mp4 and a JSON file with its settings")
    parser.add_argument(
        "--server", type=_address, action="append", help=f"a ComfyUI ({SERVER}); may be given several times"
    )
    parser.add_argument("--workflow", type=Path, help="a workflow in API form, or an mp4 that ComfyUI saved with it")
    parser.add_argument("--ray", action="store_true", help="spread the rows over a running Ray cluster")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Generate what is left of a CSV; return the exit code.

    0, or 1 where rows failed, 2 with one line on stderr, or 130 where it was interrupted.
    """
    args = _parser().parse_args(argv)
    servers = args.server or [SERVER]

    def work() -> int:
        if args.ray and len(servers) > 1:
            raise ValueError(
                f"--ray uses one address, as seen from each machine of the cluster, but {len(servers)} --server were "
                "given: give one."
            )
        rows = read(args.csv, load(args.workflow) if args.workflow else None)
        args.out.mkdir(parents=True, exist_ok=True)
        left = [row for row in rows if not is_done(row, args.out)]
        before = len(rows) - len(left)
        with tqdm(total=len(rows), initial=before, unit="clip", disable=None) as bar:  # None: on a terminal only
            if args.ray:
                generated = run_on_ray(left, args.out, servers[0], bar)
            else:
                generated = asyncio.run(run(left, args.out, servers, bar))
        missing = len(left) - generated
        print(f"{args.out}: {generated} clips generated, {before} existed already, {missing} are missing.")
        return int(missing > 0)

    return exit_code(work, "Interrupted; the same command resumes from here.")


if __name__ == "__main__":
    program(main)
