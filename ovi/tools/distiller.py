"""A model in distillation: the stages of a student, and the state from which it resumes exactly.

As in training, every random number comes from one generator on the CPU. Several processes draw the same batch, N times
as large, and each takes its rows of it.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import distillation, geometry
from ..adapters import Adapters
from ..config import OviConfig
from ..distillation import Conditions, Latents, Losses, Recipe, Velocity
from ..flow import Sample, Samples, Settings, padded
from ..lora import Lora
from ..model import OviModel
from ..references import References
from ..sampling import shifted
from .distributed import Processes
from .optimizers import learning_rate, optimizer
from .trainer import Trainer, update

STUDENT, CRITIC = "student", "critic"
CURVES = "trajectory", "dmd", "critic"
FIRST_FRAMES = 32  # of clips that were generated, which others may begin with
VARIED = 0.25  # share by which the number of steps varies where guidance alone is distilled


class Size(NamedTuple):
    """The shapes of the latents that are generated."""

    video: tuple[int, int, int, int]  # [48, F, H, W]
    audio: tuple[int, int]  # [20, L]

    @classmethod
    def of(cls, config: OviConfig, width: int, height: int, frames: int) -> Size:
        """Return those of a model's clip; its size is in pixels."""
        rows, columns = height // geometry.PIXELS_PER_LATENT, width // geometry.PIXELS_PER_LATENT
        video = config.video_channels, geometry.video_latents(frames), rows, columns
        return cls(video, (config.audio_channels, geometry.audio_latents(frames)))


class FirstFrame(NamedTuple):
    """How a clip of a prompt began."""

    prompt: int  # among all prompts
    latent: Tensor  # [48, 1, H, W]


class Batch(NamedTuple):
    """Clips to generate, on the model's device."""

    noise: Latents  # with the first frames that are given
    conditions: Conditions
    prompts: list[int]  # of the rows of all processes ...
    given: frozenset[int]  # ... and which of these have a first frame
    shares: tuple[float, float]  # of this process in what the losses of video and audio are the means of


class Distiller(Trainer):
    """A student in training: first on the teacher's trajectories or guidance, then by DMD.

    Both are LoRAs on `model`, which without them is the teacher, and so is the critic of the second stage. `iterations`
    and `dmd_iterations` are the steps of the stages. `negatives` are the negative prompts of video and audio,
    [T, text_dim]. The rest is as for a `Trainer`, whose learning rate and schedule each stage has from its start; of
    the settings, what belongs to samples with noise does not count. `processes` distil together.
    """

    READ = "prompts, negative prompts or model files"

    def __init__(
        self,
        model: OviModel,
        prompts: Samples,
        settings: Settings,
        recipe: Recipe,
        size: Size,
        iterations: int,
        dmd_iterations: int = 0,
        *,
        lora: Lora,
        negatives: tuple[Tensor, Tensor] | None = None,
        autocast: bool = False,
        recompute: bool = False,
        offload_activations: bool = False,
        device: torch.device | str | None = None,
        clips: Sequence[str] = (),
        buckets: Sequence[Sequence[int]] = (),
        processes: Processes | None = None,
    ) -> None:
        self.adapters = Adapters(model, lora, device)
        student = self.adapters.add(STUDENT)
        super().__init__(
            model,
            prompts,
            settings,
            iterations + dmd_iterations,
            autocast=autocast,
            recompute=recompute,
            offload_activations=offload_activations,
            lora=lora,
            clips=clips,
            buckets=buckets,
            trained=student,
        )
        if processes is not None:
            self.processes = processes  # only now: DDP would wait for a gradient after each pass
        self.recipe, self.size, self.iterations = recipe, size, iterations
        self.negatives = (self.empty, self.empty) if negatives is None else negatives
        self.sigmas = distillation.schedule(recipe.student_steps, settings.shift)
        self.frames = deque[FirstFrame](maxlen=FIRST_FRAMES)
        self.critic: dict[str, nn.Parameter] = {}  # of the second stage
        self.critic_optimizer: torch.optim.Optimizer | None = None
        self.critic_history: list[tuple[float, float]] = []  # of each of its updates

    def lr(self, step: int) -> float:
        """Return the student's learning rate of a step."""
        if step < self.iterations:
            return learning_rate(self.settings, step, self.iterations)
        second = dataclasses.replace(self.settings, lr=self.recipe.dmd_lr)
        return learning_rate(second, step - self.iterations, self.steps - self.iterations)

    def step(self) -> tuple[float, float]:
        """Take the next step of the student, in the second stage after the critic's; return its losses.

        Raises ValueError, without an update of what it belongs to, where a loss or a gradient is not finite.
        """
        step = len(self.history)
        if step < self.iterations:
            losses = self._gradients_of(STUDENT, self._trajectory)
            of_stage = step
        else:
            if self.critic_optimizer is None:
                self._begin_dmd()
            self._update_critic(step)
            losses = self._gradients_of(STUDENT, self._dmd)
            of_stage = step - self.iterations
        self.history.append(
            update(self.trained, self.optimizer, self.lr(step), self.settings.max_norm, losses, step, self.processes)
        )
        self.average(of_stage)
        return self.history[-1]

    def _begin_dmd(self) -> None:
        """Go on to the second stage: from the average of the first, with a critic and new optimisers."""
        with torch.no_grad():
            for name, weight in self.trained.items():
                weight.copy_(self.averaged[name])
        self.optimizer = optimizer(list(self.trained.values()), self.settings)
        torch.manual_seed(self._drawn(2**62))  # the critic's first weights
        self._add_critic()

    def _add_critic(self) -> None:
        self.critic = self.adapters.add(CRITIC)
        self.critic_optimizer = optimizer(list(self.critic.values()), self.settings)

    def _update_critic(self, step: int) -> None:
        """Let the critic learn what the student generates."""
        assert self.critic_optimizer is not None
        recipe = self.recipe
        for _ in range(recipe.critic_updates):
            losses = self._gradients_of(CRITIC, self._critic)
            found = update(
                self.critic,
                self.critic_optimizer,
                recipe.critic_lr,
                self.settings.max_norm,
                losses,
                step,
                self.processes,
            )
            self.critic_history.append(found)

    def _gradients_of(self, name: str, losses_of: Callable[[Batch], Losses]) -> Losses:
        """Add the gradients of a LoRA's losses on `accumulate` batches; return their means for video and audio.

        Both are those of all processes.
        """
        parts = self.settings.accumulate
        found = []
        for _ in range(parts):
            batch = self._batch()
            # Without the cache of converted weights, from which older PyTorch gives a pass with a gradient those of
            # one without.
            with torch.autocast(self.device.type, torch.bfloat16, self.autocast, cache_enabled=False):
                losses = losses_of(batch)
            video, audio = (loss * share for loss, share in zip(losses, batch.shares, strict=True))
            with self.adapters.use(name):  # for blocks that are computed again
                ((video + self.settings.audio_weight * audio) / parts).backward()
            found.append(torch.stack([video.detach(), audio.detach()]))
        for weight in (self.critic if name == CRITIC else self.trained).values():
            if weight.grad is not None:
                weight.grad = self.processes.summed(weight.grad)
        video, audio = self.processes.summed(torch.stack(found).mean(0))
        return video, audio

    def _trajectory(self, batch: Batch) -> Losses:
        """Return the losses of the first stage: from a point on the student's own way."""
        steps, substeps = self.recipe.student_steps, self.recipe.substeps
        if self.recipe.guidance_only:
            low, high = (max(1, round(steps * (1 + by))) for by in (-VARIED, VARIED))
            steps, substeps = low + self._drawn(high + 1 - low), 1
        i = self._drawn(steps)
        generated, shift = batch.conditions.generated, self.settings.shift
        student = self._of(STUDENT, batch)
        way = distillation.schedule(steps, shift)[: i + 1]
        x = distillation.walk(student, batch.noise, way, generated)
        sigmas = distillation.part(steps, shift, i, substeps)
        losses, end = distillation.trajectory(student, self._teacher(batch), x, sigmas, generated)
        self._keep(batch, end, last=i == steps - 1)
        return losses

    def _critic(self, batch: Batch) -> Losses:
        """Return the critic's losses on clips of the student."""
        with torch.no_grad():
            x0 = self._generated(batch)
        noise, sigma = self._noise(), self._levels()
        critic = self._of(CRITIC, batch)
        return distillation.critic_losses(critic, x0, noise, sigma, batch.conditions.generated)

    def _dmd(self, batch: Batch) -> Losses:
        """Return the student's losses of the second stage."""
        x0 = self._generated(batch)
        noise, sigma = self._noise(), self._levels()
        critic, teacher = self._of(CRITIC, batch), self._teacher(batch)
        return distillation.dmd_losses(critic, teacher, x0, noise, sigma, batch.conditions.generated)

    def _generated(self, batch: Batch) -> Latents:
        """Generate clips as the student expects them at one of its steps, with a gradient of that step alone."""
        i = self._drawn(self.recipe.student_steps)
        generated, student = batch.conditions.generated, self._of(STUDENT, batch)
        x = distillation.walk(student, batch.noise, self.sigmas[: i + 1], generated)
        x0 = distillation.clean(student, x, self.sigmas[i], generated)
        self._keep(batch, x0, last=i == self.recipe.student_steps - 1)
        return x0

    def _of(self, name: str, batch: Batch) -> Velocity:
        """Return the velocities of student or critic."""
        return distillation.unguided(partial(self._predict, name), batch.conditions)

    def _teacher(self, batch: Batch) -> Velocity:
        return distillation.guided(partial(self._predict, None), batch.conditions, self.recipe)

    def _predict(self, name: str | None, *args: Any, **options: Any) -> list[Tensor | None]:
        recomputed = self.options if torch.is_grad_enabled() else None
        with self.adapters.use(name):
            return self.model.velocities(*args, transformer_options=recomputed, **options)

    def _batch(self) -> Batch:
        """Draw prompts, noise and first frames."""
        prompts = self._chosen(self.count)
        first = self._first_frames(prompts)
        own, frames = self._own, self.size.video[1]
        samples = [self.samples[prompts[row]] for row in own]
        noise = self._noise()
        generated = torch.ones(len(own), frames, device=self.device)
        for i, row in enumerate(own):
            if row in first:
                noise[0][i, :, :1] = first[row].to(noise[0])
                generated[i, 0] = 0
        ours = len(own) * frames - len(first.keys() & set(own))
        shares = ours / (self.count * frames - len(first)), 1 / self.processes.size
        context = padded([sample.context for sample in samples]).to(self.device)
        negatives = [text[None].expand(len(samples), -1, -1).float().to(self.device) for text in self.negatives]
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, self.autocast):
            texts, others = self.model.embed_texts(noise, context), self.model.embed_texts(noise, *negatives)
        conditions = Conditions(texts, others, generated, _persons(samples, self.device))
        return Batch(noise, conditions, prompts, frozenset(first), shares)

    @property
    def count(self) -> int:
        """How many clips all processes generate at once."""
        return self.settings.batch * self.processes.size

    @property
    def _own(self) -> range:
        """The rows of this process among those of all."""
        return range(self.count)[self.settings.batch * self.processes.rank :][: self.settings.batch]

    def _drawn(self, count: int) -> int:
        """Draw a number from 0 to `count` - 1."""
        return int(torch.randint(count, (1,), generator=self.draw))

    def _noise(self) -> Latents:
        """Draw noise for clips, on the model's device."""
        own = self._own
        drawn = [torch.randn((self.count, *shape), generator=self.draw) for shape in self.size]
        return [noise[own.start : own.stop].to(self.device) for noise in drawn]

    def _levels(self) -> Tensor:
        """Draw sigmas [batch] for noise on clips, spread evenly."""
        own, (low, high) = self._own, distillation.RANGE
        even = (torch.arange(self.count) + torch.rand(1, generator=self.draw)) / self.count
        return shifted(low + even * (high - low), self.settings.shift)[own.start : own.stop].to(self.device)

    def _first_frames(self, prompts: list[int]) -> dict[int, Tensor]:
        """Draw the clips whose first frame is given; return the frames by row.

        It is that of the prompt's own clip, if there is one. Else it is one that was generated, and then its prompt
        takes the row's place in `prompts`; there are none at first.
        """
        found: dict[int, Tensor] = {}
        if not self.gives_frames:
            return found
        given = torch.rand(len(prompts), generator=self.draw) < self.settings.first_frame
        for row in given.nonzero().flatten().tolist():
            own = self.samples[prompts[row]].video
            if own is not None:
                found[row] = own[:, :1]
                continue
            fitting = [frame for frame in self.frames if self._fit(frame.prompt, prompts[row])]
            if fitting:
                chosen = fitting[self._drawn(len(fitting))]
                prompts[row], found[row] = chosen.prompt, chosen.latent
        return found

    @property
    def gives_frames(self) -> bool:
        """Whether first frames are given: a single frame would leave nothing to learn."""
        return self.settings.first_frame > 0 and self.size.video[1] > 1

    def _fit(self, one: int, other: int) -> bool:
        """Return whether two prompts can stand in one batch."""
        return not self.buckets or self.buckets[one] is self.buckets[other]

    def _keep(self, batch: Batch, x: Latents, *, last: bool) -> None:
        """Keep the first frames of clips that are generated to the `last` step, for others to begin with."""
        if not last or not self.gives_frames:
            return
        latents = self.processes.stacked(x[0][:, :, :1].detach().float()).cpu()
        for row, (prompt, latent) in enumerate(zip(batch.prompts, latents, strict=True)):
            if row not in batch.given:
                self.frames.append(FirstFrame(prompt, latent.clone()))

    def curves(self) -> dict[str, Sequence[tuple[float, float]]]:
        """Return the losses of both stages and of the critic."""
        stages = self.history[: self.iterations], self.history[self.iterations :], self.critic_history
        return dict(zip(CURVES, stages, strict=True))

    def described(self) -> dict[str, Any]:
        """Return what two runs must share, but for the numbers of steps."""
        return super().described() | dataclasses.asdict(self.recipe) | {"size of the clips": tuple(self.size)}

    def more_state(self) -> dict[str, Any]:
        """Return what is saved beside the training's own: the first frames and, of the second stage, the critic."""
        saved: dict[str, Any] = {"frames": [tuple(frame) for frame in self.frames], "begun": None}
        if self.critic_optimizer is not None:
            critic = {name: weight.detach() for name, weight in self.critic.items()}
            saved |= {"begun": self.iterations, "critic": critic, "history": self.critic_history}
            saved["optimizer"] = self.critic_optimizer.state_dict()
        return super().more_state() | {"distillation": saved}

    def restore(self, path: Path, state: Mapping[str, Any]) -> None:
        """Restore what `more_state` saved. Raises ValueError where the first stage has another number of steps."""
        saved, taken = state["distillation"], len(state["history"])
        if saved["begun"] is None and taken > self.iterations:
            raise ValueError(f"{path} has {taken} steps of the first stage; give it that many or more.")
        if saved["begun"] not in (None, self.iterations):
            raise ValueError(
                f"{path} went on to the second stage after {saved['begun']} steps, but the first is to have "
                f"{self.iterations}; use the same, or delete it to start again."
            )
        if state["clips"] == self.clips:  # else the numbers are those of other prompts
            self.frames.extend(FirstFrame(*frame) for frame in saved["frames"])
        if saved["begun"] is None:
            return
        self._add_critic()
        assert self.critic_optimizer is not None
        with torch.no_grad():
            for name, weight in self.critic.items():
                weight.copy_(saved["critic"][name])
        self.critic_optimizer.load_state_dict(saved["optimizer"])
        self.critic_history = saved["history"]


def _persons(samples: Sequence[Sample], device: torch.device) -> References | None:
    """Stack the references of samples, person by person; None: they have none."""
    images, voices = (
        [torch.stack(latents).float().to(device) for latents in zip(*each, strict=True)]
        for each in ([sample.images for sample in samples], [sample.voices for sample in samples])
    )
    return References(images, voices) if images or voices else None
