"""Training on several devices: one process for each, started by `torchrun` or by `accelerate launch`.

Every process draws the same step, with the same random numbers, and takes its share of the samples, so that N of them
have the losses and the gradient of a single one with N times the batch. Each has the whole model (DDP), or a share of
its weights, their gradients and the optimiser's numbers (FSDP2). A step of distillation has many passes, so that the
gradients of its LoRAs are added up at its end instead. The first process writes the files.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from ..model import Block, OviModel

LIMIT = timedelta(days=1)  # for which processes wait for the first one, which may be generating clips
KINDS = ("NO", "MULTI_CPU", "FSDP")  # of accelerate's, beside those that begin with MULTI_


class Processes:
    """The processes of a training: here the only one, which has nothing to share."""

    rank = 0
    size = 1
    shard = False  # whether they share the model out
    device: torch.device | None = None  # the process's own, where there are several

    @property
    def first(self) -> bool:
        """Whether this is the process that writes the files."""
        return self.rank == 0

    def prepared(self, model: OviModel, *, unused: bool) -> Callable[..., Any]:
        """Make a model ready to be trained, in place; return what to call for a step.

        `unused`: a step may leave some of what is trained without a gradient.
        """
        return model

    def summed(self, numbers: Tensor) -> Tensor:
        """Add up the numbers of all processes."""
        return numbers

    def stacked(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, those of the first one first."""
        return rows

    def full(self, tensor: Tensor) -> Tensor:
        """Return a tensor with the shares of all processes, on each of them."""
        return tensor

    def whole(self, tensors: Any) -> Any:
        """Return tensors, in any dictionaries and lists, with the shares of all processes, on the first one.

        Every process calls it. What the others get is of no use.
        """
        return tensors

    def share(self, tensor: Tensor, like: Tensor) -> Tensor:
        """Return this process's share of a whole tensor, shared out as `like` is."""
        return tensor

    def close(self) -> None:
        """End what connects the processes."""


class Several(Processes):
    """The processes that accelerate has connected."""

    def __init__(self, accelerator: Any, *, shard: bool) -> None:
        self.accelerator = accelerator
        self.shard = shard
        self.rank, self.size = accelerator.process_index, accelerator.num_processes
        device: torch.device = accelerator.device
        # It numbers the CPU by process, and its hooks take what is already on "cpu" for somewhere else.
        self.device = torch.device("cpu") if device.type == "cpu" else device

    def prepared(self, model: OviModel, *, unused: bool) -> Callable[..., Any]:
        """Share the model out, or let accelerate wrap it in DDP."""
        if self.shard:
            share_out(model, self.device or torch.device("cpu"), self.size)
            return model
        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        # What is not trained is equal everywhere, and may be in RAM: it is not sent.
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
        self.accelerator.ddp_handler.find_unused_parameters = unused  # else it waits for a gradient of each
        called: Callable[..., Any] = self.accelerator.prepare_model(model, device_placement=False)
        return called

    def summed(self, numbers: Tensor) -> Tensor:
        """Add up the numbers of all processes."""
        total: Tensor = self.accelerator.reduce(numbers, "sum")
        return total

    def stacked(self, rows: Tensor) -> Tensor:
        """Gather rows, of which every process has as many."""
        found: Tensor = self.accelerator.gather(rows)
        return found

    def full(self, tensor: Tensor) -> Tensor:
        """Bring the shares of a tensor together."""
        from torch.distributed.tensor import DTensor

        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def whole(self, tensors: Any) -> Any:
        """Bring the shares of each tensor together, one tensor at a time, in the first process's RAM."""
        from torch.utils._pytree import tree_map

        def gathered(value: Any) -> Any:
            if not self.shard or not isinstance(value, Tensor):
                return value
            full = self.full(value)
            return full.cpu() if self.first else full.new_empty(0)

        return tree_map(gathered, tensors)

    def share(self, tensor: Tensor, like: Tensor) -> Tensor:
        """Cut this process's share off a tensor that every process has."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(like, DTensor) or tensor.shape != like.shape:
            return tensor
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

    def close(self) -> None:
        """End the connection."""
        self.accelerator.end_training()


def started(device: str, optimizer: str, *, shard: bool) -> Processes:
    """Return the processes that this one was started with; `shard`: they share the model out among themselves.

    Raises ValueError where the options do not fit them, and where accelerate is missing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # which torchrun and accelerate launch set
        if shard:
            raise ValueError("--shard needs several processes: start the training by torchrun or accelerate launch.")
        return Processes()
    if torch.device(device).index is not None:
        raise ValueError(
            f"--device is {device}, but each of several processes has a device of its own: give its kind alone."
        )
    accelerator = _accelerator(cpu=torch.device(device).type == "cpu")
    kind = accelerator.distributed_type.value
    if not kind.startswith("MULTI_") and kind not in KINDS:
        raise ValueError(f"accelerate is configured for {kind}, but this trains with several GPUs or FSDP: choose one.")
    shard = shard or kind == "FSDP"
    if shard and optimizer != "adamw":
        raise ValueError(f"A model that is shared out is trained with adamw, not {optimizer}: leave out --shard.")
    return Several(accelerator, shard=shard)


def _accelerator(*, cpu: bool) -> Any:
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    except ModuleNotFoundError as error:
        raise ValueError("Several processes need the Python package accelerate: run pip install accelerate.") from error
    handlers = [DistributedDataParallelKwargs(), InitProcessGroupKwargs(timeout=LIMIT)]
    return Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=handlers)


def share_out(model: OviModel, device: torch.device, size: int) -> None:
    """Share a model's weights out among all processes (FSDP2), in place: each part of a block comes together in turn.

    The parts are those that a pass calls as modules; it calls no block as one.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Nothing in a pass that is differentiated works in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (size,))
    for block in model.modules():
        if isinstance(block, Block):
            for part in (block.self_attn, block.cross_attn, block.ffn[0], block.ffn[2]):
                fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)


def share_state(processes: Processes, state: Mapping[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """Return an optimiser's whole state with this process's share of the numbers of each parameter."""
    of_parameters = {
        i: {
            key: processes.share(value, parameters[i]) if isinstance(value, Tensor) else value
            for key, value in numbers.items()
        }
        for i, numbers in state["state"].items()
    }
    return {**state, "state": of_parameters}
