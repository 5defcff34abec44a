"""Training of Ovi, both towers at once: `python -m ovi.training --help`.

Flow matching: x = (1 - sigma) x0 + sigma noise, and the model learns the velocity noise - x0 of both modalities.
Sigma has the distribution of a shifted schedule and is one for both towers; in a share of the first steps each tower
has a range of its own instead, one nearly clean and the other nearly noise, so that what is noise can only be learned
from the other tower. Every random number comes from one generator on the CPU, whose state is saved: a run that is taken
up again goes on as if it had never stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed
from tqdm import tqdm

from . import checkpoint
from .model import OviModel

CLEAN, NOISY = (0.0, 0.3), (0.6, 1.0)  # ranges of sigma where each tower has its own
STATE = ("settings", "trained", "averaged", "optimizer", "draw", "history")  # what is saved
LORA_LAYER = re.compile(r"\.blocks\.\d+\.(self_attn|cross_attn|ffn)\.")


class Clip(NamedTuple):
    """A clip as the model sees it."""

    video: Tensor  # [48, F, H, W], normalised for each channel
    audio: Tensor  # [20, L]
    context: Tensor  # the text, [T, text_dim]


class Clips(Protocol):
    """What training draws from: a list of clips, or what reads or makes them when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Clip: ...


@dataclass(frozen=True)
class Settings:
    """How to train; all that two runs must share to have the same losses, but the number of steps."""

    batch: int = 1
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup: int = 100  # steps in which the learning rate rises
    cooldown: float = 0.2  # share of the steps, the last ones, in which it falls to zero
    max_norm: float = 1.0  # of the gradient
    ema: float = 0.998  # decay of the averaged weights
    shift: float = 5.0  # of sigma's distribution
    audio_weight: float = 1.0  # of the audio's loss, a mean over its elements; the video's has 1
    text_dropout: float = 0.1  # share of clips without their text, for guidance
    first_frame: float = 0.2  # share of clips whose first frame is given
    split: float = 0.0  # share of batches in which each tower has a sigma of its own ...
    split_steps: int = 0  # ... among so many first steps
    seed: int = 0


class Noised(NamedTuple):
    """What the model gets, and what it should give."""

    x: list[Tensor]  # video [B, 48, F, H, W], audio [B, 20, L]
    timestep: tuple[Tensor, Tensor]  # video [B, F], audio [B]
    context: Tensor  # [B, T, text_dim]
    velocity: list[Tensor]  # as x
    counts: Tensor  # [B, 1, F, 1, 1]: 0 where a frame was given, which teaches nothing


def noised(
    clips: Sequence[Clip], empty: Tensor, settings: Settings, draw: torch.Generator, *, split: bool = False
) -> Noised:
    """Draw sigmas and noise for a batch; `empty` [T, text_dim] is the text of a clip whose own is dropped.

    The sigmas of a batch are spread evenly over their distribution. Raises ValueError where the clips' sizes differ.
    """
    for name, tensors in (("video", [clip.video for clip in clips]), ("audio", [clip.audio for clip in clips])):
        if len(shapes := {tuple(tensor.shape) for tensor in tensors}) > 1:
            raise ValueError(f"The {name} latents of a batch have shapes {shapes}; train with a batch of 1.")
    n = len(clips)
    x0 = [torch.stack([clip.video for clip in clips]).float(), torch.stack([clip.audio for clip in clips]).float()]
    even = (torch.arange(n) + torch.rand(1, generator=draw)) / n
    sigma = even * settings.shift / (1 + (settings.shift - 1) * even)
    video_sigma, audio_sigma = sigma, sigma
    if split:
        low, high = (torch.rand(n, generator=draw) * (b - a) + a for a, b in (CLEAN, NOISY))
        swap = torch.rand(n, generator=draw) < 0.5
        video_sigma, audio_sigma = torch.where(swap, low, high), torch.where(swap, high, low)
    frames = video_sigma[:, None].repeat(1, x0[0].shape[2])
    given = torch.rand(n, generator=draw) < settings.first_frame
    if frames.shape[1] > 1:  # of a picture nothing would be left to learn
        frames[given, 0] = 0
    dropped = torch.rand(n, generator=draw) < settings.text_dropout
    texts = [empty if drop else clip.context for drop, clip in zip(dropped, clips, strict=True)]
    longest = max(map(len, texts))
    context = torch.stack([F.pad(text.float(), (0, 0, 0, longest - len(text))) for text in texts])
    noise = [torch.randn(x.shape, generator=draw) for x in x0]
    by_part = frames[:, None, :, None, None], audio_sigma[:, None, None]
    x = [torch.lerp(clean, eps, s) for clean, eps, s in zip(x0, noise, by_part, strict=True)]
    velocity = [eps - clean for clean, eps in zip(x0, noise, strict=True)]
    counts = (by_part[0] > 0).float()
    return Noised(x, (1000 * frames, 1000 * audio_sigma), context, velocity, counts)


def losses(model: Callable[..., list[Any]], batch: Noised) -> tuple[Tensor, Tensor]:
    """Mean squared errors of the video's and the audio's velocity."""
    video, audio = model(batch.x, batch.timestep, batch.context)
    of_video = (video.float() - batch.velocity[0]).square() * batch.counts
    share = batch.counts.mean()
    return of_video.mean() / share, (audio.float() - batch.velocity[1]).square().mean()


def recompute_blocks(layers: int) -> dict[str, Any]:
    """`transformer_options` with which a block's activations are computed anew for its gradient instead of kept."""

    def replace(args: Mapping[str, Any], extra: Mapping[str, Any]) -> Any:
        return recomputed(extra["original_block"], args, use_reentrant=False)

    return {"patches_replace": {"dit": {("double_block", i): replace for i in range(layers)}}}


class LoraLinear(nn.Module):
    """A frozen linear layer and a trained product of two thin matrices, zero at first."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, device=base.weight.device)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, device=base.weight.device)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] → [..., outputs]."""
        return self.base(x) + self.lora_B(self.lora_A(x.to(self.lora_A.weight.dtype))).to(x.dtype)


def add_lora(model: OviModel, rank: int) -> None:
    """Freeze a model and put LoRAs on the attentions and feed-forwards of both towers, in place."""
    model.requires_grad_(False)
    layers = {name: layer for name, layer in model.named_modules() if LORA_LAYER.search(name)}
    for name, layer in layers.items():
        if isinstance(layer, nn.Linear):
            model.set_submodule(name, LoraLinear(layer, rank))


class Trainer:
    """A model in training, with its optimiser, averaged weights and random numbers.

    What is trained is what requires a gradient, where the model is. `empty` [T, text_dim] is the text of a clip whose
    own is dropped (none: no token). `autocast` computes in bfloat16 what bears it, while the weights stay as they are;
    `recompute` keeps no activations within a block.
    """

    def __init__(
        self,
        model: OviModel,
        clips: Clips,
        settings: Settings,
        steps: int,
        *,
        empty: Tensor | None = None,
        autocast: bool = False,
        recompute: bool = False,
    ) -> None:
        self.model = model
        self.clips = clips
        self.settings = settings
        self.steps = steps
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
        """The learning rate of a step: up, level, and down to zero at the last."""
        down = max(1.0, self.settings.cooldown * self.steps)
        return self.settings.lr * min(1.0, (step + 1) / max(1, self.settings.warmup), (self.steps - step) / down)

    def step(self) -> tuple[float, float]:
        """Take the next step; return its losses of video and audio."""
        settings = self.settings
        step = len(self.history)
        chosen = torch.randint(len(self.clips), (settings.batch,), generator=self.draw).tolist()
        chance = torch.rand(1, generator=self.draw).item()
        batch = noised(
            [self.clips[i] for i in chosen],
            self.empty,
            settings,
            self.draw,
            split=step < settings.split_steps and chance < settings.split,
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            video, audio = losses(self.call, _moved(batch, self.device))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(step)
        (video + settings.audio_weight * audio).backward()
        nn.utils.clip_grad_norm_(self.trained.values(), settings.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        decay = min(settings.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, parameter in self.trained.items():
                self.averaged[name].lerp_(parameter.float(), 1 - decay)
        self.history.append((video.item(), audio.item()))
        return self.history[-1]

    def save(self, path: Path) -> None:
        """Write all that it takes to go on, whole or not at all."""
        trained = {name: p.detach() for name, p in self.trained.items()}
        settings, optimizer = dataclasses.asdict(self.settings), self.optimizer.state_dict()
        state = (settings, trained, self.averaged, optimizer, self.draw.get_state(), self.history)
        with _whole(path) as part:
            torch.save(dict(zip(STATE, state, strict=True)), part)

    def resume(self, path: Path) -> None:
        """Go on from what `save` wrote.

        Raises ValueError where the file is damaged, or of other settings or another model.
        """
        with path.open("rb") as file:
            try:
                state = torch.load(file, map_location="cpu", weights_only=True)
                settings, trained, averaged, optimizer, draw, history = (state[key] for key in STATE)
            except Exception as error:  # a damaged file makes torch.load run into anything
                raise ValueError(f"{path} is no training state, or not a whole one; start anew without it.") from error
        if changed := [key for key, value in dataclasses.asdict(self.settings).items() if settings.get(key) != value]:
            raise ValueError(
                f"{path} was trained with another {', '.join(changed)} "
                f"({', '.join(str(settings.get(key)) for key in changed)}); use the same, or start anew without it."
            )
        if {name: p.shape for name, p in trained.items()} != {name: p.shape for name, p in self.trained.items()}:
            raise ValueError(f"{path} is of a model of other sizes; train the same one, or start anew without it.")
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(trained[name])
                self.averaged[name].copy_(averaged[name])
        self.optimizer.load_state_dict(optimizer)
        self.draw.set_state(draw)
        self.history = history

    def run(self, state: Path, every: int) -> Iterator[int]:
        """Train to the last step; save, and yield the number of steps taken, after every so many and at the end.

        Where training has ended before, yield once all the same: what was made of it may be lost.
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


def _moved(batch: Noised, device: torch.device) -> Noised:
    x, velocity = ([tensor.to(device) for tensor in pair] for pair in (batch.x, batch.velocity))
    video, audio = batch.timestep
    return Noised(x, (video.to(device), audio.to(device)), batch.context.to(device), velocity, batch.counts.to(device))


class Folder:
    """Clips as safetensors files of "video", "audio" and "context" (see `Clip`), read when they are asked for."""

    def __init__(self, path: Path) -> None:
        self.paths = sorted(path.glob("*.safetensors"))
        if not self.paths:
            raise ValueError(f"There are no .safetensors files in {path}; each clip needs one.")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Clip:
        """Raises ValueError for a file of another kind."""
        path = self.paths[index]
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file, or not a whole one ({error}).") from error
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        if {name: len(shape) for name, shape in shapes.items()} != {"video": 4, "audio": 2, "context": 2}:
            raise ValueError(
                f"{path} has {shapes}; a clip needs video [48, F, H, W], audio [20, L] and context [T, text_dim]."
            )
        return Clip(**tensors)


def load(paths: Sequence[Path]) -> tuple[OviModel, dict[str, str]]:
    """An Ovi model from one file with both towers, or from two with one each, and the files' metadata.

    Raises ValueError where the files are not a complete, sound Ovi model of 16 or 32 bits.
    """
    sd, metadata, config = checkpoint.assemble(_read(path) for path in paths)
    if checkpoint.formats(sd) or any(t.is_floating_point() and t.itemsize == 1 for t in sd.values()):
        raise ValueError(f"{paths[0]} is quantised, which cannot be trained; take one of bf16, fp16 or fp32.")
    model = OviModel(config, device="meta")
    model.load_state_dict(sd, assign=True)
    return model, metadata


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """A file's tensors and metadata."""
    try:
        with safe_open(path, "pt") as file:
            return load_file(path), file.metadata()
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or not a whole one ({error}); get it again.") from error


def write(trainer: Trainer, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the averaged weights, all or none: LoRAs in the names that Load Ovi LoRA reads, or a whole model."""
    weights = trainer.averaged
    if any(".lora_A." in name for name in weights):
        weights = {f"diffusion_model.{name}": tensor for name, tensor in weights.items()}
    with _whole(path) as part:
        save_file({name: tensor.bfloat16().cpu() for name, tensor in weights.items()}, part, metadata=dict(metadata))


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Where to write a file that is to be whole or not there."""
    part = path.with_name(f"{path.name}.part")
    yield part
    part.replace(path)


def _parser() -> argparse.ArgumentParser:
    defaults = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m ovi.training",
        description="Train Ovi, or LoRAs of both its towers, on latents.",
        epilog="A clip is a safetensors file: video [48, F, H, W] (normalised), audio [20, L], context [T, text_dim].",
    )
    parser.add_argument("model", type=Path, nargs="+", help="the checkpoint, or one file for each tower")
    parser.add_argument("--clips", type=Path, required=True, help="a folder of clips")
    parser.add_argument("--out", type=Path, required=True, help="the file to write; OUT.state is where training stands")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rank", type=int, default=32, help="of the LoRAs; 0 trains the whole model")
    parser.add_argument("--batch", type=int, default=defaults.batch)
    parser.add_argument("--lr", type=float, default=defaults.lr)
    parser.add_argument("--shift", type=float, default=defaults.shift, help="of sigma's distribution")
    parser.add_argument("--audio-weight", type=float, default=defaults.audio_weight, help="of the audio's loss")
    parser.add_argument(
        "--first-frame", type=float, default=defaults.first_frame, help="share with a given first frame"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--save-every", type=int, default=100, metavar="STEPS")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--float32", action="store_true", help="compute in float32, not bfloat16")
    parser.add_argument("--keep-activations", action="store_true", help="faster, but takes far more memory")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train; return the exit code: 0, or 2 with one line on stderr, or 130 where it was interrupted."""
    args = _parser().parse_args(argv)
    state = args.out.with_name(f"{args.out.name}.state")
    names = [field.name for field in dataclasses.fields(Settings) if hasattr(args, field.name)]
    try:
        model, metadata = load(args.model)
        model.to(args.device, torch.float32 if args.float32 or not args.rank else None)  # 16 bits lose small steps
        if args.rank:
            torch.manual_seed(args.seed)  # what they start from
            add_lora(model, args.rank)
        trainer = Trainer(
            model,
            Folder(args.clips),
            Settings(**{name: getattr(args, name) for name in names}),
            args.steps,
            autocast=not args.float32,
            recompute=not args.keep_activations,
        )
        if state.exists():
            trainer.resume(state)
        for _ in trainer.run(state, args.save_every):
            write(trainer, args.out, metadata)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"Interrupted; the same command goes on from {state}, if that was saved.\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
