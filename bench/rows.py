"""The rows of the quality table: how the miniature is sampled in each, on ComfyUI.

Importing this imports ComfyUI, which must be on the path by then (`bench.comfyui.start`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import comfy.latent_formats
import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from comfy.nested_tensor import NestedTensor
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from torch import Tensor

from miniature import nodes, references, world
from miniature.codecs import AudioCodec, VideoCodec
from ovi import geometry, native, sampling
from ovi.files import read_safetensors
from ovi.native.lora import apply
from ovi.native.references import add_person
from ovi.tools import convert

WAN = comfy.latent_formats.Wan22()
START = 4  # video latents of a start that is given, half a second
STEPS, GUIDED = 20, 2.0
REFERENCE_STEPS, REFERENCE_CFG = 10, (1.5, 2.0)  # of the rows with references; the scales are DreamID-Omni's
SAMPLERS = {"unipc": comfy.samplers.KSAMPLER(sampling.sample_unipc)}
SAMPLERS |= {name: comfy.samplers.ksampler(core) for name, core in (("dpm++", "dpmpp_2m"), ("euler", "euler"))}
TO_VIDEO, TO_AUDIO = "a2v_cross_attn", "v2a_cross_attn"  # the fusion's two directions, as ComfyUI's options name them

Patcher = Any
Scene = Any  # of either world
Refer = Callable[[world.Scene, int], tuple[Tensor, Tensor]]


class Stage(NamedTuple):
    """The world that scenes are of: the size of its frames, and what encodes scenes to video and audio latents."""

    height: int
    width: int
    encode: Callable[[Sequence[Scene]], tuple[Tensor, Tensor]]


def ball_latents(scenes: Sequence[world.Scene]) -> tuple[Tensor, Tensor]:
    """Encode scenes of the ball: video [N, 48, F, h, w] and audio [N, 20, L]."""
    frames = torch.stack([world.frames(scene) for scene in scenes]).movedim(-1, 1)
    waves = torch.stack([world.waveform(scene) for scene in scenes])
    return VideoCodec().encode(2 * frames - 1), AudioCodec().encode(waves)


BALL = Stage(world.HEIGHT, world.WIDTH, ball_latents)


@dataclass(frozen=True)
class Row:
    """How one row of the table is sampled."""

    name: str
    sampler: str = "unipc"
    solver: str = ""  # whose sigmas there are, as in Ovi Scheduler; empty: the sampler's
    shift: float = sampling.SHIFT
    steps: int = STEPS
    cfg: float = 1.0
    audio_cfg: float | None = None  # None: as much as the video's
    during: tuple[float, float] = (0.0, 1.0)  # the part of the schedule with guidance, as in Ovi Guidance
    skip_blocks: str = ""
    sync_scale: float = 0.0
    audio_shift: float = 0.0  # 0: as much as the video's
    given: str = ""  # what is preserved of the scene, see `masks`; the rest is generated
    give: Callable[[Sequence[Scene]], Sequence[Scene]] = field(default=lambda scenes: scenes)  # the scenes it is of
    prompt: Callable[[Scene], str] = field(default=lambda scene: scene.caption)
    alone: bool = False  # clips are sampled one by one, with the noise that they have in the batch
    follow: bool = False  # each clip is continued and joined with what follows it, in `bench.talking_rows`
    change: Callable[[Patcher], Patcher] = field(default=lambda model: model)
    refer: Refer | None = None  # makes the reference image's latent and the recording's from a scene and a seed
    vary: Callable[[world.Scene], world.Scene] = field(default=lambda scene: scene)  # what the references show instead
    reference_cfg: tuple[float, float] = (0.0, 0.0)  # of the video and of the audio


def cut(*directions: str) -> Callable[[Patcher], Patcher]:
    """Return a change that switches these directions of the fusion off."""

    def change(model: Patcher) -> Patcher:
        model = model.clone()
        model.model_options["transformer_options"] |= dict.fromkeys(directions, False)
        return model

    return change


def cached(cache: str, threshold: float) -> Callable[[Patcher], Patcher]:
    """Return a change that adds a cache of core's, with its default settings except for the threshold."""
    node = {"EasyCache": EasyCacheNode, "LazyCache": LazyCacheNode}[cache]
    return lambda model: node.execute(model, threshold, 0.15, 0.95, False).args[0]


def unscaled(path: Path) -> Callable[[Patcher], Patcher]:
    """Return a change to the model in `path` with the audio's positions rotated as fast as the video's."""

    def change(_: Patcher) -> Patcher:
        model = native.load([str(path)])
        tower = model.model.diffusion_model.audio_model
        tower.config = dataclasses.replace(tower.config, audio_rope_scale=1.0)
        return model

    return change


def quantised(path: Path, name: str) -> Callable[[Patcher], Patcher]:
    """Return a change to the model in `path` converted to a format."""

    def change(_: Patcher) -> Patcher:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            converted = Path(folder, "quantised.safetensors")
            convert.run(convert.quantize(path, converted, convert.FORMATS[name]), dry_run=False)
            return native.load([str(converted)])

    return change


def rows(path: Path) -> list[Row]:
    """Return the rows for the model in `path`; each changes one thing of the first."""
    return [
        Row("as shipped"),
        Row("audio does not attend to video", change=cut(TO_AUDIO)),
        Row("video does not attend to audio", change=cut(TO_VIDEO)),
        Row("no fusion", change=cut(TO_VIDEO, TO_AUDIO)),
        Row("audio RoPE unscaled", change=unscaled(path)),
        Row("guidance", cfg=GUIDED),
        Row("guidance, block 2 skipped", cfg=GUIDED, skip_blocks="2"),
        Row("fp8", change=quantised(path, "fp8")),
        Row("EasyCache, threshold 0.2 (its default)", change=cached("EasyCache", 0.2)),
        Row("EasyCache, threshold 0.4", change=cached("EasyCache", 0.4)),
        *(Row(f"{name}, {steps} steps", name, steps) for name in SAMPLERS for steps in (4, 10, 30, 50)),
    ]


def reference_rows(path: Path) -> list[Row]:
    """Return the rows for the LoRA in `path` that follows references; each changes one thing of the first."""

    def row(name: str, **changes: Any) -> Row:
        return Row(name, **{"steps": REFERENCE_STEPS, "change": lora(path), "refer": shown} | changes)

    return [
        row("references"),
        row("references: an image of another colour", vary=another("colour", world.COLOURS)),
        row("references: a recording of another pitch", vary=another("pitch", world.PITCHES)),
        row("references: zeros in their place", refer=zeros),
        row("references: guided by them", reference_cfg=REFERENCE_CFG),
    ]


def lora(path: Path, strength: float = 1.0) -> Callable[[Patcher], Patcher]:
    """Return a change that applies the LoRA in `path`."""
    return lambda model: apply(model, read_safetensors(path)[0], strength, strength)[0]


def another(name: str, values: Collection[str]) -> Callable[[world.Scene], world.Scene]:
    """Return a change of a scene: another value, the next one."""
    following = dict(pairwise([*values, *values]))
    return lambda scene: dataclasses.replace(scene, **{name: following[getattr(scene, name)]})


def shown(scene: world.Scene, seed: int) -> tuple[Tensor, Tensor]:
    """Encode the reference image and the recording of a scene."""
    image, recording = references.image(scene, seed), references.recording(scene, seed)
    return nodes.VideoModel().encode(2 * image.movedim(-1, 0)[None] - 1), nodes.AudioModel().encode(
        recording[None, None]
    )


def zeros(scene: world.Scene, seed: int) -> tuple[Tensor, Tensor]:
    """Return zeros in place of the references, as in training."""
    image, recording = shown(scene, seed)
    return nodes.VideoModel().format.process_out(torch.zeros_like(image)), torch.zeros_like(recording)


def synchrony_rows() -> list[Row]:
    """Return the rows of synchrony guidance: both modalities generated, then one of them given."""
    scales = 0.0, 1.0, 2.0, 4.0
    rows = [
        Row(f"{steps} steps, cfg {cfg:g}, sync {scale:g}", steps=steps, cfg=cfg, sync_scale=scale)
        for steps in (4, 10, 20)
        for cfg in (1.0, GUIDED)
        for scale in scales
    ]
    return rows + [
        Row(f"{given} given, sync {scale:g}", steps=10, sync_scale=scale, given=given)
        for given in ("audio", "video")
        for scale in scales
    ]


def sampled(
    model: Patcher, row: Row, scenes: Sequence[world.Scene], clip: Any, seed: int, length: int = world.FRAMES
) -> tuple[Tensor, Tensor]:
    """Sample the captions of scenes of the ball: frames [N, length, H, W, 3] from 0 to 1, waveforms [N, samples].

    `clip` is ComfyUI's text encoder, `length` in frames. With references the scenes are sampled one by one, since the
    clips of a batch have the same.
    """
    guider = guided(model, row)
    if row.refer is None:
        video, audio = sampled_latents(guider, row, scenes, conditioned(row, scenes, clip), seed, BALL, length)
    else:
        clips = []
        for i, scene in enumerate(map(row.vary, scenes)):
            given = row.refer(scene, world.HELD_OUT + i)
            *conds, _ = add_person(encoded(clip, [scene.caption]), encoded(clip, [""]), *given)
            clips.append(sampled_latents(guider, row, [scene], conds, seed + i, BALL, length))
        video, audio = (torch.cat(parts) for parts in zip(*clips, strict=True))
    return VideoCodec().decode(video).movedim(1, -1) / 2 + 0.5, AudioCodec().decode(audio)


def guided(model: Patcher, row: Row) -> Any:
    """Return ComfyUI's guider of a row."""
    video_cfg, audio_cfg = row.reference_cfg
    options: dict[str, Any] = {
        "video_reference_cfg": video_cfg,
        "audio_reference_cfg": audio_cfg,
        "sync_scale": row.sync_scale,
    }
    audio = row.cfg if row.audio_cfg is None else row.audio_cfg
    parts = {"video": row.during, "audio": row.during}
    changed = native.guide(row.change(model), audio, row.skip_blocks, audio_shift=row.audio_shift, **parts, **options)
    guider = comfy.samplers.CFGGuider(changed)
    guider.set_cfg(row.cfg)
    return guider


def conditioned(row: Row, scenes: Sequence[Scene], clip: Any) -> list[Any]:
    """Encode the prompts of scenes, and as many empty ones."""
    return [encoded(clip, texts) for texts in ([row.prompt(scene) for scene in scenes], [""] * len(scenes))]


def encoded(clip: Any, texts: Sequence[str]) -> list[list[Any]]:
    """Encode texts, one for each clip of a batch, as a CONDITIONING."""
    each = {text: clip.encode_from_tokens(clip.tokenize(text, disable_weights=True)) for text in set(texts)}
    return [[torch.cat([each[text] for text in texts]), {}]]


def sampled_latents(
    guider: Any,
    row: Row,
    scenes: Sequence[Scene],
    conds: Sequence[Any],
    seed: int,
    stage: Stage,
    length: int = world.FRAMES,
) -> tuple[Tensor, Tensor]:
    """Sample a clip for each scene with prompts, the positive and the negative one: the codecs' latents.

    They are video [N, 48, F, h, w] and audio [N, 20, L], on ComfyUI's intermediate device.
    """
    latents = geometry.video_latents(length), geometry.audio_latents(length)
    video = torch.zeros(len(scenes), geometry.VIDEO_CHANNELS, latents[0], stage.height // 16, stage.width // 16)
    audio = torch.zeros(len(scenes), geometry.AUDIO_CHANNELS, latents[1])
    generated = None
    if row.given:
        generated = masks(row.given, *(torch.ones(1, 1, *part.shape[2:]) for part in (video, audio)))
        given = stage.encode(row.give(scenes))
        video, audio = (torch.where(mask == 0, x, 0.0) for mask, x in zip(generated, given, strict=True))
        video = WAN.process_out(video)
    return finished(guider, row, conds, seed, video, audio[..., : latents[1]], generated)


def finished(
    guider: Any,
    row: Row,
    conds: Sequence[Any],
    seed: int,
    video: Tensor,
    audio: Tensor,
    generated: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Sample what masks say is `generated` of latents, video on Wan's scale; return the codecs' latents."""
    noise = comfy.sample.prepare_noise(NestedTensor([video, audio]), seed).unbind()
    clips = []
    for some in [slice(i, i + 1) for i in range(len(video))] if row.alone else [slice(None)]:
        guider.set_conds(*([[text[some], options] for text, options in cond] for cond in conds))
        out = guider.sample(
            NestedTensor([part[some] for part in noise]),
            NestedTensor([video[some], audio[some]]),
            SAMPLERS[row.sampler],
            sampling.flow_sigmas(row.steps, row.shift, row.solver or row.sampler),
            NestedTensor(generated) if generated else None,
            seed=seed,
            disable_pbar=True,
        )
        clips.append(out.to(comfy.model_management.intermediate_device()).unbind())
    video, audio = (torch.cat(parts) for parts in zip(*clips, strict=True))
    return WAN.process_in(video), audio


def masks(given: str, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
    """Set masks [1, 1, F, h, w] and [1, 1, L] of ones to 0 where something is given.

    It is "video", "audio", the "start" of both, or of the video the "first" frame or the "end", its last frames.
    """
    if given == "video":
        video.zero_()
    elif given == "audio":
        audio.zero_()
    elif given == "start":
        video[:, :, :START] = 0.0
        audio[..., : geometry.audio_latents(geometry.frames(START))] = 0.0
    elif given == "first":
        video[:, :, 0] = 0.0
    elif given == "end":
        video[:, :, -1] = 0.0
    return video, audio
