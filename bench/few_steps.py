"""The rows for few passes: where to save without distillation and with it, and a LoRA for few steps beside its teacher.

Importing this imports ComfyUI, as `bench.rows` does. The teacher of the miniature's LoRAs has a cfg of 2 for both
modalities and no skipped block, as in `miniature.train_turbo`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.rows import GUIDED, Row, cached, lora
from bench.turbo import STRENGTHS, TEACHER, TEACHER_STEPS, student, undistilled
from ovi import turbo
from ovi.files import read_safetensors
from ovi.turbo import Sampling

SOLVERS = "unipc", "dpm++", "euler"
PARTS = (0.0, 0.45), (0.2, 0.7), (0.45, 1.0)  # of the schedule with guidance: about half of the steps
FEW = 2, 4  # steps of a LoRA


def saving_rows(path: Path | None) -> list[Row]:
    """Return at most 40 ways to take from 2 to 100 passes, with the LoRA in `path` if there is one.

    Most passes come first.
    """
    return [
        *(_row(50, solver) for solver in SOLVERS),
        _row(50, cfg=3.0),
        *(_row(50, cache=cache) for cache in (("EasyCache", 0.1), ("EasyCache", 0.4))),
        _row(50, cache=("LazyCache", 0.2)),
        _row(50, cfg=1.0),
        *(_row(25, solver) for solver in SOLVERS),
        *(_row(32, part=part) for part in PARTS),
        _row(25, cfg=1.0),
        *(_row(12, solver) for solver in SOLVERS),
        *(_row(16, part=part) for part in PARTS),
        _row(12, cfg=1.0),
        *(_row(6, solver) for solver in SOLVERS[:2]),
        *(_row(8, part=part) for part in PARTS[:2]),
        _row(12, cache=("EasyCache", 0.4)),
        _row(8, cfg=1.0),
        *(_row(4, solver) for solver in SOLVERS[:2]),
        _row(5, part=PARTS[0]),
        *(_row(4, solver, cfg=1.0) for solver in SOLVERS[:2]),
        _row(2),
        _row(3, part=(0.0, 0.3)),
        _row(2, cfg=1.0),
        *(_lora_rows(path) if path else []),
    ]


def _row(
    steps: int,
    solver: str = "unipc",
    cfg: float = GUIDED,
    part: tuple[float, float] = (0.0, 1.0),
    cache: tuple[str, float] | None = None,
) -> Row:
    """Return a row whose name says it all."""
    name = f"{solver}, {steps} steps, cfg {cfg:g}"
    changes: dict[str, Any] = {"sampler": solver, "steps": steps, "cfg": cfg, "during": part}
    if part != (0.0, 1.0):
        name += " from {:.0%} to {:.0%}".format(*part)
    if cache is not None:
        name, changes["change"] = "{}, {} {:g}".format(name, *cache), cached(*cache)
    return Row(name, **changes)


def _lora_rows(path: Path) -> list[Row]:
    """Return the rows of a LoRA, which their names tell from that for another number of steps."""
    made = sampling(path)
    return [
        Row(f"LoRA for {made.steps} steps, {steps} steps", **_sampled(made) | {"steps": steps, "change": lora(path)})
        for steps in FEW
    ]


def turbo_rows(path: Path | None, *, first_frame: bool = False) -> list[Row]:
    """Return the teacher, the undistilled model in the steps of the LoRA in `path`, and the student by its strengths.

    All are sampled by the method that the LoRA was made for. The teacher and the student follow once more with the
    first frame given, where that is asked for. Raises SystemExit without a LoRA or the settings in its metadata.
    """
    if path is None:
        raise SystemExit("--turbo needs a LoRA for few steps: name it by --lora.")
    made = sampling(path)
    few = _sampled(made)
    slow: dict[str, Any] = few | {"steps": TEACHER_STEPS, "cfg": GUIDED}
    rows = [
        Row(TEACHER, **slow),
        Row(undistilled(made.steps), **few),
        *(Row(student(made.steps, each), change=lora(path, each), **few) for each in STRENGTHS),
    ]
    if first_frame:
        given: dict[str, Any] = {"given": "first"}
        rows.append(Row(f"{TEACHER}, first frame given", **slow | given))
        rows.append(Row(f"{student(made.steps, 1.0)}, first frame given", change=lora(path), **few | given))
    return rows


def sampling(path: Path) -> Sampling:
    """Return how the LoRA in `path` says that it is to be sampled. Raises SystemExit where it does not say."""
    found = turbo.read(read_safetensors(path)[1])
    if found is None:
        raise SystemExit(f"{path} does not say how it is to be sampled: it has no {turbo.KEY} in its metadata.")
    return found


def _sampled(made: Sampling) -> dict[str, Any]:
    """Return the settings of a row that is sampled so."""
    return {
        "sampler": made.sampler,
        "solver": made.solver,
        "shift": made.shift,
        "steps": made.steps,
        "cfg": made.cfg,
        "audio_cfg": made.audio_cfg,
    }
