"""Distillation of the miniatures into LoRAs for few steps without guidance: `python -m miniature.train_turbo --help`.

It starts from the shipped models, and from captions alone. .cache/miniature holds the state and a line of what was
measured every few steps, beside the model's own clips with and without guidance.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from miniature import WEIGHTS, judge, measure, speech, text, train, world
from miniature.codecs import AudioCodec, VideoCodec
from miniature.train import CACHE
from ovi import distillation
from ovi.distillation import Conditions, Recipe
from ovi.flow import Sample, Samples, Settings
from ovi.lora import Lora, add_lora
from ovi.model import OviModel
from ovi.tools import options
from ovi.tools import train as tool
from ovi.tools.distiller import Distiller, Size
from ovi.turbo import Sampling

RANK, CFG = 32, 2.0  # of the LoRAs; of the teacher, for both modalities
TEACHER_STEPS = 8  # of the teacher's clips that the student's are compared with
EVERY = 20  # steps between two lines of the log, each with its saved state
AT_ONCE = 8  # clips that are generated at once to be measured
SETTINGS = Settings(batch=4, lr=1e-3, warmup=20, cooldown=0.3, ema=0.98, first_frame=0.2)
RECIPE = Recipe(cfg=CFG, audio_cfg=CFG, skip_blocks=(), dmd_lr=1e-3, critic_lr=1e-3, critic_updates=4)

ABOUT_SETTINGS = {name: options.ABOUT[name] for name in ("batch", "first_frame", "seed")} | {"lr": "of the first stage"}
ABOUT_RECIPE = {
    "cfg": "of the teacher, for both modalities",
    "dmd_lr": "of the second stage",
    "critic_lr": "of the critic",
    "critic_updates": "for one of the student",
}


class Ball:
    """The world of the ball: its model, captions, and what is measured of its clips."""

    model = WEIGHTS / "ovi_miniature.safetensors"
    iterations, dmd_iterations = 100, 20
    height, width, frames = world.HEIGHT, world.WIDTH, world.FRAMES

    def __init__(self, comfyui: Path | None, count: int) -> None:
        if comfyui is None:
            raise ValueError("The captions of the ball are read by ComfyUI's text encoder; give --comfyui.")
        texts = train.encoded(comfyui, ["", *train.CAPTIONS])
        self.prompts: Samples = [Sample(None, None, texts[caption]) for caption in train.CAPTIONS]
        self.negative = texts[""]
        self.scenes = [world.scene(world.HELD_OUT + 1000 + i) for i in range(count)]
        self.held_out = torch.stack([texts[scene.caption] for scene in self.scenes])

    def measured(self, video: Tensor, audio: Tensor) -> dict[str, float]:
        """Measure clips of the held-out scenes, of which these are the latents."""
        frames = VideoCodec().decode(video.cpu()).movedim(1, -1) / 2 + 0.5
        waveforms = AudioCodec().decode(audio.cpu())
        return measure.scores(self.scenes, frames, waveforms)


class Captions:
    """The captions of the training's scenes of the talking world, encoded on request."""

    def __init__(self, count: int) -> None:
        self.count, self.weights = count, load_file(text.TALKING)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Sample:
        return Sample(None, None, text.contexts([speech.scene(index).caption], self.weights)[0])


class Talking:
    """The talking world, as `Ball`."""

    model = WEIGHTS / "ovi_talking.safetensors"
    iterations, dmd_iterations = 240, 60
    height, width, frames = speech.HEIGHT, speech.WIDTH, world.FRAMES

    def __init__(self, _: Path | None, count: int) -> None:
        captions = Captions(world.HELD_OUT)  # held-out scenes begin there
        self.prompts: Samples = captions
        self.negative = text.contexts([""], captions.weights)[0]
        self.scenes = [speech.scene(world.HELD_OUT + 1000 + i) for i in range(count)]
        self.held_out = text.contexts([scene.caption for scene in self.scenes], captions.weights)
        self.others = judge.others(self.scenes)

    def measured(self, video: Tensor, audio: Tensor) -> dict[str, float]:
        """Measure clips of the held-out scenes, of which these are the latents."""
        return judge.report(self.scenes, judge.observe(video, audio), self.others)


WORLDS: dict[str, type[Ball] | type[Talking]] = {"ball": Ball, "talking": Talking}


@torch.no_grad()
def generated(
    model: OviModel, of: Ball | Talking, size: Size, steps: int, shift: float, recipe: Recipe | None = None
) -> list[Tensor]:
    """Generate the held-out scenes by Euler's method, with a recipe as its teacher is guided: video and audio."""
    device = next(model.parameters()).device
    draw = torch.Generator().manual_seed(0)
    noise = [torch.randn((len(of.scenes), *shape), generator=draw) for shape in size]
    parts = []
    for some in zip(of.held_out.split(AT_ONCE), *(each.split(AT_ONCE) for each in noise), strict=True):
        context, *x = (each.to(device) for each in some)
        negative = of.negative.to(device).expand(len(context), -1, -1)
        texts = [model.embed_texts(x, each) for each in (context, negative)]
        conditions = Conditions(texts[0], texts[1], torch.ones(len(context), size.video[1], device=device))
        velocity = distillation.unguided(model.velocities, conditions)
        if recipe is not None:
            velocity = distillation.guided(model.velocities, conditions, recipe)
        parts.append(distillation.walk(velocity, x, distillation.schedule(steps, shift), conditions.generated))
    return [torch.cat(each) for each in zip(*parts, strict=True)]


def student(distiller: Distiller, path: Path) -> OviModel:
    """Return a model of its own with a distiller's averaged LoRAs."""
    model, _ = tool.load([path])
    model.float().to(distiller.device)
    assert distiller.lora is not None
    add_lora(model, distiller.lora, distiller.device)
    model.load_state_dict(distiller.averaged, strict=False)
    return model


def main(argv: Sequence[str] | None = None) -> None:
    """Distil, or resume that."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", choices=WORLDS)
    parser.add_argument("--steps", type=int, default=2, help="of the student (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the LoRA to write")
    parser.add_argument("--comfyui", type=Path, help="the ComfyUI whose text encoder reads the captions of the ball")
    parser.add_argument("--iterations", type=int, help="of the first stage (ball: 100, talking: 240)")
    parser.add_argument("--dmd-iterations", type=int, help="of the second stage (ball: 20, talking: 60)")
    parser.add_argument("--guidance-only", action="store_true")
    options.add_fields(parser, SETTINGS, ABOUT_SETTINGS)
    options.add_fields(parser, RECIPE, ABOUT_RECIPE)
    parser.add_argument("--shown", type=int, default=32, help="held-out clips that are measured")
    parser.add_argument("--every", type=int, default=EVERY, help="steps between two measurements")
    parser.add_argument("--model", type=Path, help="in place of the one that is shipped")
    parser.add_argument("--device", default="cpu", help="that the model is on (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    CACHE.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    tool.check_device(args.device)
    of = WORLDS[args.world](args.comfyui, args.shown)
    path = args.model or of.model
    settings = dataclasses.replace(SETTINGS, **{name: getattr(args, name) for name in ABOUT_SETTINGS})
    numbers = {name: getattr(args, name) for name in ABOUT_RECIPE}
    recipe = dataclasses.replace(
        RECIPE, student_steps=args.steps, guidance_only=args.guidance_only, audio_cfg=args.cfg, **numbers
    )
    first = of.iterations if args.iterations is None else args.iterations
    second = of.dmd_iterations if args.dmd_iterations is None else args.dmd_iterations
    model, metadata = tool.load([path])
    model.float().to(args.device)
    size = Size.of(model.config, of.width, of.height, of.frames)
    shift = settings.shift

    def shown(name: str, model: OviModel, steps: int, recipe: Recipe | None = None) -> dict[str, float]:
        """Measure the clips of a model, and say it."""
        found = of.measured(*generated(model, of, size, steps, shift, recipe))
        figures = {key: round(value, 3) for key, value in found.items()}
        sys.stdout.write(f"{name}: {json.dumps(figures)}\n")
        sys.stdout.flush()
        return found

    shown(f"teacher, {TEACHER_STEPS} steps, cfg {args.cfg:g}", model, TEACHER_STEPS, recipe)
    shown(f"undistilled, {args.steps} steps", model, args.steps)
    torch.manual_seed(settings.seed)  # the LoRAs' first weights
    distiller = Distiller(
        model,
        of.prompts,
        settings,
        recipe,
        size,
        first,
        0 if args.guidance_only else second,
        lora=Lora(RANK),
        negatives=(of.negative, of.negative),
        device=args.device,
    )

    def measured() -> dict[str, float]:
        name = f"student, {args.steps} steps, after {len(distiller.history)}"
        return shown(name, student(distiller, path), args.steps)

    train.run(distiller, f"turbo_{args.out.stem}_", args.every, measured)
    tool.write(distiller, args.out, metadata | Sampling(args.steps, shift, 1.0, 1.0, "euler").metadata())


if __name__ == "__main__":
    main()
