"""A model in training: its steps, and the state from which it resumes exactly.

Every random number comes from one generator on the CPU, whose state is saved: a run that is resumed goes on as if it
had never stopped.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..flow import Noised, Samples, Settings, divided, losses, noised, shares
from ..lora import Lora, lora_file
from ..model import OviModel
from ..references import References
from ..writing import writing
from .distributed import Processes, share_state
from .offload import recompute_blocks
from .optimizers import learning_rate, optimizer

STATE = ("settings", "trained", "averaged", "optimizer", "draw", "history")  # what is saved, beside the clips' names


class Trainer:
    """A model in training, with its optimiser, averaged weights and random numbers.

    It trains the parameters that require a gradient, or `trained` by names of its own, on the device of the model.
    `empty` [T, text_dim] replaces a dropped text (None: no tokens). `lora` are the LoRAs that the model has. `autocast`
    computes in bfloat16 where that is safe, without changing the weights; `recompute` stores no activations within a
    block, and with `offload_activations` those between blocks are in RAM. `clips` names the samples, so that resuming
    with other ones can be noticed. `buckets` are the indices of samples that fit into one batch (none: all do).
    `complete`: no sample lacks a modality. `processes` train the model together, each with a batch of its own.
    """

    READ = "clips"  # what `clips` names

    def __init__(
        self,
        model: OviModel,
        samples: Samples,
        settings: Settings,
        steps: int,
        *,
        empty: Tensor | None = None,
        autocast: bool = False,
        recompute: bool = False,
        offload_activations: bool = False,
        lora: Lora | None = None,
        clips: Sequence[str] = (),
        buckets: Sequence[Sequence[int]] = (),
        complete: bool = False,
        processes: Processes | None = None,
        trained: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        self.processes = Processes() if processes is None else processes
        self.model = model
        called = self.processes.prepared(model, unused=not complete or settings.cut > 0)
        self.samples = samples
        self.settings = settings
        self.steps = steps
        self.lora = lora
        self.clips = list(clips)
        self.buckets = {i: bucket for bucket in buckets for i in bucket} if len(buckets) > 1 else {}
        self.empty = torch.zeros(0, model.config.text_dim) if empty is None else empty
        self.autocast = autocast
        found = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.trained = found if trained is None else dict(trained)
        self.averaged = {name: p.detach().float().clone() for name, p in self.trained.items()}
        self.device = next(iter(self.trained.values())).device
        self.optimizer = optimizer(list(self.trained.values()), settings)
        self.draw = torch.Generator().manual_seed(settings.seed)
        self.history: list[tuple[float, float]] = []  # of each step: the video's loss, the audio's
        self.whole = self.averaged  # with the shares of all processes, as of the last save
        pin = self.device.type == "cuda"
        layers = model.config.num_layers
        self.options = recompute_blocks(layers, on_cpu=offload_activations, pin=pin) if recompute else None
        self.call = partial(called, transformer_options=self.options)

    def lr(self, step: int) -> float:
        """Return the learning rate of a step."""
        return learning_rate(self.settings, step, self.steps)

    def _chosen(self, count: int) -> list[int]:
        """Draw samples, all of which fit into one batch."""
        if not self.buckets or count == 1:
            return torch.randint(len(self.samples), (count,), generator=self.draw).tolist()
        first = int(torch.randint(len(self.samples), (1,), generator=self.draw))
        bucket = self.buckets[first]
        return [first, *(bucket[i] for i in torch.randint(len(bucket), (count - 1,), generator=self.draw).tolist())]

    def _gradients(self, batch: Noised) -> tuple[Tensor, Tensor]:
        """Add the gradients of a step, part by part; return its losses for video and audio, of the whole batch."""
        processes, count = self.processes, self.settings.accumulate
        parts = divided(batch, count * processes.size)
        own = list(zip(parts, shares(batch, parts), strict=True))[processes.rank * count :][:count]
        found = []
        for part, (of_video, of_audio) in own:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                video, audio = losses(self.call, moved(part, self.device))
            video, audio = of_video * video, of_audio * audio
            # Of several processes' gradients each part gets the mean. (DDP's no_sync would get it once a step, but
            # otherwise rounded after a resume.)
            (processes.size * (video + self.settings.audio_weight * audio)).backward()
            found.append((video.detach(), audio.detach()))
        videos, audios = zip(*found, strict=True)
        video, audio = processes.summed(torch.stack([torch.stack(videos).sum(), torch.stack(audios).sum()]))
        return video, audio

    def step(self) -> tuple[float, float]:
        """Take the next step; return its losses for video and audio.

        Raises ValueError, without a change to the weights, where a loss or the gradient is not finite.
        """
        settings = self.settings
        step = len(self.history)
        chosen = self._chosen(settings.batch * settings.accumulate * self.processes.size)
        chance = torch.rand(1, generator=self.draw).item()
        batch = noised(
            [self.samples[i] for i in chosen],
            self.empty,
            settings,
            self.draw,
            split=step < settings.split_steps and chance < settings.split,
        )
        if self.lora is not None and self.lora.dropout:
            seed = int(torch.randint(2**62, (1,), generator=self.draw))
            torch.manual_seed(seed + self.processes.rank)  # what dropout draws from
        lr, found = self.lr(step), self._gradients(batch)
        self.history.append(update(self.trained, self.optimizer, lr, settings.max_norm, found, step, self.processes))
        self.average(step)
        return self.history[-1]

    def average(self, step: int) -> None:
        """Take the weights as they are after a step into their average, in which the first steps soon count little."""
        decay = min(self.settings.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.averaged.values()), [parameter.float() for parameter in self.trained.values()], 1 - decay
            )

    def described(self) -> dict[str, Any]:
        """Return what two runs must share; the rank of the LoRAs shows in the sizes of their weights."""
        return _described(self.settings, self.lora, self.processes.size)

    def result(self) -> dict[str, Tensor]:
        """Return the averaged weights as a file has them: LoRAs with the names that Load Ovi LoRA reads, or a model."""
        return self.whole if self.lora is None else lora_file(self.whole, self.lora.scale)

    def curves(self) -> dict[str, Sequence[tuple[float, float]]]:
        """Return the losses to draw, by what their drawing is called beside the result."""
        return {"": self.history}

    def more_state(self) -> dict[str, Any]:
        """Return what is saved beside `STATE`."""
        return {"clips": self.clips}

    def restore(self, path: Path, state: Mapping[str, Any]) -> None:
        """Restore what `more_state` saved, but for the clips. Raises ValueError for what does not fit this run."""

    def collect(self) -> None:
        """Bring the averaged weights together as `whole`, on the first process; every process calls it."""
        self.whole = self.processes.whole(self.averaged)

    def save(self, path: Path) -> None:
        """Write everything needed to resume, with the first process; every process calls it."""
        self.collect()
        trained = self.processes.whole({name: p.detach() for name, p in self.trained.items()})
        optimizer = self.processes.whole(self.optimizer.state_dict())
        if not self.processes.first:
            return
        state = (self.described(), trained, self.whole, optimizer, self.draw.get_state(), self.history)
        with writing(path) as part:
            torch.save(dict(zip(STATE, state, strict=True), **self.more_state()), part)

    def resume(self, path: Path) -> list[str]:
        """Resume from what `save` wrote; return notes on what has changed.

        Raises ValueError for a damaged file, and for one with other settings or of another model.
        """
        with path.open("rb") as file:
            try:
                state = torch.load(file, map_location="cpu", weights_only=True)
                settings, trained, averaged, optimizer, draw, history = (state[key] for key in STATE)
            except Exception as error:  # torch.load raises anything on a damaged file
                raise ValueError(f"{path} is not a complete training state; delete it to start again.") from error
        settings = _described(Settings(), Lora(1)) | settings  # of a version without some of them
        now = self.described()
        if changed := [key for key, value in now.items() if settings.get(key) != value]:
            raise ValueError(
                f"{path} was trained with another {', '.join(changed)} "
                f"({', '.join(str(settings.get(key)) for key in changed)}); use the same, or delete it to start again."
            )
        self.restore(path, state)
        if {name: p.shape for name, p in trained.items()} != {name: p.shape for name, p in self.trained.items()}:
            raise ValueError(f"{path} is of a model of another size; train the same, or delete it to start again.")
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(self.processes.share(trained[name], parameter))
                self.averaged[name].copy_(self.processes.share(averaged[name], parameter))
        self.optimizer.load_state_dict(share_state(self.processes, optimizer, list(self.trained.values())))
        self.draw.set_state(draw)
        self.history = history
        before, after = set(state.get("clips", self.clips)), set(self.clips)
        if before == after:
            return []
        return [
            f"The {self.READ} are not those that {path} was trained on: {len(after - before)} are new or changed, "
            f"{len(before - after)} are missing."
        ]

    def run(self, state: Path, every: int) -> Iterator[int]:
        """Train to the last step; save and yield the number of steps taken after `every` steps and at the end.

        Training that has already ended yields once all the same: its output file may be lost.
        """
        if len(self.history) >= self.steps:
            yield len(self.history)
        shown = {"unit": "step", "dynamic_ncols": True, "disable": not self.processes.first}
        with tqdm(initial=len(self.history), total=self.steps, **shown) as progress:
            while len(self.history) < self.steps:
                video, audio = self.step()
                progress.set_postfix(video=f"{video:.4f}", audio=f"{audio:.4f}", refresh=False)
                progress.update()
                if len(self.history) % every == 0 or len(self.history) == self.steps:
                    self.save(state)
                    yield len(self.history)


def update(
    trained: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    lr: float,
    max_norm: float,
    losses: tuple[Tensor, Tensor],
    step: int,
    processes: Processes,
) -> tuple[float, float]:
    """Update weights by their gradients, which are cut to a norm; return the losses that they are of as numbers.

    Raises ValueError, without a change to the weights, where a loss or the gradient is not finite.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    norm = processes.full(nn.utils.clip_grad_norm_(trained.values(), max_norm))
    video_loss, audio_loss, gradient_norm = torch.stack([*losses, norm]).tolist()
    if not all(map(math.isfinite, (video_loss, audio_loss, gradient_norm))):
        raise ValueError(
            f"Step {step + 1} has losses of {video_loss:g} (video) and {audio_loss:g} (audio), and its "
            f"gradient a norm of {gradient_norm:g}: the training stopped, and the last saved state is intact. "
            "Lower the learning rate, or look for a damaged clip or model."
        )
    optimizer.step()
    optimizer.zero_grad()
    return video_loss, audio_loss


def moved(batch: Noised, device: torch.device) -> Noised:
    """Bring a batch to a device."""
    x, velocity = (
        [None if tensor is None else tensor.to(device) for tensor in pair] for pair in (batch.x, batch.velocity)
    )
    video, audio = batch.timestep
    references = batch.references
    if references is not None:
        references = References(*([latent.to(device) for latent in kind] for kind in references))
    return batch._replace(
        x=x,
        timestep=(video.to(device), audio.to(device)),
        context=batch.context.to(device),
        velocity=velocity,
        counts=[counts.to(device) for counts in batch.counts],
        references=references,
    )


def _described(settings: Settings, lora: Lora | None, processes: int = 1) -> dict[str, Any]:
    described = {**dataclasses.asdict(settings), "number of processes": processes}
    if lora is not None:
        shared = {"alpha": lora.alpha, "dropout": lora.dropout, "layers": tuple(lora.layers), "tower": lora.tower}
        described |= {f"LoRA {name}": value for name, value in shared.items()}
    return described
