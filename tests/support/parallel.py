"""Passes that several ranks share out: what they are given, threads and processes that run them, and an empty exchange.

`python -m support.parallel RANK SIZE FOLDER`, in `tests`, is one rank of `processes`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovi.model import OviModel, References
from ovi.parallel import Exchange, Processes, Team, Threads

from . import ROOT, golden_model

Pass = dict[str, Any]


def passes() -> dict[str, Pass]:
    """Return the arguments of passes of the golden model, by what they show."""
    draw = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    def given(batch: int, frames: int, height: int, width: int, length: int) -> Pass:
        texts = [randn(batch, 19, 64) for _ in range(2)]
        latents = [randn(batch, 48, frames, height, width), randn(batch, 20, length)]
        return {"x": latents, "timestep": 1000 * torch.rand(batch, generator=draw), "context": texts[0]} | {
            "audio_context": texts[1]
        }

    one, two, odd = given(1, 5, 6, 14, 27), given(2, 5, 6, 10, 27), given(1, 3, 7, 9, 13)
    per_frame = two["timestep"][:, None].repeat(1, 5)
    per_frame[:, 0] = 0
    per_latent = two["timestep"][:, None].repeat(1, 27)
    per_latent[:, :9] = 0
    masked = two | {"timestep": (per_frame, per_latent)}
    persons = References([randn(1, 48, 1, 6, 14) for _ in range(2)], [randn(1, 20, 5)])
    return {
        "one row": one,
        "two rows": two,
        "odd edges": odd,
        "masked": masked,
        "a block skipped for a row": masked | {"skip_blocks": (1,), "skip_rows": [True, False]},
        "a block skipped for all": two | {"skip_blocks": (1,)},
        "rows without fusion": two | {"cut_rows": [True, False]},
        "no fusion": two | {"cut_rows": [True, True]},
        "values that pass": one | {"pass_blocks": (1,)},
        "persons": one | {"references": persons},
        "a later window": one | {"audio_start": -0.5},
        "the video alone": masked | {"x": [two["x"][0], None]},
        "the audio alone": masked | {"x": [None, two["x"][1]]},
    }


def predict(model: OviModel, arguments: Pass, team: Team | None = None) -> list[Tensor]:
    """Run a pass; return the velocities that it has."""
    with torch.inference_mode():
        return [out for out in model(**arguments, team=team) if out is not None]


def threads(size: int, work: Callable[[Threads], Any], limit: float = 60.0) -> list[Any]:
    """Run `work` on each rank of a team of threads; return their results, or raise what one raised."""

    def run(exchange: Threads) -> Any:
        try:
            return work(exchange)
        except BaseException:
            exchange.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, Threads.team(["cpu"] * size, limit)))


def processes(size: int, folder: Path) -> list[dict[tuple[int, str], list[Tensor]]]:
    """Run all passes in teams of 2 to `size` gloo processes; return, by rank, the velocities by team size and pass.

    This process is the first of them.
    """
    command = [sys.executable, "-m", "support.parallel"]
    where = {"cwd": ROOT / "tests", "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    others = [subprocess.Popen([*command, str(rank), str(size), str(folder)], **where) for rank in range(1, size)]
    found = in_process(0, size, folder)
    assert [other.wait() for other in others] == [0] * len(others)
    return [found, *(torch.load(folder / f"{rank}.pt") for rank in range(1, size))]


def in_process(rank: int, size: int, folder: Path) -> dict[tuple[int, str], list[Tensor]]:
    """Do what `processes` says for one rank."""
    store, limit = torch.distributed.FileStore(str(folder / "store"), size), timedelta(seconds=300)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)
    try:
        model, found = golden_model.load(), {}
        for members in range(2, size + 1):
            group = torch.distributed.new_group(range(members), timeout=limit)
            if rank < members:
                team = Team(Processes(group))
                found |= {(members, name): predict(model, each, team) for name, each in passes().items()}
        return found
    finally:
        torch.distributed.destroy_process_group()


class Hollow(Exchange):
    """Gives as many numbers as the other ranks would, of no value: for sizes alone."""

    def _swap(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        return [parts[0].new_empty(shape) for shape in shapes]


if __name__ == "__main__":
    own, of, where = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.save(in_process(own, of, where), where / f"{own}.pt")
