"""Processes that train the golden model together over gloo, as `torchrun` starts them.

`python -m support.training_processes FOLDER OPTIONS`, in `tests`, is one of `run`.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.distributed.tensor import DTensor

from bench.weights import quantise
from ovi.model import OviModel
from ovi.tools import curves, options
from ovi.tools import train as tool
from ovi.tools import trainer as trainer_module
from ovi.tools.distributed import Several, started
from ovi.tools.trainer import Trainer

from . import ROOT, golden_model
from .golden_model import load
from .training import SETTINGS, clips, trainer

STEPS, SIZE = 2, 2
SAMPLES = [clip._replace(audio=None) if i > 2 else clip for i, clip in enumerate(clips(6))]
MODES: dict[str, dict[str, Any]] = {  # by name: what is trained, and whether it is shared out
    "ddp": {"shard": False, "rank": 4, "buckets": [range(3), range(3, 6)], "recompute": True},
    "fsdp": {"shard": True, "base": "fp8", "rank": 4, "recompute": True, "offload_activations": True},
    "fsdp, whole model": {"shard": True},
}


def make(mode: str, batch: int, accumulate: int, **more: Any) -> Trainer:
    """Return a trainer as a mode says."""
    given = {name: value for name, value in MODES[mode].items() if name != "shard"}
    base = given.pop("base", None)
    settings = dataclasses.replace(SETTINGS, batch=batch, accumulate=accumulate, seed=1)
    samples = SAMPLES if "buckets" in given else SAMPLES[:3]
    with patch.object(golden_model, "load", partial(quantised, base)) if base else nullcontext():
        return trainer(settings, STEPS, samples=samples, **given, **more)


def quantised(base: str) -> OviModel:
    """Return the golden model with its matrices in a quantised format, everything else in float32."""
    model = load()
    quantise(model, base)
    return model


def found(run: Trainer) -> dict[str, Any]:
    """Return what a trainer has come to: losses, weights, and the mean gradients, which the optimiser keeps."""
    weights = {name: p.detach() for name, p in run.trained.items()}
    state = run.optimizer.state_dict()["state"]
    means = {name: state[i]["exp_avg"] for i, name in enumerate(run.trained) if i in state}
    whole = run.processes.whole({"trained": weights, "averaged": run.averaged, "gradients": means})
    return {"history": run.history, **whole}


def run(folder: Path, command: list[str]) -> list[dict[str, Any]]:
    """Run the processes; return what each has found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": SIZE, "LOCAL_WORLD_SIZE": SIZE, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    others = []
    for rank in range(SIZE):
        own = {"RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        env = os.environ | {name: str(value) for name, value in {**shared, **own}.items()}
        words = [sys.executable, "-m", "support.training_processes", str(folder), *command]
        others.append(subprocess.Popen(words, cwd=ROOT / "tests", env=env))
    assert [other.wait() for other in others] == [0] * SIZE
    return [torch.load(folder / f"{rank}.pt") for rank in range(SIZE)]


def in_process(folder: Path, command: list[str]) -> dict[str, Any]:
    """Train in every mode, without and with a stop on the way, and by the command line; return what each comes to."""
    processes = started("cpu", "adamw", shard=False)
    assert isinstance(processes, Several)
    results: dict[str, Any] = {}
    for name, mode in MODES.items():
        several = Several(processes.accelerator, shard=mode["shard"])
        whole, resumed = (make(name, 1, 2, processes=several) for _ in range(2))
        whole.step()
        whole.save(folder / f"{name}.state")
        processes.accelerator.wait_for_everyone()
        resumed.resume(folder / f"{name}.state")
        for one in (whole, resumed):
            one.step()
        tensors = [*whole.model.parameters(), *whole.averaged.values()]
        shared = {isinstance(tensor, DTensor) for tensor in tensors}
        numbers = [sum(map(torch.Tensor.numel, of)) for of in (map(local, tensors), tensors)]
        results[name] = {"whole": found(whole), "resumed": found(resumed), "shared": shared, "numbers": numbers}
    if not processes.first:  # which must not write
        tool.writing = trainer_module.writing = options.write = curves.plot = None
    results["exit code"] = tool.main(command)
    return results


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process has of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


if __name__ == "__main__":
    where = Path(sys.argv[1])
    torch.save(in_process(where, sys.argv[2:]), where / f"{os.environ['RANK']}.pt")
