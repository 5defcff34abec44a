"""The memory that a step of training needs on the card: `python -m bench.training_memory` prints the tables.

Nothing is run: whole steps of LoRAs, forward, backward and the optimiser's, are traced with fake tensors on the
full-size model, at 2 and at 3 layers: each further one adds what the third does. Counted are the base's weights, the
activations, and the LoRAs in float32 with their gradients, AdamW's two numbers each and the average. A test compares
such a trace with what PyTorch allocates in a real step of a small model. 1 GB is 10^9 bytes.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench import trace
from bench.memory import CONFIG
from bench.weights import draw, quantise
from ovi.config import OviConfig
from ovi.flow import Noised, Sample, Settings, losses
from ovi.lora import Lora, add_lora
from ovi.model import OviModel
from ovi.tools import offload
from ovi.tools.convert import FORMATS
from ovi.tools.trainer import Trainer

Trained = TypeVar("Trained", bound=Trainer)
CLIPS = [(704, 704, 121), (960, 960, 121), (960, 960, 241)]
RANK, RANKS = 32, (16, 128)
LAYERS = 2, 3
CPU = torch.device("cpu")  # of the fake tensors too, in whose sizes no device shows


class Live(TorchDispatchMode):
    """The bytes of all tensors on the card that are alive, and the most that there were.

    PyTorch's MemTracker says the same, but goes through all tensors at every operation, which takes minutes here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if tensor.device != CPU or key in self._storages:
            return

        def freed(_: Any) -> None:
            del self._storages[key]
            self.bytes -= size

        self._storages[key] = weakref.ref(storage, freed)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it makes."""
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, Tensor):
                self.add(made)
        return out


def base_model(base: str, config: OviConfig, attention: Callable[..., Tensor]) -> OviModel:
    """Return a model in bfloat16, its matrices stored as `base` (a key of `convert.FORMATS`), with random numbers."""
    model = OviModel(config, attention=attention, device=CPU, dtype=torch.bfloat16).requires_grad_(False)
    draw(model)
    quantise(model, base)
    return model


def made(
    base: str,
    clip: tuple[int, int, int],
    config: OviConfig,
    attention: Callable[..., Tensor],
    rank: int,
    blocks: int = 0,
    **saved: bool,
) -> Trainer:
    """Return a trainer of LoRAs on a base, with one clip (width, height, frames), after its first step.

    The weights of the last `blocks` blocks have the device "meta", which stands for RAM, until they are used.
    """
    model = base_model(base, config, attention)
    in_ram(model, blocks)
    lora = Lora(rank)
    add_lora(model, lora, CPU)
    x = [torch.randn(shape[1:]) for shape in trace.latents(config, 1, *clip)]
    sample = Sample(x[0], x[1], torch.randn(config.text_len, config.text_dim))
    trainer = Trainer(model, [sample], Settings(), 1000, lora=lora, autocast=True, **saved)
    start(trainer.trained.values(), trainer.optimizer)
    return trainer


def start(weights: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Make an optimiser's state, as its first step does."""
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad()


def in_ram(model: OviModel, blocks: int) -> None:
    """Have the weights of the last blocks' linear layers come when they run, as `offload.place` does."""
    if blocks:
        from accelerate.hooks import AlignDevicesHook, add_hook_to_module
    for layer in offload.last_layers(model, blocks):
        there = {}
        for name, weight in list(layer.named_parameters()):  # accelerate makes no fake parameters anew
            there[name] = weight.data.to("meta")
            delattr(layer, name)
            layer.register_buffer(name, weight.data)
        add_hook_to_module(layer, AlignDevicesHook(CPU, offload=True, weights_map=there, offload_buffers=True))


def step(trainer: Trainer) -> None:
    """Do what a step of the trainer does with tensors on the card, whose numbers do not matter."""
    (sample,) = trainer.samples
    clean = [one[None] for one in (sample.video, sample.audio)]
    noise = [torch.randn_like(one) for one in clean]
    counts = [torch.ones(1, 1, clean[0].shape[2], 1, 1), torch.ones(1, 1, 1)]
    times = torch.full((1, clean[0].shape[2]), 500.0), torch.full((1,), 500.0)
    batch = Noised(clean, times, sample.context[None], noise, counts)
    with torch.autocast("cpu", torch.bfloat16):
        video, audio = losses(trainer.call, batch)
    (video + audio).backward()
    update(trainer.trained.values(), trainer.optimizer)
    torch._foreach_lerp_(list(trainer.averaged.values()), [p.data for p in trainer.trained.values()], 0.5)


def update(weights: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Change weights by their gradients."""
    nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    optimizer.zero_grad()


def held(trainer: Trainer) -> list[Tensor]:
    """Return what is on the card between two steps."""
    state = [value for numbers in trainer.optimizer.state.values() for value in numbers.values()]
    tensors = [*trainer.model.parameters(), *trainer.model.buffers(), *trainer.averaged.values(), *state]
    return [tensor.detach() for tensor in tensors if tensor.device == CPU]


class InRam(saved_tensors_hooks):
    """Stores what autograd saves on the device "meta", which stands for RAM."""

    def __init__(self, **_: Any) -> None:
        super().__init__(lambda tensor: tensor.to("meta"), lambda tensor: tensor.to(CPU))


def full_bytes(step_bytes: Callable[..., int], *, blocks: bool = False, **options: Any) -> int:
    """Return what `step_bytes` gives for the model's whole number of layers; `blocks`: all blocks are in RAM."""
    shallow, deep = (
        step_bytes(config=dataclasses.replace(CONFIG, num_layers=layers), blocks=layers * blocks, **options)
        for layers in LAYERS
    )
    return shallow + (deep - shallow) * (CONFIG.num_layers - LAYERS[0])


def step_bytes(
    base: str,
    clip: tuple[int, int, int],
    *,
    rank: int = RANK,
    config: OviConfig = CONFIG,
    attention: Callable[..., Tensor] = trace.flash,
    blocks: int = 0,
    **saved: bool,
) -> int:
    """Return the peak in bytes of a step on one clip (width, height, frames), all weights on the card included.

    `saved` are the options of Trainer that save memory; `blocks` are as many that are in RAM until they run.
    """
    return peak(partial(made, base, clip, config, attention, rank, blocks, **saved), held, step)


def peak(make: Callable[[], Trained], held: Callable[[Trained], list[Tensor]], step: Callable[[Trained], None]) -> int:
    """Return the peak in bytes of a step of what is made, and of what it holds, traced with fake tensors."""
    with FakeTensorMode(), patch.object(offload, "save_on_cpu", InRam):
        run = make()
        live = Live()
        for tensor in held(run):
            live.add(tensor)
        with live:
            step(run)
    return live.peak


WAYS: dict[str, dict[str, Any]] = {  # how memory is saved: the title of a column, and what is asked for
    "default": {"recompute": True},
    "`--offload-activations`": {"recompute": True, "offload_activations": True},
    "`--offload-blocks 30`": {"recompute": True, "blocks": True},
    "both": {"recompute": True, "offload_activations": True, "blocks": True},
    "`--keep-activations`": {"recompute": False},
}


def row(base: str, clip: tuple[int, int, int], rank: int) -> str:
    """Return a row of the table."""
    part = partial(step_bytes, base, clip, rank=rank)
    return cells(base, clip, rank, [full_bytes(part, **way) for way in WAYS.values()])


def cells(base: str, clip: tuple[int, int, int], rank: int, sizes: Sequence[int]) -> str:
    """Word a row of a table, with sizes in bytes."""
    width, height, frames = clip
    words = [f"{size / 1e9:.1f} GB" for size in sizes]
    return f"| {width} x {height} x {frames} | {base} | {rank} | {' | '.join(words)} |"


def main() -> None:
    """Print the table of what a step needs, row by row."""
    print(f"| Clip | Base | Rank | {' | '.join(WAYS)} |\n{'|---' * (3 + len(WAYS))}|")
    for clip in CLIPS:
        for base in FORMATS if clip == CLIPS[0] else ("fp8", "nvfp4"):
            print(row(base, clip, RANK), flush=True)
    for rank in RANKS:
        print(row("fp8", CLIPS[0], rank), flush=True)


if __name__ == "__main__":
    main()
