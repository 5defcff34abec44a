"""The options of the training's command line, which may also stand in a TOML file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..flow import OPTIMIZERS, SCHEDULES, Settings
from ..lora import LORA_LAYERS, LORA_TOWERS, Lora
from ..writing import complete

LARGEST = 2**20  # bytes of a TOML file
ABOUT = {  # of the settings, in the order of the help
    "batch": "clips that the model sees at once, all of one size",
    "accumulate": "batches of a step: the same gradient as with a batch so much larger, in the memory of one",
    "optimizer": "adamw; adamw8bit (bitsandbytes), with a quarter of its memory; prodigy (prodigyopt), with --lr 1",
    "lr": "the learning rate",
    "schedule": "of the learning rate",
    "warmup": "steps in which the learning rate rises",
    "cooldown": "share of the steps, the last ones, in which a constant rate falls to zero",
    "weight_decay": "of the optimiser",
    "max_norm": "largest norm of the gradient",
    "ema": "decay of the averaged weights, which are what is written; 0 writes the last ones",
    "shift": "shift of the distribution of sigma",
    "audio_weight": "weight of the audio's loss",
    "text_dropout": "share of clips without their text, for guidance",
    "reference_dropout": "share of clips with zeros for their persons' images, and of those for the voices",
    "first_frame": "share of clips whose first frame is given",
    "given_audio": "share of clips whose audio is given",
    "given_video": "share of clips whose video is given",
    "given_prefix": "share of clips that begin with the end of another, as for Ovi Continue",
    "passage": "share of clips of which all but a passage is given, as for Ovi Remake",
    "given_references": "share of batches that get the persons' references of their clips",
    "seed": "of all random numbers",
}
TAKEN: dict[Any, tuple[Any, str]] = {  # what TOML may have for an option of a type, and what that is called
    float: ((int, float), "a number"),
    int: (int, "a whole number"),
    bool: (bool, "true or false"),
}
CHOICES = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}


def parse(argv: Sequence[str] | None, make: Callable[[], argparse.ArgumentParser] | None = None) -> argparse.Namespace:
    """Return the options: those of the command line, else those of the file of --config, else the defaults.

    `make` makes the parser of a command line (None: of the training). Raises ValueError for a file that cannot be used.
    """
    given, _ = config_parser().parse_known_args(argv)
    parser = (make or _parser)()
    if given.config is not None:
        _read(given.config, parser)
    return parser.parse_args(argv)


def settings(args: argparse.Namespace, names: Iterable[str] = ABOUT) -> Settings:
    """Return the settings of the training among the options, those of `names`; the others have their defaults."""
    return Settings(**{name: getattr(args, name) for name in names})


def lora(args: argparse.Namespace) -> Lora | None:
    """Return the LoRAs that the options ask for; None: the whole model is trained."""
    if not args.rank:
        return None
    return Lora(args.rank, args.alpha, getattr(args, "dropout", 0.0), tuple(args.layers), args.tower)


def write(args: argparse.Namespace, path: Path) -> None:
    """Write the options as a TOML file, which does the same again."""
    lines = [
        f"{name} = {_toml(value)}"
        for name, value in sorted(vars(args).items())
        if name != "config" and value is not None
    ]
    with complete(path) as (part,):
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _toml(value: Any) -> str:
    """Return a value in TOML, whose strings, numbers and lists are those of JSON."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)


def _read(path: Path, parser: argparse.ArgumentParser) -> None:
    """Make what a TOML file says the parser's defaults. Raises ValueError naming the option that cannot be used."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} is larger than a TOML file of options can be; give the right one.")
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML file ({error}); write lines such as steps = 2000.") from error
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    values = {}
    for key, value in found.items():
        action = actions.get(key.replace("-", "_"))
        if action is None:
            raise ValueError(f"{path} has an option {key!r}, which there is not; the options are {', '.join(actions)}.")
        try:
            values[action.dest] = _converted(action, value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} has {key} = {value!r}, but {error} is needed.") from None
    parser.set_defaults(**values)
    for name in values:  # what the file has needs no place on the command line
        actions[name].required = False
        if not actions[name].option_strings:
            actions[name].nargs = "*"


def _converted(action: argparse.Action, value: Any) -> Any:
    """Return the value of an option as the command line would give it. Raises ValueError saying what is needed."""
    if action.nargs in ("+", "*"):
        items = value if isinstance(value, list) else [value]
        if not items:
            raise ValueError("a list of one or more")
        return [_one(action, item) for item in items]
    return _one(action, value)


def _one(action: argparse.Action, value: Any) -> Any:
    kind: Any = bool if action.nargs == 0 else action.type or str
    taken, needed = TAKEN.get(kind, (str, "a text"))
    if not isinstance(value, taken) or (kind is not bool and isinstance(value, bool)):
        raise ValueError(needed)
    if action.choices and value not in action.choices:
        raise ValueError(f"one of {', '.join(map(str, action.choices))}")
    return kind(value)


def config_parser() -> argparse.ArgumentParser:
    """Return the parser of --config, which the others begin with."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--config", type=Path, metavar="TOML", help="a file with any of these options; those given here come first"
    )
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ovi.tools.train",
        description="Train LoRAs for both towers of Ovi, or the whole model, on latents.",
        epilog="A clip is a safetensors file: video [48, F, H, W] (normalised), audio [20, L], context [T, text_dim].",
        parents=[config_parser()],
    )
    parser.add_argument("model", type=Path, nargs="+", help="the checkpoint, or one file for each tower")
    parser.add_argument("--clips", type=Path, required=True, help="a folder of clips")
    parser.add_argument("--out", type=Path, required=True, help="the file to write; OUT.state holds the progress")
    parser.add_argument("--steps", type=int, default=1000)
    added = add_loras(parser, "rank of the LoRAs; 0 trains the whole model")
    added.add_argument("--dropout", type=float, default=0.0, help="share of their inputs that are zero in a step")
    chosen = parser.add_argument_group("settings, which resuming does not change")
    add_fields(chosen, Settings(), ABOUT)
    memory = add_rest(parser)
    memory.add_argument("--shard", action="store_true", help="share the model out among several processes (FSDP2)")
    return parser


def add_loras(parser: argparse.ArgumentParser, rank: str) -> argparse._ArgumentGroup:
    """Add the options of LoRAs, with the help of --rank; return their group."""
    added = parser.add_argument_group("LoRAs")
    added.add_argument("--rank", type=int, default=32, help=rank)
    added.add_argument("--alpha", type=float, help="their product counts alpha / rank (default: fully)")
    added.add_argument("--layers", nargs="+", choices=LORA_LAYERS, default=list(LORA_LAYERS), help="which have LoRAs")
    added.add_argument("--tower", choices=LORA_TOWERS, default="both", help="which has LoRAs")
    return added


def add_fields(group: argparse._ArgumentGroup, defaults: Any, about: Mapping[str, str]) -> None:
    """Add an option for each field of a dataclass that `about` has a help for, with its default."""
    for name, help_ in about.items():
        default = getattr(defaults, name)
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default),
            default=default,
            choices=CHOICES.get(name),
            help=f"{help_} (%(default)s)",
        )


def add_rest(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options of what is written, and of how it is computed; return the group of those that save memory."""
    saved = parser.add_argument_group("what is written")
    saved.add_argument("--save-every", type=int, default=100, metavar="STEPS")
    saved.add_argument("--keep", type=int, default=0, metavar="N", help="of the results on the way, the last N")
    saved.add_argument("--tensorboard", type=Path, metavar="FOLDER", help="write the losses for TensorBoard")
    shown = parser.add_argument_group("clips while it trains, generated by a running ComfyUI")
    shown.add_argument("--validate", type=Path, metavar="CSV", help="their prompts, as for ovi.tools.batch")
    shown.add_argument("--validate-every", type=int, default=500, metavar="STEPS", help="a multiple of --save-every")
    shown.add_argument("--loras", type=Path, metavar="FOLDER", help="that ComfyUI's models/loras, to write LoRAs to")
    shown.add_argument("--server", default="http://127.0.0.1:8188", help="that ComfyUI (%(default)s)")
    shown.add_argument("--workflow", type=Path, metavar="JSON", help="in API form; by default text to video")
    memory = parser.add_argument_group("memory, for the same result")
    memory.add_argument("--keep-activations", action="store_true", help="faster, but needs far more memory")
    memory.add_argument("--offload-activations", action="store_true", help="keep those between blocks in RAM")
    memory.add_argument(
        "--offload-blocks", type=int, default=0, metavar="N", help="of the blocks, N stay in RAM until they run"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--float32", action="store_true", help="compute in float32 instead of bfloat16")
    return memory
