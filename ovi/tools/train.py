"""Training of Ovi, both towers at once: `python -m ovi.tools.train --help`."""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors.torch import save_file

from .. import checkpoint
from ..files import joined, naming, read_safetensors, shards
from ..lora import add_lora
from ..model import OviModel
from ..writing import writing
from . import curves, options
from .clips import Folder
from .distributed import Processes, started
from .files import check_paths, exit_code, program
from .frozen import FrozenLinear, freeze
from .offload import place
from .trainer import Trainer

if TYPE_CHECKING:
    from .previews import Previews


def load(paths: Sequence[Path]) -> tuple[OviModel, dict[str, str]]:
    """Load an Ovi model from one file with both towers, or from two with one each; return it and the files' metadata.

    Quantised layers stay so, and only LoRAs can be trained on them. Raises ValueError where the files are not a
    complete, valid Ovi model.
    """
    parts = [[read_safetensors(shard) for shard in shards(path)] for path in paths]
    with naming(*paths):
        sd, metadata, config = checkpoint.assemble(map(joined, parts))
    model = OviModel(config, device="meta")
    left = freeze(model, sd)
    if any(t.is_floating_point() and t.itemsize == 1 for t in left.values()):
        raise ValueError(
            f"{paths[0]} is quantised without scales, which cannot be trained; use a scaled file, or one in bf16, "
            "fp16 or fp32."
        )
    model.load_state_dict(left, assign=True)
    return model, metadata


def write(trainer: Trainer, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the averaged weights: LoRAs with the names that Load Ovi LoRA reads, or a whole model."""
    weights = {name: tensor.bfloat16().cpu() for name, tensor in trainer.result().items()}
    with writing(path) as part:
        save_file(weights, part, metadata=dict(metadata))


def main(argv: Sequence[str] | None = None) -> int:
    """Train; return the exit code: 0, or 2 with one line on stderr, or 130 where it was interrupted."""

    def work() -> int:
        args = options.parse(argv)
        processes = started(args.device, args.optimizer, shard=args.shard)
        try:
            return _train(args, processes)
        finally:
            processes.close()

    return exit_code(work, "Interrupted; the same command resumes from the .state beside the result, if it was saved.")


def _train(args: argparse.Namespace, processes: Processes) -> int:
    settings, lora = options.settings(args), options.lora(args)
    require_at_least(args, steps=1, rank=0, save_every=1, keep=0)
    check_memory(args, shard=processes.shard)
    files = prepared(args, [""], first=processes.first)
    device = processes.device or args.device
    model, metadata = load(args.model)
    if not args.rank and any(isinstance(layer, FrozenLinear) for layer in model.modules()):
        raise ValueError(f"{args.model[0]} is quantised, so only LoRAs can be trained on it; set --rank above 0.")
    check_rank(args.rank, model)
    folder = Folder(args.clips, model.config)
    check_paths([*args.model, *folder.paths], files.outputs, force=True)
    place(model, device, args.offload_blocks, weight_dtype(model, float32=args.float32 or not args.rank))
    if lora is not None:
        torch.manual_seed(args.seed)  # the LoRAs' first weights
        add_lora(model, lora, device)
    trainer = Trainer(
        model,
        folder,
        settings,
        args.steps,
        autocast=not args.float32,
        recompute=not args.keep_activations,
        offload_activations=args.offload_activations,
        lora=lora,
        clips=folder.names(),
        buckets=folder.buckets(),
        complete=folder.complete(),
        processes=processes,
    )
    produce(trainer, args, files, metadata)
    return 0


class Files(NamedTuple):
    """What a run writes beside its result, and what generates clips on the way, if that is asked for."""

    state: Path
    config: Path
    outputs: list[Path]  # all files that are written, the result first
    previews: Previews | None


def require_at_least(args: argparse.Namespace, **least: int) -> None:
    """Raise ValueError for an option below the least that it may be."""
    for name, number in least.items():
        if getattr(args, name) < number:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} is {getattr(args, name)}, but must be at least {number}.")


def check_rank(rank: int, model: OviModel) -> None:
    """Raise ValueError for LoRAs of a larger rank than a model's layers can have."""
    if rank > model.config.dim:
        raise ValueError(f"--rank is {rank}, but the model's layers are {model.config.dim} wide.")


def prepared(args: argparse.Namespace, curves: Sequence[str], *, first: bool = True) -> Files:
    """Check the device and the files that a run writes, `curves` by what the trainer calls them.

    `first`: this is the process that writes them.

    Raises ValueError for what cannot be used, before anything large is read.
    """
    check_device(args.device)
    state, config = beside(args.out, "state"), beside(args.out, "toml")
    outputs = [args.out, state, config, *(drawing(args.out, name) for name in curves)]
    check_paths(args.model, outputs, force=True)
    if args.out.exists() and not state.exists():
        raise ValueError(
            f"{args.out} exists, but {state.name}, the state of its training, does not; choose another name."
        )
    return Files(state, config, outputs, _previews(args) if first else None)


def beside(out: Path, end: str) -> Path:
    """Return a file beside the result."""
    return out.with_name(f"{out.name}.{end}")


def drawing(out: Path, name: str) -> Path:
    """Return where the losses of a name are drawn."""
    return beside(out, f"{name}.svg" if name else "svg")


def produce(trainer: Trainer, args: argparse.Namespace, files: Files, metadata: Mapping[str, str]) -> None:
    """Train, or resume that; write the result and what else the options ask for at each save."""
    first = trainer.processes.first
    if files.state.exists():
        for note in trainer.resume(files.state):
            sys.stderr.write(f"{note}\n" if first else "")
    trainer.collect()
    board = {
        name: curves.tensorboard(args.tensorboard / name, len(losses))
        for name, losses in trainer.curves().items()
        if args.tensorboard and first
    }
    if first:
        options.write(args, files.config)
    written = partial(write, trainer, metadata=metadata)
    if files.previews is not None and not trainer.history:
        files.previews.generate(0, written)
    for step in trainer.run(files.state, args.save_every):
        if not first:
            continue
        written(args.out)
        for name, losses in trainer.curves().items():
            if losses:
                curves.plot(losses, drawing(args.out, name))
            if name in board:
                board[name](losses)
        if args.keep:
            written(kept(args.out, step))
            for path in sorted(args.out.parent.glob(kept(args.out).name))[: -args.keep]:
                path.unlink()
        if files.previews is not None and (step % args.validate_every == 0 or step == trainer.steps):
            files.previews.generate(step, written)


def check_memory(args: argparse.Namespace, *, shard: bool = False) -> None:
    """Raise ValueError for ways of saving memory that do not go together; `shard`: processes share the model out."""
    for name in ("offload_blocks", "offload_activations"):
        if getattr(args, name) and args.keep_activations:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} needs activations that are recomputed; leave out --keep-activations.")
    if args.offload_blocks and not args.rank:
        raise ValueError("--offload-blocks is for weights that are not trained; set --rank above 0.")
    if args.offload_blocks and shard:
        raise ValueError("--offload-blocks needs the whole model in each process; leave it out, or --shard.")


def _previews(args: argparse.Namespace) -> Previews | None:
    """Return what generates clips while it trains, if that is asked for."""
    if args.validate is None:
        return None
    if not args.rank or args.loras is None:
        raise ValueError("--validate needs LoRAs (--rank above 0) and --loras, ComfyUI's folder for them.")
    if args.validate_every < 1 or args.validate_every % args.save_every:
        raise ValueError(
            f"--validate-every is {args.validate_every}, but must be a multiple of --save-every, {args.save_every}."
        )
    from .previews import Previews  # needs what the batch client needs

    return Previews(args.validate, args.workflow, args.loras, args.server, args.out.with_suffix(".clips"))


def kept(out: Path, step: int | None = None) -> Path:
    """Return where the result after a step is kept; None: a pattern of all such names."""
    number = "[0-9]" * 7 if step is None else f"{step:07}"
    stem = glob.escape(out.stem) if step is None else out.stem
    return out.with_name(f"{stem}_{number}{out.suffix}")


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
