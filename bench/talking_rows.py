"""The rows of the talking world's table: each changes one thing of the first, steps and cfg aside.

Importing this imports ComfyUI, as `bench.rows` does.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from torch import Tensor

from bench import few_steps
from bench.rows import (
    TO_AUDIO,
    TO_VIDEO,
    Patcher,
    Row,
    Stage,
    cached,
    conditioned,
    cut,
    finished,
    guided,
    lora,
    quantised,
    sampled_latents,
)
from bench.talking import CACHES, CFG, MODEL, STEPS, THRESHOLDS, cache_name, name_of
from miniature import initial, judge, nodes, speech, world
from miniature.codecs import SPEECH, AudioCodec
from ovi import join, media
from ovi.native.joint import JointLatent
from ovi.tools import convert

STAGE = Stage(speech.HEIGHT, speech.WIDTH, speech.latents)
APART = (1.0, CFG), (CFG, 1.0), (1.0, 3.0), (3.0, 1.0)  # cfg of the video and of the audio
WINDOW, OVERLAP = 9, 4  # video latents of a context window, of 13 in a clip, and those of two in common
SHARED = 9  # frames that a clip has in common with the one before, which it continues


def table(args: argparse.Namespace) -> list[Row]:
    """Return the rows that the options of `bench.quality` ask for."""
    if args.saving:
        return few_steps.saving_rows(args.lora)
    if args.turbo:
        return few_steps.turbo_rows(args.lora)
    return rows(args.model or MODEL, args.lora)


def rows(path: Path, lora_path: Path | None = None) -> list[Row]:
    """Return the rows for the model in `path`, and for a LoRA, if there is one."""
    return [*settings(path), *given_rows(), *(_lora_rows(lora_path) if lora_path else [])]


def row(name: str, **changes: Any) -> Row:
    """Return a row that differs from the first in these."""
    return Row(name, **{"steps": STEPS, "cfg": CFG} | changes)


def settings(path: Path) -> list[Row]:
    """Return the rows that generate clips from the prompt alone, each in its own way."""
    grid = dict.fromkeys([(STEPS, CFG), *product((1, 2, 4, 8, STEPS), (1.0, CFG, 3.0))])
    samplers, caches = product(("dpm++", "euler"), (4, STEPS)), product(CACHES, THRESHOLDS)
    formats = [name for name, form in convert.FORMATS.items() if form]
    return [
        *(row(name_of(*each), steps=each[0], cfg=each[1]) for each in grid),
        *(row(f"{name}, {steps} steps", sampler=name, steps=steps) for name, steps in samplers),
        *(row(f"cfg {video:g}, audio cfg {audio:g}", cfg=video, audio_cfg=audio) for video, audio in APART),
        *(row(f"block {block} skipped", skip_blocks=str(block)) for block in range(1, initial.CONFIG.num_layers)),
        *(row(f"sync {scale:g}", sync_scale=scale) for scale in (1.0, 2.0, 4.0)),
        *(row(f"audio shift {shift:g}", audio_shift=shift) for shift in (2.0, 3.0, 8.0)),
        *(row(cache_name(name, each), change=cached(name, each)) for name, each in caches),
        *(row(name, change=quantised(path, name)) for name in formats),
        row("context windows", change=windows(anchored=False), alone=True),
        row("context windows, anchored", change=windows(anchored=True), alone=True),
        row("no fusion", change=cut(TO_VIDEO, TO_AUDIO)),
    ]


def given_rows() -> list[Row]:
    """Return the rows that are given a part of a clip, as by Ovi Reference and Ovi Continue."""

    def wordless(scene: speech.Scene) -> str:
        return scene.wordless

    of_video: dict[str, Any] = {"cfg": 1.0, "given": "video", "prompt": wordless}
    return [
        *(row(f"audio given, cfg 1, sync {each:g}", cfg=1.0, given="audio", sync_scale=each) for each in (0.0, 2.0)),
        *(row(f"video given, no words, cfg 1, sync {each:g}", sync_scale=each, **of_video) for each in (0.0, 2.0)),
        row("another clip's video given, no words, cfg 1", give=another, **of_video),
        row("start given", given="start"),
        row("end frame given", given="end"),
        row("Continue and Join", follow=True),
    ]


def _lora_rows(path: Path) -> list[Row]:
    return [row(f"LoRA, strength {each:g}", change=lora(path, each)) for each in (0.5, 1.0, 1.5)]


def another(scenes: Sequence[speech.Scene]) -> Sequence[speech.Scene]:
    """Return the next scene for each, and the first for the last."""
    return [*scenes[1:], scenes[0]]


def windows(*, anchored: bool) -> Callable[[Patcher], Patcher]:
    """Return a change that adds core's Context Windows; anchored, later ones begin with the clip's first frame.

    ComfyUI 0.30.0 takes no batch there.
    """
    options: dict[str, Any] = {"context_length": WINDOW, "context_overlap": OVERLAP, "causal_window_fix": anchored}
    options |= {"context_schedule": "standard_static", "context_stride": 1, "closed_loop": False, "dim": 2}
    options |= {"fuse_method": "pyramid", "freenoise": False, "cond_retain_index_list": ""}
    return lambda model: ContextWindowsManualNode.execute(model, **options).args[0]


class Observed(NamedTuple):
    """What is observed in a row's clips, with the scenes to judge them by; how they were sampled.

    `passes` of the model are those for each clip, `seconds` those of sampling.
    """

    scenes: Sequence[speech.Scene]
    clips: list[judge.Observation]
    passes: float
    seconds: float


def observed(model: Patcher, row: Row, scenes: Sequence[speech.Scene], clip: Any, seed: int) -> Observed:
    """Sample a row's clips and observe them; `clip` is ComfyUI's text encoder."""
    guider, conds = guided(model, row), conditioned(row, scenes, clip)
    with counted_passes(guider) as passes:
        began = time.perf_counter()
        latents = sampled_latents(guider, row, scenes, conds, seed, STAGE)
        seconds = time.perf_counter() - began
        if row.follow:
            scenes, clips = _followed(guider, row, scenes, clip, latents, seed)
        else:
            clips = judge.observe(*(part.to(comfy.model_management.get_torch_device()) for part in latents))
    return Observed(scenes, clips, sum(passes) / len(scenes), seconds)


@contextlib.contextmanager
def counted_passes(guider: Any) -> Iterator[list[int]]:
    """Collect the rows of each batch that passes a guider's model."""
    rows: list[int] = []
    head = guider.model_patcher.model.diffusion_model.video_model.head
    hook = head.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        yield rows
    finally:
        hook.remove()


def _followed(
    guider: Any, row: Row, scenes: Sequence[speech.Scene], clip: Any, latents: tuple[Tensor, Tensor], seed: int
) -> tuple[list[speech.Scene], list[judge.Observation]]:
    """Continue each clip with the words of another scene, join both, and return what the whole has to say."""
    following = [
        dataclasses.replace(scene, syllables=after.syllables)
        for scene, after in zip(scenes, another(scenes), strict=True)
    ]
    firsts = speech.decoded(*latents)
    seconds = speech.decoded(*_continued(guider, row, conditioned(row, following, clip), firsts, seed + 1))
    joined = [_joined(*pair) for pair in zip(*firsts, *seconds, strict=True)]
    asked = [
        dataclasses.replace(scene, syllables=scene.syllables + after.syllables)
        for scene, after in zip(scenes, following, strict=True)
    ]
    return asked, judge.observed(*(torch.stack(parts) for parts in zip(*joined, strict=True)))


def _continued(
    guider: Any, row: Row, conds: Sequence[Any], clips: tuple[Tensor, Tensor], seed: int
) -> tuple[Tensor, Tensor]:
    """Generate what follows clips, frames [N, T, H, W, 3] and waveforms [N, samples], as after Ovi Continue."""
    video_vae, audio_vae = nodes.video_vae(), nodes.audio_vae(AudioCodec(SPEECH))
    parts = []
    for frames, waveform in zip(*clips, strict=True):
        joint = JointLatent(speech.WIDTH, speech.HEIGHT, world.FRAMES, batch_size=1)
        joint.preserve_video(video_vae, frames[-SHARED:], world.FPS, "refuse", keep_frames=0)
        audio = {"waveform": waveform[None, None], "sample_rate": world.RATE}
        joint.preserve_audio(audio_vae, media.before_padding(audio, world.FRAMES, SHARED, "audio"), keep_seconds=0.0)
        parts.append(joint)
    video, audio = torch.cat([part.video for part in parts]), torch.cat([part.audio for part in parts])
    return finished(guider, row, conds, seed, video, audio, (parts[0].video_mask, parts[0].audio_mask))


def _joined(frames: Tensor, waveform: Tensor, after: Tensor, its_waveform: Tensor) -> tuple[Tensor, Tensor]:
    """Join a clip and what follows it, as Ovi Join does."""
    lengths = [len(frames), len(after)]
    waves = join.join_waves([waveform[None], its_waveform[None]], lengths, [SHARED], world.RATE)
    return join.join_frames([frames, after], [SHARED]), waves[0]
