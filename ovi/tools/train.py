"""Training of Ovi, both towers at once: `python -m ovi.tools.train --help`.

Every random number comes from one generator on the CPU, whose state is saved: a run that is resumed goes on as if it
had never stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed
from tqdm import tqdm

from .. import checkpoint, quantised
from ..files import joined, naming, read_safetensors, shards
from ..flow import Noised, Samples, Settings, losses, noised
from ..lora import add_lora
from ..model import OviModel
from ..references import References
from .clips import Folder
from .files import check_paths, complete, exit_code, program

STATE = ("settings", "trained", "averaged", "optimizer", "draw", "history")  # what is saved, beside the clips' names


def recompute_blocks(layers: int) -> dict[str, Any]:
    """Return `transformer_options` that recompute a block's activations for its gradient instead of storing them."""

    def replace(args: Mapping[str, Any], extra: Mapping[str, Any]) -> Any:
        return recomputed(extra["original_block"], args, use_reentrant=False)

    return {"patches_replace": {"dit": {("double_block", i): replace for i in range(layers)}}}


class Trainer:
    """A model in training, with its optimiser, averaged weights and random numbers.

    It trains the parameters that require a gradient, on the device of the model. `empty` [T, text_dim] replaces a
    dropped text (None: no tokens). `autocast` computes in bfloat16 where that is safe, without changing the weights;
    `recompute` stores no activations within a block. `clips` names the samples, so that resuming with other ones can be
    noticed.
    """

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
        clips: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.samples = samples
        self.settings = settings
        self.steps = steps
        self.clips = list(clips)
        self.empty = torch.zeros(0, model.config.text_dim) if empty is None else empty
        self.autocast = autocast
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averaged = {name: p.detach().float().clone() for name, p in self.trained.items()}
        self.device = next(iter(self.trained.values())).device
        self.optimizer = torch.optim.AdamW(
            self.trained.values(),
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.draw = torch.Generator().manual_seed(settings.seed)
        self.history: list[tuple[float, float]] = []  # of each step: the video's loss, the audio's
        options = recompute_blocks(model.config.num_layers) if recompute else None
        self.call = partial(model, transformer_options=options)

    def lr(self, step: int) -> float:
        """Return the learning rate of a step: rising, constant, and falling to zero at the last."""
        down = max(1.0, self.settings.cooldown * self.steps)
        return self.settings.lr * min(1.0, (step + 1) / max(1, self.settings.warmup), (self.steps - step) / down)

    def step(self) -> tuple[float, float]:
        """Take the next step; return its losses for video and audio.

        Raises ValueError, without a change to the weights, where a loss or the gradient is not finite.
        """
        settings = self.settings
        step = len(self.history)
        chosen = torch.randint(len(self.samples), (settings.batch,), generator=self.draw).tolist()
        chance = torch.rand(1, generator=self.draw).item()
        batch = noised(
            [self.samples[i] for i in chosen],
            self.empty,
            settings,
            self.draw,
            split=step < settings.split_steps and chance < settings.split,
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            video, audio = losses(self.call, moved(batch, self.device))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(step)
        (video + settings.audio_weight * audio).backward()
        norm = nn.utils.clip_grad_norm_(self.trained.values(), settings.max_norm)
        video_loss, audio_loss, gradient_norm = torch.stack([video.detach(), audio.detach(), norm]).tolist()
        if not all(map(math.isfinite, (video_loss, audio_loss, gradient_norm))):
            raise ValueError(
                f"Step {step + 1} has losses of {video_loss:g} (video) and {audio_loss:g} (audio), and its "
                f"gradient a norm of {gradient_norm:g}: the training stopped, and the last saved state is intact. "
                "Lower the learning rate, or look for a damaged clip or model."
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        decay = min(settings.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.averaged.values()), [parameter.float() for parameter in self.trained.values()], 1 - decay
            )
        self.history.append((video_loss, audio_loss))
        return self.history[-1]

    def save(self, path: Path) -> None:
        """Write everything needed to resume."""
        trained = {name: p.detach() for name, p in self.trained.items()}
        settings, optimizer = dataclasses.asdict(self.settings), self.optimizer.state_dict()
        state = (settings, trained, self.averaged, optimizer, self.draw.get_state(), self.history)
        with _writing(path) as part:
            torch.save(dict(zip(STATE, state, strict=True), clips=self.clips), part)

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
        settings = dataclasses.asdict(Settings()) | settings  # of a version without some of them
        if changed := [key for key, value in dataclasses.asdict(self.settings).items() if settings[key] != value]:
            raise ValueError(
                f"{path} was trained with another {', '.join(changed)} "
                f"({', '.join(str(settings[key]) for key in changed)}); use the same, or delete it to start again."
            )
        if {name: p.shape for name, p in trained.items()} != {name: p.shape for name, p in self.trained.items()}:
            raise ValueError(f"{path} is of a model of another size; train the same, or delete it to start again.")
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(trained[name])
                self.averaged[name].copy_(averaged[name])
        self.optimizer.load_state_dict(optimizer)
        self.draw.set_state(draw)
        self.history = history
        before, now = set(state.get("clips", self.clips)), set(self.clips)
        if before == now:
            return []
        return [
            f"The clips are not those that {path} was trained on: {len(now - before)} are new or changed, "
            f"{len(before - now)} are missing."
        ]

    def run(self, state: Path, every: int) -> Iterator[int]:
        """Train to the last step; save and yield the number of steps taken after `every` steps and at the end.

        Training that has already ended yields once all the same: its output file may be lost.
        """
        if len(self.history) >= self.steps:
            yield len(self.history)
        with tqdm(initial=len(self.history), total=self.steps, unit="step", dynamic_ncols=True) as progress:
            while len(self.history) < self.steps:
                video, audio = self.step()
                progress.set_postfix(video=f"{video:.4f}", audio=f"{audio:.4f}", refresh=False)
                progress.update()
                if len(self.history) % every == 0 or len(self.history) == self.steps:
                    self.save(state)
                    yield len(self.history)


def moved(batch: Noised, device: torch.device) -> Noised:
    """Bring a batch to a device."""
    x, velocity, counts = (
        [None if tensor is None else tensor.to(device) for tensor in pair]
        for pair in (batch.x, batch.velocity, batch.counts)
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
        counts=counts,
        references=references,
    )


def load(paths: Sequence[Path]) -> tuple[OviModel, dict[str, str]]:
    """Load an Ovi model from one file with both towers, or from two with one each; return it and the files' metadata.

    Raises ValueError where the files are not a complete, valid Ovi model in 16 or 32 bits.
    """
    parts = [[read_safetensors(shard) for shard in shards(path)] for path in paths]
    with naming(*paths):
        sd, metadata, config = checkpoint.assemble(map(joined, parts))
    if quantised.formats(sd) or any(t.is_floating_point() and t.itemsize == 1 for t in sd.values()):
        raise ValueError(f"{paths[0]} is quantised, which cannot be trained; use a file in bf16, fp16 or fp32.")
    model = OviModel(config, device="meta")
    model.load_state_dict(sd, assign=True)
    return model, metadata


def write(trainer: Trainer, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the averaged weights: LoRAs with the names that Load Ovi LoRA reads, or a whole model."""
    weights = trainer.averaged
    if any(".lora_A." in name for name in weights):
        weights = {f"diffusion_model.{name}": tensor for name, tensor in weights.items()}
    with _writing(path) as part:
        save_file({name: tensor.bfloat16().cpu() for name, tensor in weights.items()}, part, metadata=dict(metadata))


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Write a file, complete or not at all. What PyTorch and safetensors raise on a full disk becomes an OSError."""
    with complete(path) as (part,):
        try:
            yield part
        except (RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise OSError(f"{path} could not be written ({reason}); is the disk full?") from error


def _parser() -> argparse.ArgumentParser:
    defaults = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m ovi.tools.train",
        description="Train LoRAs for both towers of Ovi, or the whole model, on latents.",
        epilog="A clip is a safetensors file: video [48, F, H, W] (normalised), audio [20, L], context [T, text_dim].",
    )
    parser.add_argument("model", type=Path, nargs="+", help="the checkpoint, or one file for each tower")
    parser.add_argument("--clips", type=Path, required=True, help="a folder of clips")
    parser.add_argument("--out", type=Path, required=True, help="the file to write; OUT.state holds the progress")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rank", type=int, default=32, help="rank of the LoRAs; 0 trains the whole model")
    parser.add_argument("--batch", type=int, default=defaults.batch)
    parser.add_argument("--lr", type=float, default=defaults.lr)
    parser.add_argument("--shift", type=float, default=defaults.shift, help="shift of the distribution of sigma")
    parser.add_argument("--audio-weight", type=float, default=defaults.audio_weight, help="weight of the audio's loss")
    parser.add_argument(
        "--first-frame",
        type=float,
        default=defaults.first_frame,
        help="share of clips whose first frame is given",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--save-every", type=int, default=100, metavar="STEPS")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--float32", action="store_true", help="compute in float32 instead of bfloat16")
    parser.add_argument("--keep-activations", action="store_true", help="faster, but needs far more memory")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train; return the exit code: 0, or 2 with one line on stderr, or 130 where it was interrupted."""
    args = _parser().parse_args(argv)
    state = args.out.with_name(f"{args.out.name}.state")
    names = [field.name for field in dataclasses.fields(Settings) if hasattr(args, field.name)]

    def work() -> int:
        settings = Settings(**{name: getattr(args, name) for name in names})
        for name, least in (("steps", 1), ("rank", 0), ("save_every", 1)):
            if getattr(args, name) < least:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} is {getattr(args, name)}, but must be at least {least}.")
        check_device(args.device)
        check_paths(args.model, [args.out, state], force=True)
        if args.out.exists() and not state.exists():
            raise ValueError(
                f"{args.out} exists, but {state.name}, the state of its training, does not; choose another name."
            )
        model, metadata = load(args.model)
        if args.rank > model.config.dim:
            raise ValueError(f"--rank is {args.rank}, but the model's layers are {model.config.dim} wide.")
        folder = Folder(args.clips, model.config)
        check_paths([*args.model, *folder.paths], [args.out, state], force=True)
        model.to(args.device, weight_dtype(model, float32=args.float32 or not args.rank))
        if args.rank:
            torch.manual_seed(args.seed)  # the LoRAs' first weights
            add_lora(model, args.rank)
        trainer = Trainer(
            model,
            folder,
            settings,
            args.steps,
            autocast=not args.float32,
            recompute=not args.keep_activations,
            clips=folder.names(),
        )
        if state.exists():
            for note in trainer.resume(state):
                sys.stderr.write(f"{note}\n")
        for _ in trainer.run(state, args.save_every):
            write(trainer, args.out, metadata)
        return 0

    return exit_code(work, f"Interrupted; the same command resumes from {state}, if that was saved.")


def check_device(name: str) -> None:
    """Raise ValueError for a device that does not exist."""
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"There is no device '{name}' ({reason}); use cuda, cpu or another device that PyTorch supports."
        ) from error


def weight_dtype(model: OviModel, *, float32: bool) -> torch.dtype | None:
    """Return the dtype to convert the weights to (None: keep theirs).

    In 16 bits, small steps of a whole model are lost; float16, in which Ovi overflows, becomes bfloat16.
    """
    if float32:
        return torch.float32
    return torch.bfloat16 if any(p.dtype == torch.float16 for p in model.parameters()) else None


if __name__ == "__main__":
    program(main)
