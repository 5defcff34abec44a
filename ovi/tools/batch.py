"""Many prompts: a clip for every row of a CSV, from one or several ComfyUI servers; `python -m ovi.tools.batch --help`.

A broken or lost server costs the others nothing: a row that it was not asked for goes to another one; a row that it was
asked for stays with it, and the next run looks there before it queues the row again.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import uuid
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm
from yarl import URL

from . import results
from .files import exit_code, program
from .results import say
from .server import Limits, Prompt, RowError, ServerError, Ticket, Upload, check, generate, knows
from .table import COLUMNS, NAME, PROMPTS, Row, load, read

__all__ = ["PROMPTS", "load", "main", "read"]

SERVER = "http://127.0.0.1:8188"  # where ComfyUI listens by default
FAILURES = 3  # in a row, after which a server gets no more rows


class Run:
    """The rows that are left, and the servers that generate them, each one row at a time."""

    def __init__(self, rows: Sequence[Row], out: Path, servers: Sequence[str], bar: tqdm[None], limits: Limits) -> None:
        """Set up a run that writes to the folder `out`."""
        self.rows = deque(rows)  # for any server
        self.waiting: dict[str, deque[tuple[Row, Ticket]]] = {server: deque() for server in servers}  # for this one
        self.out, self.bar, self.limits = out, bar, limits
        self.alive = list(self.waiting)
        self.absent: dict[str, ServerError] = {}
        self.asked: set[str] = set()  # the ids of prompts that a server may have queued
        self.generated = 0

    async def work(self) -> int:
        """Generate the clips; return how many were generated. Raises ValueError where no server can be reached."""
        await self._find_queued()
        while self.alive and (self.rows or any(self.waiting[server] for server in self.alive)):
            await asyncio.gather(*[self._serve(server) for server in list(self.alive)])
        if len(self.absent) == len(self.waiting):
            raise ValueError("; ".join(f"There is no ComfyUI at {name} ({self.absent[name]})." for name in self.absent))
        return self.generated

    async def _find_queued(self) -> None:
        """Give the rows that an earlier run queued to their servers, under whichever address those are named now."""
        for row in list(self.rows):
            if (ticket := results.queued(row, self.out)) is None:
                continue
            server: str | None = ticket.server
            if server not in self.waiting:
                answers = await asyncio.gather(
                    *[knows(ticket.prompt_id, name, self.limits) for name in self.waiting], return_exceptions=True
                )
                found = [name for name, answer in zip(self.waiting, answers, strict=True) if answer is True]
                if not found and any(isinstance(answer, BaseException) for answer in answers):
                    say(
                        f"Row {row.name} waits: it was queued at {server}, and not every server says whether it has it."
                    )
                    self.rows.remove(row)
                    continue
                server = found[0] if found else None
            if server:
                self.rows.remove(row)
                self.waiting[server].append((row, Ticket(server, ticket.prompt_id)))
                self.asked.add(ticket.prompt_id)

    async def _serve(self, server: str) -> None:
        """Let a server generate its own rows and those that no other has taken yet."""
        try:
            await check(server, self.limits)
        except ServerError as error:
            self.absent[server] = error
            self.alive.remove(server)
            if len(self.waiting) > 1:
                say(f"There is no ComfyUI at {server} ({error}); its rows wait.")
            return
        failures = 0
        while self.waiting[server] or self.rows:
            if self.waiting[server]:
                row, ticket = self.waiting[server].popleft()
            else:
                row, ticket = self.rows.popleft(), Ticket(server, str(uuid.uuid4()))
            if await self._generate(row, ticket):
                failures = 0
                continue
            failures += 1
            if failures == FAILURES:
                say(f"{server} gets no more rows: it failed {failures} times in a row.")
                self.alive.remove(server)
                return
            await asyncio.sleep(self.limits.pause * failures)

    async def _generate(self, row: Row, ticket: Ticket) -> bool:
        """Let a server generate a row; return whether the server does what it should, even where the row fails."""

        def uploads() -> list[Upload]:
            return _uploads(row, ticket.server)

        def progress(step: int, steps: int) -> None:
            self.bar.set_postfix_str(f"{row.name}: {step}/{steps}")

        def before_queueing() -> None:
            results.queue(row, self.out, ticket)
            self.asked.add(ticket.prompt_id)

        try:
            clip = await generate(ticket, row.prompt, uploads, self.limits, progress, before_queueing)
        except RowError as error:
            results.fail(row, self.out, error)
            self.bar.update()
            return True
        except ServerError as error:
            if ticket.prompt_id in self.asked:
                say(f"Row {row.name} waits at {ticket.server} ({error}); the next run looks there first.")
            else:
                say(f"Row {row.name} was not queued at {ticket.server} ({error}).")
                self.rows.appendleft(row)
            return False
        made = _finish(row, self.out, clip)
        self.generated += made
        self.bar.update()
        return made


def _uploads(row: Row, server: str) -> list[Upload]:
    """Read the images of a row, and report where they go."""
    for path in row.images.values():
        say(f"Row {row.name}: {path} is uploaded to {server}.")
    return row.uploads()


def _finish(row: Row, out: Path, clip: bytes) -> bool:
    """Keep the clip of a row, or report that it is none; return whether it is one."""
    try:
        results.finish(row, out, clip)
    except ValueError as problem:
        results.fail(row, out, f"what the server saved is no clip of the row: {problem}")
        return False
    return True


def run_on_ray(rows: Sequence[Row], out: Path, server: str, bar: tqdm[None], limits: Limits) -> int:
    """Generate the clips of the rows as tasks of a running Ray cluster; return how many were generated.

    A task takes one unit of the resource `comfyui` and uses the ComfyUI at `server`, an address as seen from the
    machine that the task runs on. Raises ValueError where there is no such cluster.
    """
    import ray

    def task(ticket: Ticket, prompt: Prompt, uploads: list[Upload]) -> tuple[str, bytes]:
        try:
            return "", asyncio.run(generate(ticket, prompt, lambda: uploads, limits))
        except (RowError, ServerError) as error:
            return f"{type(error).__name__}: {error}", b""

    try:
        ray.init(address="auto", log_to_driver=False)
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(f"There is no Ray cluster to join: {' '.join(str(error).split())}") from error
    if not ray.cluster_resources().get("comfyui"):
        raise ValueError("The Ray cluster has no 'comfyui': start it with --resources '{\"comfyui\": 1}'.")
    remote = ray.remote(num_cpus=0, resources={"comfyui": 1}, max_retries=0)(task)
    tasks = {}
    for row in rows:
        ticket = results.queued(row, out)
        if ticket is None or ticket.server != server:
            ticket = Ticket(server, str(uuid.uuid4()))
        try:
            uploads = _uploads(row, server)
        except RowError as error:
            results.fail(row, out, error)
            continue
        results.queue(row, out, ticket)
        tasks[remote.remote(ticket, row.prompt, uploads)] = row
    generated = 0
    while tasks:
        (ready, *_), _ = ray.wait(list(tasks))
        row = tasks.pop(ready)
        try:
            problem, clip = ray.get(ready)
        except ray.exceptions.RayError as error:
            problem, clip = f"{ServerError.__name__}: {type(error).__name__}", b""
        kind, _, message = problem.partition(": ")
        if kind == RowError.__name__:
            results.fail(row, out, message)
        elif kind:
            say(f"Row {row.name} waits ({message}); the next run looks there first.")
        else:
            generated += _finish(row, out, clip)
        bar.update()
    return generated


def _address(text: str) -> str:
    """Return the address of a server without a slash at its end."""
    try:
        url = URL(text)
        if url.scheme in ("http", "https") and url.host and url.port:
            return str(url.with_query(None).with_fragment(None)).rstrip("/")
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not the address of a ComfyUI, such as {SERVER}")


def _seconds(text: str) -> float:
    """Return a time limit."""
    try:
        if 0 < float(text) < math.inf:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, such as 3600")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ovi.tools.batch", description="Generate a clip for every row of a CSV file."
    )
    parser.add_argument("csv", type=Path, help=f"columns, all optional: {NAME}, {', '.join(COLUMNS)}, or NODE.INPUT")
    parser.add_argument("out", type=Path, help="a folder; each row gets an mp4 and a JSON file with its settings")
    parser.add_argument(
        "--server", type=_address, action="append", help=f"a ComfyUI ({SERVER}); may be given several times"
    )
    parser.add_argument("--workflow", type=Path, help="a workflow in API form, or an mp4 that ComfyUI saved with it")
    parser.add_argument("--ray", action="store_true", help="spread the rows over a running Ray cluster")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        default=Limits().row,
        help="for one row, after which it waits for the next run (%(default)g, a day)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Generate what is left of a CSV; return the exit code.

    0, or 1 where rows failed, 2 with one line on stderr, or 130 where it was interrupted.
    """
    args = _parser().parse_args(argv)
    servers = list(dict.fromkeys(args.server or [SERVER]))
    limits = Limits(row=args.timeout)

    def work() -> int:
        if args.ray and len(servers) > 1:
            raise ValueError(
                f"--ray uses one address, as seen from each machine of the cluster, but {len(servers)} --server were "
                "given: give one."
            )
        rows = read(args.csv, load(args.workflow) if args.workflow else None)
        if args.out.exists() and not args.out.is_dir():
            raise ValueError(f"{args.out} is a file, but a folder is needed.")
        read_files = [args.csv, *filter(None, [args.workflow]), *(path for row in rows for path in row.images.values())]
        results.check_outputs(rows, args.out, read_files)
        args.out.mkdir(parents=True, exist_ok=True)
        with results.alone(args.out):
            return _generate(rows, args.out, servers, limits, ray=args.ray)

    return exit_code(work, "Interrupted; the same command resumes from here.")


def _generate(rows: Sequence[Row], out: Path, servers: Sequence[str], limits: Limits, *, ray: bool) -> int:
    """Generate the rows that are not done, and report; return the exit code."""
    left = [row for row in rows if not results.is_done(row, out)]
    before = len(rows) - len(left)
    with tqdm(total=len(rows), initial=before, unit="clip", disable=None) as bar:  # None: on a terminal only
        if ray and left:
            generated = run_on_ray(left, out, servers[0], bar, limits)
        else:
            generated = asyncio.run(Run(left, out, servers, bar, limits).work())
    missing = len(left) - generated
    print(f"{out}: {generated} clips generated, {before} existed already, {missing} are missing.")
    return int(missing > 0)


if __name__ == "__main__":
    program(main)
