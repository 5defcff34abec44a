"""The memory that a step of training needs on the card: `python -m bench.training_memory` prints the tables.

Nothing is run: whole steps of LoRAs, forward, backward and the optimiser's, are traced with fake tensors on the
full-size model with all its layers. Counted are the base's weights, the activations, and the LoRAs in float32 with
their gradients, AdamW's two numbers each and the average. A test compares such a trace with what PyTorch allocates in a
real step of a small model. 1 GB is 10^9 bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from bench import trace
from bench.memory import CONFIG
from ovi.config import OviConfig
from ovi.flow import Noised, Sample, Settings, losses
from ovi.lora import Lora, add_lora
from ovi.model import OviModel
from ovi.tools.convert import FORMATS, MATRIX
from ovi.tools.frozen import FrozenLinear
from ovi.tools.trainer import Trainer

CLIPS = [(704, 704, 121), (960, 960, 121), (960, 960, 241)]
RANK, RANKS = 32, (16, 128)
CPU = torch.device("cpu")  # of the fake tensors too, in whose sizes no device shows


def base_model(base: str, config: OviConfig, attention: Callable[..., Tensor]) -> OviModel:
    """Return a model in bfloat16, its matrices stored as `base` (a key of `convert.FORMATS`), with random numbers."""
    from comfy_kitchen.tensor import QuantizedTensor

    model = OviModel(config, attention=attention, device=CPU, dtype=torch.bfloat16).requires_grad_(False)
    form = FORMATS[base]
    for name, weight in list(model.named_parameters()):
        nn.init.normal_(weight, mean=float("norm" in name and name.endswith("weight")), std=0.02)
        if form and MATRIX.fullmatch(name):
            layer = name.removesuffix(".weight")
            stored = QuantizedTensor.from_float(weight.float(), form.layout, **form.options).state_dict("")
            scales = {"scale": stored["_scale"]}
            if "_scale_2" in stored:
                scales = {"scale": stored["_scale_2"], "block_scale": stored["_scale"]}
            linear = model.get_submodule(layer)
            assert isinstance(linear, nn.Linear)
            model.set_submodule(layer, FrozenLinear(form.name, stored[""], scales, linear))
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
    hold(model)
    in_ram(model, blocks)
    lora = Lora(rank)
    add_lora(model, lora, CPU)
    x = [torch.randn(shape[1:]) for shape in trace.latents(config, 1, *clip)]
    sample = Sample(x[0], x[1], torch.randn(config.text_len, config.text_dim))
    trainer = Trainer(model, [sample], Settings(), 1000, lora=lora, autocast=True, **saved)  # type: ignore[arg-type]
    for parameter in trainer.trained.values():
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()  # which makes its state
    trainer.optimizer.zero_grad()
    return trainer


def hold(model: OviModel) -> None:
    """Make buffers of a model's weights, in place: the tracker wants a gradient of each parameter."""
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, weight.data)


def in_ram(model: OviModel, blocks: int) -> None:
    """Have the weights of the last blocks' linear layers come when they run, as `offload.place` does."""
    if blocks:
        from accelerate.hooks import AlignDevicesHook, add_hook_to_module
    for tower in (model.video_model, model.audio_model):
        for block in list(tower.blocks)[model.config.num_layers - blocks :]:
            for layer in block.modules():
                if isinstance(layer, (nn.Linear, FrozenLinear)):
                    there = {name: weight.data.to("meta") for name, weight in layer.named_buffers()}
                    add_hook_to_module(
                        layer, AlignDevicesHook(CPU, offload=True, weights_map=there, offload_buffers=True)
                    )


def step(trainer: Trainer) -> None:
    """Do what a step of the trainer does with tensors on the card, whose numbers do not matter."""
    (sample,) = trainer.samples  # type: ignore[misc]
    clean = [one[None] for one in (sample.video, sample.audio)]
    noise = [torch.randn_like(one) for one in clean]
    counts = [torch.ones(1, 1, clean[0].shape[2], 1, 1), torch.ones(1, 1, 1)]
    times = torch.full((1, clean[0].shape[2]), 500.0), torch.full((1,), 500.0)
    batch = Noised(clean, times, sample.context[None], noise, counts)
    with torch.autocast("cpu", torch.bfloat16):
        video, audio = losses(trainer.call, batch)
    (video + audio).backward()
    nn.utils.clip_grad_norm_(trainer.trained.values(), 1.0)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    torch._foreach_lerp_(list(trainer.averaged.values()), [p.data for p in trainer.trained.values()], 0.5)


def held(trainer: Trainer) -> list[Tensor]:
    """Return what is on the card between two steps."""
    state = [value for numbers in trainer.optimizer.state.values() for value in numbers.values()]
    tensors = [*trainer.model.parameters(), *trainer.model.buffers(), *trainer.averaged.values(), *state]
    return [tensor.detach() for tensor in tensors if tensor.device == CPU]


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
    with FakeTensorMode():
        trainer = made(base, clip, config, attention, rank, blocks, **saved)
        tracker = MemTracker()
        tracker.track_external(*held(trainer))
        with tracker:
            step(trainer)
    return int(tracker.get_tracker_snapshot("peak")[CPU]["Total"])
