"""What the miniature makes, measured: `python -m bench.quality --help`.

Needs COMFYUI_PATH. Every row is sampled by ComfyUI with one change to the first one. When the ball bounces is seen in
the picture, when it sounds is heard in the sound: the errors are the distances between both. Beside the median distance
to the nearest onset stands the same for pictures and sounds of different clips, which is what chance gives.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

# isort: off
from bench import comfyui  # noqa: F401 - puts ComfyUI on the path of the others

# isort: on
import comfy.sample
import comfy.samplers
import torch
from comfy.nested_tensor import NestedTensor
from comfy_extras.nodes_easycache import EasyCacheNode
from safetensors.torch import load_file
from torch import Tensor

from miniature import WEIGHTS, measure, nodes, pictures, world
from ovi import geometry, native, sampling
from ovi.tools import convert

MODEL = WEIGHTS / "ovi_miniature.safetensors"
STEPS, GUIDED, SHIFT = 20, 2.0, 5.0
SAMPLERS = {"unipc": comfy.samplers.KSAMPLER(sampling.sample_unipc)}
SAMPLERS |= {name: comfy.samplers.ksampler(core) for name, core in (("dpm++", "dpmpp_2m"), ("euler", "euler"))}

Patcher = Any


@dataclass(frozen=True)
class Row:
    """How one row of the table is sampled."""

    name: str
    sampler: str = "unipc"
    steps: int = STEPS
    cfg: float = 1.0
    skip_blocks: str = ""
    change: Callable[[Patcher], Patcher] = field(default=lambda model: model)


def cut(*directions: str) -> Callable[[Patcher], Patcher]:
    """Without the fusion's attention in these directions."""

    def change(model: Patcher) -> Patcher:
        model = model.clone()
        model.model_options["transformer_options"] |= dict.fromkeys(directions, False)
        return model

    return change


def easycache(threshold: float) -> Callable[[Patcher], Patcher]:
    """With core's EasyCache, its own settings but for the threshold."""
    return lambda model: EasyCacheNode.execute(model, threshold, 0.15, 0.95, False).args[0]


def unscaled(path: Path) -> Callable[[Patcher], Patcher]:
    """With the audio's positions turned as fast as the video's."""

    def change(_: Patcher) -> Patcher:
        model = native.load([str(path)])
        tower = model.model.diffusion_model.audio_model
        tower.config = dataclasses.replace(tower.config, audio_rope_scale=1.0)
        return model

    return change


def fp8(path: Path) -> Callable[[Patcher], Patcher]:
    """Converted by ovi.tools.convert."""

    def change(_: Patcher) -> Patcher:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            made = Path(folder, "fp8.safetensors")
            convert.run(convert.quantize(path, made, convert.FORMATS["fp8"]), dry_run=False)
            return native.load([str(made)])

    return change


def rows(path: Path) -> list[Row]:
    """The table's rows; the first is what the others are compared with."""
    both = ("a2v_cross_attn", "v2a_cross_attn")
    return [
        Row("as shipped"),
        Row("sound does not see the picture", change=cut("v2a_cross_attn")),
        Row("picture does not hear the sound", change=cut("a2v_cross_attn")),
        Row("no fusion", change=cut(*both)),
        Row("audio RoPE unscaled", change=unscaled(path)),
        Row("guidance", cfg=GUIDED),
        Row("guidance, block 2 skipped", cfg=GUIDED, skip_blocks="2"),
        Row("fp8", change=fp8(path)),
        Row("EasyCache, threshold 0.2 (its default)", change=easycache(0.2)),
        Row("EasyCache, threshold 0.4", change=easycache(0.4)),
        *(Row(f"{name}, {steps} steps", name, steps) for name in SAMPLERS for steps in (4, 10, 30, 50)),
    ]


def sampled(
    model: Patcher, row: Row, scenes: Sequence[world.Scene], clip: Any, seed: int, frames: int = world.FRAMES
) -> tuple[Tensor, Tensor]:
    """Pictures [N, T, H, W, 3] and sounds [N, samples] of the scenes' captions."""

    def encoded(texts: Sequence[str]) -> list[list[Any]]:
        tokens = [clip.tokenize(text, disable_weights=True) for text in texts]
        return [[torch.cat([clip.encode_from_tokens(one) for one in tokens]), {}]]

    latents = geometry.video_latents(frames), geometry.audio_latents(frames)
    video = torch.zeros(len(scenes), geometry.VIDEO_CHANNELS, latents[0], world.HEIGHT // 16, world.WIDTH // 16)
    empty = NestedTensor([video, torch.zeros(len(scenes), geometry.AUDIO_CHANNELS, latents[1])])
    guider = comfy.samplers.CFGGuider(native.guide(row.change(model), row.cfg, row.skip_blocks))
    guider.set_conds(encoded([scene.caption for scene in scenes]), encoded([""] * len(scenes)))
    guider.set_cfg(row.cfg)
    out = guider.sample(
        comfy.sample.prepare_noise(empty, seed),
        empty,
        SAMPLERS[row.sampler],
        sampling.flow_sigmas(row.steps, SHIFT, row.sampler),
        seed=seed,
        disable_pbar=True,
    )
    video, audio = out.unbind()
    pictures = nodes.VideoModel().decode(video).movedim(1, -1) / 2 + 0.5
    return pictures, nodes.AudioModel().decode(audio)[:, 0]


def figures(scenes: Sequence[world.Scene], pictures: Tensor, sounds: Tensor) -> dict[str, float]:
    """What is measured of a row."""
    seen = [measure.bounces(picture) for picture in pictures]
    heard = [measure.onsets(sound) for sound in sounds]
    pairs = [measure.matched(a, b) for a, b in zip(seen, heard, strict=True)]
    errors = [abs(a - b) for clip in pairs for a, b in clip]
    missed = sum(measure.alone(times, {a for a, _ in clip}) for times, clip in zip(seen, pairs, strict=True))
    extra = sum(measure.alone(times, {b for _, b in clip}) for times, clip in zip(heard, pairs, strict=True))
    bounces = sum(map(len, seen))
    right = [
        (measure.colour(picture) == scene.colour, measure.pitch(sound) == world.BELLS[scene.size])
        for scene, picture, sound in zip(scenes, pictures, sounds, strict=True)
    ]
    return {
        "error_ms": 1000 * median(errors) if errors else float("nan"),
        "missed": missed / max(1, bounces),
        "extra": extra / max(1, bounces),
        "nearest_ms": 1000 * measure.nearest(seen, heard),
        "shuffled_ms": 1000 * median(measure.nearest(seen, heard, turn) for turn in range(1, len(scenes))),
        "colour": sum(colour for colour, _ in right) / len(right),
        "pitch": sum(pitch for _, pitch in right) / len(right),
        "bounces": bounces / len(scenes),
    }


COLUMNS = {
    "error_ms": "{:.0f} ms",
    "missed": "{:.0%}",
    "extra": "{:.0%}",
    "nearest_ms": "{:.0f} ms",
    "shuffled_ms": "{:.0f} ms",
    "colour": "{:.0%}",
    "pitch": "{:.0%}",
    "seconds": "{:.0f} s",
}
HEAD = (
    "| | Error, matched | Missed | Extra | To the nearest | Shuffled | Colour | Pitch | Time |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Measure every row, or the first ones, and print them as they come."""
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and of the noise")
    parser.add_argument("--rows", type=int, help="only so many rows")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--picture", type=Path, help="where to draw the first row's first clip")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    args = parser.parse_args()
    first = world.HELD_OUT + 1000 * (1 + args.seed)
    scenes = [world.scene(first + i) for i in range(args.prompts)]
    results: dict[str, Mapping[str, float]] = {}
    if not args.json:
        print(HEAD)
    with torch.inference_mode():
        clip = nodes.text_encoder(load_file(WEIGHTS / "umt5.safetensors"))
        model = native.load([str(args.model)])
        for row in rows(args.model)[: args.rows]:
            began = time.perf_counter()
            made = sampled(model, row, scenes, clip, args.seed)
            seconds = time.perf_counter() - began
            if args.picture and not results:
                pictures.clip(made[0][0], made[1][0]).save(args.picture, optimize=True)
            results[row.name] = figures(scenes, *made) | {"seconds": seconds}
            cells = [form.format(results[row.name][key]) for key, form in COLUMNS.items()]
            if not args.json:
                print(f"| {row.name} | {' | '.join(cells)} |", flush=True)
    if args.json:
        print(json.dumps({"prompts": args.prompts, "seed": args.seed, "rows": results}, indent=1))


if __name__ == "__main__":
    main()
