"""The memory that a step of distillation needs on the card: `python -m bench.distillation_memory` prints the table.

As `bench.training_memory` does it for training, whose words it uses: nothing is run. A step of the first stage is one
of the student. One of the second is an update of the critic, then one of the student, whose activations are there while
critic and teacher pass. Student and teacher have one step here, for passes without a gradient leave nothing
behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from bench import trace
from bench.memory import CONFIG
from bench.training_memory import (
    CLIPS,
    CPU,
    RANK,
    RANKS,
    base_model,
    cells,
    full_bytes,
    held,
    in_ram,
    peak,
    start,
    update,
)
from ovi import distillation
from ovi.config import OviConfig
from ovi.distillation import Losses, Recipe
from ovi.flow import Sample, Settings
from ovi.lora import Lora
from ovi.tools.convert import FORMATS
from ovi.tools.distiller import CRITIC, STUDENT, Batch, Distiller, Size

STAGES = "trajectory", "dmd"
RECIPE = Recipe(student_steps=1, substeps=1, critic_updates=1, skip_blocks=())


class Traced(Distiller):
    """A distiller that draws no numbers, which tensors without contents do not have: the last of all, always."""

    def _drawn(self, count: int) -> int:
        return count - 1

    def _chosen(self, count: int) -> list[int]:
        return [0] * count


def made(
    stage: str,
    base: str,
    clip: tuple[int, int, int],
    config: OviConfig,
    attention: Callable[..., Tensor],
    rank: int,
    blocks: int = 0,
    kind: type[Distiller] = Traced,
    **saved: bool,
) -> Distiller:
    """Return a distiller of one clip (width, height, frames) at a time in one of STAGES, as after a step.

    The weights of the last `blocks` blocks have the device "meta", which stands for RAM, until they are used.
    """
    model = base_model(base, config, attention)
    in_ram(model, blocks)
    context = torch.randn(config.text_len, config.text_dim)
    run = kind(
        model,
        [Sample(None, None, context)],
        Settings(batch=1, first_frame=0.0),
        RECIPE,
        Size.of(config, *clip),
        STAGES.index("dmd") - STAGES.index(stage),
        1,
        lora=Lora(rank),
        negatives=(context, context),
        autocast=True,
        device=CPU,
        **saved,
    )
    if stage == "dmd":
        run._begin_dmd()
    for weights, optimizer in updated(run):
        start(weights, optimizer)
    return run


def updated(run: Distiller) -> list[tuple[list[nn.Parameter], torch.optim.Optimizer]]:
    """Return the weights of student and, of the second stage, critic, each with its optimiser."""
    found = [(list(run.trained.values()), run.optimizer)]
    if run.critic_optimizer is not None:
        found.append((list(run.critic.values()), run.critic_optimizer))
    return found


def on_card(run: Distiller) -> list[Tensor]:
    """Return what is on the card between two steps."""
    critic = run.critic_optimizer.state.values() if run.critic_optimizer is not None else ()
    return [*held(run), *(value for numbers in critic for value in numbers.values())]


def step(run: Distiller) -> None:
    """Do what a step of the distiller does with tensors on the card, whose numbers do not matter."""
    student, *critic = updated(run)
    if critic:
        _update(run, CRITIC, run._critic, *critic[0])
    _update(run, STUDENT, run._dmd if critic else run._trajectory, *student)
    torch._foreach_lerp_(list(run.averaged.values()), [p.data for p in run.trained.values()], 0.5)


def _update(
    run: Distiller,
    name: str,
    losses_of: Callable[[Batch], Losses],
    weights: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    run._gradients_of(name, losses_of)
    update(weights, optimizer)


def real_schedule(steps: int, shift: float) -> list[float]:
    """Return the sigmas of a schedule, which are numbers in a trace, too."""
    with unset_fake_temporarily():
        return SCHEDULE(steps, shift)


SCHEDULE = distillation.schedule


def step_bytes(
    stage: str,
    base: str,
    clip: tuple[int, int, int],
    *,
    rank: int = RANK,
    config: OviConfig = CONFIG,
    attention: Callable[..., Tensor] = trace.flash,
    blocks: int = 0,
    **saved: bool,
) -> int:
    """Return the peak in bytes of a step of one of STAGES, all weights on the card included.

    `saved` are the options of Distiller that save memory; `blocks` are as many that are in RAM until they run.
    """
    with patch.object(distillation, "schedule", real_schedule):
        return peak(partial(made, stage, base, clip, config, attention, rank, blocks, **saved), on_card, step)


WAYS: dict[str, dict[str, Any]] = {  # how memory is saved: the title of a column, and what is asked for
    "": {"recompute": True},
    " `--offload-blocks 30`": {"recompute": True, "blocks": True},
}


def row(base: str, clip: tuple[int, int, int], rank: int) -> str:
    """Return a row of the table."""
    parts = [partial(step_bytes, stage, base, clip, rank=rank) for stage in STAGES]
    return cells(base, clip, rank, [full_bytes(part, **way) for way in WAYS.values() for part in parts])


def main() -> None:
    """Print the table of what a step needs, row by row."""
    titles = [f"{stage}{way}" for way in WAYS for stage in ("trajectory", "DMD")]
    print(f"| Clip | Base | Rank | {' | '.join(titles)} |\n{'|---' * (3 + len(titles))}|")
    for clip in CLIPS:
        for base in FORMATS if clip == CLIPS[0] else ("bf16", "fp8"):
            print(row(base, clip, RANK), flush=True)
    for rank in RANKS:
        print(row("fp8", CLIPS[0], rank), flush=True)


if __name__ == "__main__":
    main()
