"""Distillation of Ovi into a LoRA that needs few steps and no guidance: `python -m ovi.tools.distill --help`."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .. import geometry
from ..config import OviConfig
from ..distillation import Recipe
from ..files import shards
from ..flow import Settings
from ..guidance import SKIP_BLOCKS, parse_blocks
from ..turbo import Sampling
from . import options, train
from .clips import Prompts, read_context
from .distiller import CURVES, Distiller, Size
from .distributed import Processes, started
from .files import check_paths, exit_code, program
from .offload import place

STEPS, GUIDANCE_STEPS = 4, 20  # of the student, where --student-steps does not say it
DMD_ITERATIONS = 500
END = 2**20  # bytes at the end of a file that are compared
DEFAULTS = Settings(lr=1e-4, warmup=20, ema=0.99)
SETTINGS = (
    *("batch", "accumulate", "optimizer", "lr", "schedule", "warmup", "cooldown", "weight_decay", "max_norm", "ema"),
    *("shift", "audio_weight", "first_frame", "seed"),
)  # the training's that count here
ABOUT_SETTINGS = {name: options.ABOUT[name] for name in SETTINGS} | {
    "batch": "clips that are generated at once",
    "accumulate": "batches of an iteration: for the gradient of a batch so much larger, in the memory of one",
    "optimizer": "as for training; prodigy needs 1 for --lr, --dmd-lr and --critic-lr",
    "lr": "the learning rate of the first stage",
    "shift": "shift of the sigmas, of the student's steps and of the noise that critic and teacher see",
}
ABOUT_TEACHER = {
    "cfg": "guidance of the video",
    "audio_cfg": "guidance of the audio",
    "sync_scale": "synchrony guidance; 0 has none",
    "image_cfg": "guidance by persons' images, where prompts have them",
    "voice_cfg": "guidance by persons' voices, where prompts have them",
}
ABOUT_STAGES = {
    "substeps": "the teacher's steps for one of the student",
    "dmd_lr": "the student's learning rate in the second stage",
    "critic_lr": "the critic's learning rate",
    "critic_updates": "of the critic, for one of the student",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Distil; return the exit code: 0, or 2 with one line on stderr, or 130 where it was interrupted."""

    def work() -> int:
        args = options.parse(argv, _parser)
        processes = started(args.device, args.optimizer, shard=False)
        try:
            return _distil(args, processes)
        finally:
            processes.close()

    return exit_code(work, "Interrupted; the same command resumes from the .state beside the result, if it was saved.")


def _distil(args: argparse.Namespace, processes: Processes) -> int:
    settings, lora = options.settings(args, SETTINGS), options.lora(args)
    train.require_at_least(args, iterations=1, rank=1, save_every=1, keep=0, width=1, height=1, frames=1)
    if lora is None:
        raise ValueError("--rank is 0, but what is distilled is a LoRA; set it above 0.")
    dmd_iterations = _dmd_iterations(args)
    recipe = _recipe(args)
    train.check_memory(args)
    if processes.shard:
        raise ValueError(
            "Distillation needs the whole model in each process, not FSDP; choose several GPUs without it."
        )
    sampling = Sampling(recipe.student_steps, settings.shift, 1.0, 1.0, "euler")
    files = train.prepared(args, CURVES, first=processes.first)
    device = processes.device or args.device
    if files.previews is not None and args.workflow is None:
        from .previews import in_few_steps

        files.previews.workflow = in_few_steps(files.previews.workflow, sampling)
    model, metadata = train.load(args.model)
    train.check_rank(args.rank, model)
    config = model.config
    recipe = dataclasses.replace(recipe, skip_blocks=parse_blocks(args.skip_blocks, config.num_layers))
    size = _size(args, config)
    prompts = Prompts(args.prompts, config, size.video[2:])
    negatives = _negatives(args, config)
    others = [*args.model, *filter(None, (args.video_negative, args.audio_negative))]
    check_paths(sorted({*others, *prompts.paths}), files.outputs, force=True)
    place(model, device, args.offload_blocks, train.weight_dtype(model, float32=args.float32))
    torch.manual_seed(args.seed)  # the LoRA's first weights
    distiller = Distiller(
        model,
        prompts,
        settings,
        recipe,
        size,
        args.iterations,
        dmd_iterations,
        lora=lora,
        negatives=negatives,
        autocast=not args.float32,
        recompute=not args.keep_activations,
        offload_activations=args.offload_activations,
        device=device,
        clips=[*prompts.names(), *map(_identity, others)],
        buckets=prompts.buckets(),
        processes=processes,
    )
    train.produce(distiller, args, files, metadata | sampling.metadata())
    return 0


def _dmd_iterations(args: argparse.Namespace) -> int:
    """Return the steps of the second stage."""
    if args.dmd_iterations is not None and args.dmd_iterations < 0:
        raise ValueError(f"--dmd-iterations is {args.dmd_iterations}, but must be at least 0.")
    if args.guidance_only and args.dmd_iterations:
        raise ValueError("--guidance-only has no second stage; leave out --dmd-iterations.")
    if args.guidance_only:
        return 0
    return DMD_ITERATIONS if args.dmd_iterations is None else int(args.dmd_iterations)


def _recipe(args: argparse.Namespace) -> Recipe:
    """Return what is distilled; the blocks to skip are read when the model is known."""
    steps = args.student_steps
    if steps is None:
        steps = GUIDANCE_STEPS if args.guidance_only else STEPS
    numbers = {name: getattr(args, name) for name in (*ABOUT_TEACHER, *ABOUT_STAGES)}
    return Recipe(student_steps=steps, guidance_only=args.guidance_only, **numbers)


def _size(args: argparse.Namespace, config: OviConfig) -> Size:
    """Return the shapes of the latents. Raises ValueError for a size that latents do not have."""
    for name in ("width", "height"):
        if (pixels := getattr(args, name)) % geometry.SIZE_MULTIPLE or pixels > geometry.MAX_SIZE:
            raise ValueError(
                f"--{name} is {pixels}, but must be a multiple of {geometry.SIZE_MULTIPLE} up to {geometry.MAX_SIZE}."
            )
    if geometry.frames(geometry.video_latents(args.frames)) != args.frames or args.frames > geometry.MAX_SIZE:
        raise ValueError(f"--frames is {args.frames}, but must be 4n + 1 (such as 121) up to {geometry.MAX_SIZE}.")
    return Size.of(config, args.width, args.height, args.frames)


def _negatives(args: argparse.Namespace, config: OviConfig) -> tuple[Tensor, Tensor]:
    """Read the negative prompts of video and audio; without a file it is no text."""
    none = torch.zeros(0, config.text_dim)
    files: list[Path | None] = [args.video_negative, args.audio_negative]
    video, audio = (none if path is None else read_context(path, config) for path in files)
    return video, audio


def _identity(path: Path) -> str:
    """Return what tells a model or a negative prompt from another: its name, and a hash of how its files end."""
    found = hashlib.sha256()
    for part in shards(path):
        with part.open("rb") as file:
            file.seek(-min(END, part.stat().st_size), os.SEEK_END)
            found.update(file.read())
    return f"{path.name}, {found.hexdigest()}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ovi.tools.distill",
        description="Distil Ovi into a LoRA that needs few steps and no guidance, from prompts alone.",
        epilog="A prompt is a safetensors file: context [T, text_dim]. A clip to train on is one, too.",
        parents=[options.config_parser()],
    )
    parser.add_argument("model", type=Path, nargs="+", help="the checkpoint, or one file for each tower")
    parser.add_argument("--prompts", type=Path, nargs="+", required=True, help="folders of prompts")
    parser.add_argument("--out", type=Path, required=True, help="the LoRA to write; OUT.state holds the progress")
    generated = parser.add_argument_group("clips, as they are generated from the prompts")
    generated.add_argument("--width", type=int, default=704, help="in pixels (%(default)s)")
    generated.add_argument("--height", type=int, default=704, help="in pixels (%(default)s)")
    generated.add_argument("--frames", type=int, default=121, help="4n + 1 (%(default)s)")
    student = parser.add_argument_group("the student")
    student.add_argument(
        "--student-steps", type=int, metavar="K", help=f"of its sampling ({STEPS}; {GUIDANCE_STEPS} for guidance alone)"
    )
    student.add_argument("--iterations", type=int, default=1000, metavar="N", help="of the first stage (%(default)s)")
    student.add_argument(
        "--dmd-iterations", type=int, metavar="N", help=f"of the second stage, DMD ({DMD_ITERATIONS}); 0 leaves it out"
    )
    student.add_argument("--guidance-only", action="store_true", help="distil the guidance alone, for the usual steps")
    teacher = parser.add_argument_group("the teacher")
    options.add_fields(teacher, Recipe(), ABOUT_TEACHER)
    teacher.add_argument("--skip-blocks", default=SKIP_BLOCKS, help="in its negative pass; empty: none (%(default)s)")
    teacher.add_argument("--video-negative", type=Path, metavar="FILE", help="a prompt (default: no text)")
    teacher.add_argument("--audio-negative", type=Path, metavar="FILE", help="a prompt (default: no text)")
    options.add_loras(parser, "rank of the LoRA")
    chosen = parser.add_argument_group("settings, which resuming does not change")
    options.add_fields(chosen, Recipe(), ABOUT_STAGES)
    options.add_fields(chosen, DEFAULTS, ABOUT_SETTINGS)
    options.add_rest(parser)
    return parser


if __name__ == "__main__":
    program(main)
