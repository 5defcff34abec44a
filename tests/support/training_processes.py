"""Processes that train the first layer of the golden model together over gloo, as `torchrun` starts them.

`python -m support.training_processes FOLDER OPTIONS`, in `tests`, starts them, from one that has imported everything.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.multiprocessing import start_processes

from bench.weights import quantise
from ovi.tools import curves, distill, options
from ovi.tools import train as tool
from ovi.tools import trainer as trainer_module
from ovi.tools.distributed import Processes, Several, started
from ovi.tools.offload import place
from ovi.tools.trainer import Trainer

from . import ROOT, golden_model
from .distilling import command as distilling_command
from .training import SETTINGS, clips, trainer

LAYERS, STEPS, SIZE = 1, 2, 2
SAMPLES = [clip._replace(audio=None) if i > 2 else clip for i, clip in enumerate(clips(6))]
MODES: dict[str, dict[str, Any]] = {  # by name: what is trained, and whether it is shared out
    "ddp": {"shard": False, "rank": 4, "buckets": [range(3), range(3, 6)], "recompute": True},
    "ddp, blocks in RAM": {"shard": False, "base": "fp8", "rank": 4, "recompute": True, "blocks": LAYERS},
    "fsdp": {"shard": True, "base": "fp8", "rank": 4, "recompute": True, "offload_activations": True},
    "fsdp, whole model": {"shard": True},
}


def make(mode: str, batch: int, accumulate: int, processes: Processes | None = None) -> Trainer:
    """Return a trainer as a mode says."""
    given = {"base": None, "blocks": 0, **MODES[mode]}
    del given["shard"]
    model = golden_model.load(layers=LAYERS)
    if base := given.pop("base"):
        quantise(model, base)
    place(model, (processes and processes.device) or "cpu", given.pop("blocks"))
    settings = dataclasses.replace(SETTINGS, batch=batch, accumulate=accumulate, seed=1)
    alone = "buckets" in given
    given |= {"samples": SAMPLES if alone else SAMPLES[:3], "complete": not alone, "processes": processes}
    return trainer(settings, STEPS, model=model, **given)


def come_to(run: Trainer) -> dict[str, dict[str, torch.Tensor]]:
    """Return what a trainer has come to: weights, and the mean gradients, which the optimiser keeps."""
    weights = {name: p.detach() for name, p in run.trained.items()}
    state = run.optimizer.state
    means = {name: state[p]["exp_avg"] for name, p in run.trained.items() if p in state}
    return {"trained": weights, "averaged": run.averaged, "gradients": means}


def found(run: Trainer) -> dict[str, Any]:
    """Return the losses of a trainer, and what all processes have come to."""
    return {"history": run.history, **run.processes.whole(come_to(run))}


def run(folder: Path, command: list[str]) -> list[dict[str, Any]]:
    """Run the processes; return what each has found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": SIZE, "LOCAL_WORLD_SIZE": SIZE, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": 1}
    env = os.environ | {name: str(value) for name, value in {**shared, **path}.items()}
    words = [sys.executable, "-m", "support.training_processes", str(folder), *command]
    subprocess.run(words, cwd=ROOT / "tests", env=env, check=True)
    return [torch.load(folder / f"{rank}.pt") for rank in range(SIZE)]


def distilled(folder: Path, *options: str) -> list[str]:
    """Return a command line of distillation in which one of two clips may have a first frame."""
    paths = (folder / name for name in ("model.safetensors", "clips", "turbo.safetensors"))
    steps = "--iterations", "1", "--student-steps", "1"
    return distilling_command(*paths, *steps, "--first-frame", "0.5", "--skip-blocks", "", *options)


def process(rank: int, folder: Path, command: list[str]) -> None:
    """Be one of the processes, and write what it has found."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.save(in_process(folder, command), folder / f"{rank}.pt")


def in_process(folder: Path, command: list[str]) -> dict[str, Any]:
    """Train in every mode, without and with a stop on the way, and by the command line; return what each comes to."""
    from torch.distributed.tensor import DTensor

    def own(tensor: Any) -> torch.Tensor:
        """Return what this process has of a tensor."""
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

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
        after = come_to(resumed)
        results[name] = {
            **found(whole),
            "shared": {isinstance(tensor, DTensor) for tensor in tensors},
            "numbers": [sum(map(torch.Tensor.numel, of)) for of in (map(own, tensors), tensors)],
            "resumed": resumed.history,
            "changed": [
                (kind, key)
                for kind, expected in come_to(whole).items()
                for key, tensor in expected.items()
                if not torch.equal(own(after[kind][key]), own(tensor))
            ],
        }
    with patch.object(Several, "close"):  # for what follows needs the connection, too
        for steps in range(2):  # without the second stage, and on with it
            assert distill.main(distilled(folder, "--dmd-iterations", str(steps))) == 0
            processes.accelerator.wait_for_everyone()
    if not processes.first:  # which must not write
        tool.writing = trainer_module.writing = options.write = curves.plot = None
    results["exit code"] = tool.main(command)
    return results


if __name__ == "__main__":
    for name in ("accelerate", "torch._dynamo", "torch.distributed.tensor"):  # which take seconds, here once for all
        import_module(name)

    start_processes(process, (Path(sys.argv[1]), sys.argv[2:]), nprocs=SIZE, start_method="fork")
