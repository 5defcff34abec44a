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
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from comfy.nested_tensor import NestedTensor
from comfy_extras.nodes_easycache import EasyCacheNode
from torch import Tensor

from miniature import nodes, references, world
from ovi import geometry, native, sampling
from ovi.files import read_safetensors
from ovi.native.lora import apply
from ovi.native.references import add_person
from ovi.tools import convert

STEPS, GUIDED = 20, 2.0
REFERENCE_STEPS, REFERENCE_CFG = 10, (1.5, 2.0)  # of the rows with references; the scales are DreamID-Omni's
SAMPLERS = {"unipc": comfy.samplers.KSAMPLER(sampling.sample_unipc)}
SAMPLERS |= {name: comfy.samplers.ksampler(core) for name, core in (("dpm++", "dpmpp_2m"), ("euler", "euler"))}
TO_VIDEO, TO_AUDIO = "a2v_cross_attn", "v2a_cross_attn"  # the fusion's two directions, as ComfyUI's options name them

Patcher = Any
Refer = Callable[[world.Scene, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Row:
    """How one row of the table is sampled."""

    name: str
    sampler: str = "unipc"
    steps: int = STEPS
    cfg: float = 1.0
    skip_blocks: str = ""
    sync_scale: float = 0.0
    given: str = ""  # "video" or "audio": that of the scene is preserved, the other one generated
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


def easycache(threshold: float) -> Callable[[Patcher], Patcher]:
    """Return a change that adds core's EasyCache, with its default settings except for the threshold."""
    return lambda model: EasyCacheNode.execute(model, threshold, 0.15, 0.95, False).args[0]


def unscaled(path: Path) -> Callable[[Patcher], Patcher]:
    """Return a change to the model in `path` with the audio's positions rotated as fast as the video's."""

    def change(_: Patcher) -> Patcher:
        model = native.load([str(path)])
        tower = model.model.diffusion_model.audio_model
        tower.config = dataclasses.replace(tower.config, audio_rope_scale=1.0)
        return model

    return change


def fp8(path: Path) -> Callable[[Patcher], Patcher]:
    """Return a change to the model in `path` converted to fp8."""

    def change(_: Patcher) -> Patcher:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            converted = Path(folder, "fp8.safetensors")
            convert.run(convert.quantize(path, converted, convert.FORMATS["fp8"]), dry_run=False)
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
        Row("fp8", change=fp8(path)),
        Row("EasyCache, threshold 0.2 (its default)", change=easycache(0.2)),
        Row("EasyCache, threshold 0.4", change=easycache(0.4)),
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


def lora(path: Path) -> Callable[[Patcher], Patcher]:
    """Return a change that applies the LoRA in `path`."""
    return lambda model: apply(model, read_safetensors(path)[0], 1.0, 1.0)[0]


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
    """Sample the scenes' captions: frames [N, length, H, W, 3] from 0 to 1, and waveforms [N, samples] at 16 kHz.

    `clip` is ComfyUI's text encoder, `length` in frames. With references the scenes are sampled one by one, since the
    clips of a batch have the same.
    """
    video_cfg, audio_cfg = row.reference_cfg
    options = {"video_reference_cfg": video_cfg, "audio_reference_cfg": audio_cfg, "sync_scale": row.sync_scale}
    guider = comfy.samplers.CFGGuider(native.guide(row.change(model), row.cfg, row.skip_blocks, **options))
    guider.set_cfg(row.cfg)
    if row.refer is None:
        conds = [encoded(clip, texts) for texts in ([scene.caption for scene in scenes], [""] * len(scenes))]
        return _run(guider, row, conds, scenes, seed, length)
    clips = []
    for i, scene in enumerate(map(row.vary, scenes)):
        given = row.refer(scene, world.HELD_OUT + i)
        *conds, _ = add_person(encoded(clip, [scene.caption]), encoded(clip, [""]), *given)
        clips.append(_run(guider, row, conds, [scene], seed + i, length))
    frames, waveforms = (torch.cat(parts) for parts in zip(*clips, strict=True))
    return frames, waveforms


def encoded(clip: Any, texts: Sequence[str]) -> list[list[Any]]:
    """Encode texts, one for each clip of a batch, as a CONDITIONING."""
    tokens = [clip.tokenize(text, disable_weights=True) for text in texts]
    return [[torch.cat([clip.encode_from_tokens(one) for one in tokens]), {}]]


def _run(
    guider: Any, row: Row, conds: Sequence[Any], scenes: Sequence[world.Scene], seed: int, length: int
) -> tuple[Tensor, Tensor]:
    """Sample a clip for each scene with prompts, the positive and the negative one; return frames and waveforms."""
    batch, latents = len(scenes), (geometry.video_latents(length), geometry.audio_latents(length))
    video = torch.zeros(batch, geometry.VIDEO_CHANNELS, latents[0], world.HEIGHT // 16, world.WIDTH // 16)
    audio = torch.zeros(batch, geometry.AUDIO_CHANNELS, latents[1])
    masks = [torch.ones(1, 1, *video.shape[2:]), torch.ones(1, 1, latents[1])]
    noise = comfy.sample.prepare_noise(NestedTensor([video, audio]), seed)
    if row.given == "video":
        frames = torch.stack([world.frames(scene) for scene in scenes]).movedim(-1, 1)
        video, masks[0] = nodes.VideoModel().encode(2 * frames - 1), torch.zeros_like(masks[0])
    elif row.given == "audio":
        waves = torch.stack([world.waveform(scene) for scene in scenes])
        audio, masks[1] = nodes.AudioModel().encode(waves[:, None])[..., : latents[1]], torch.zeros_like(masks[1])
    guider.set_conds(*conds)
    out = guider.sample(
        noise,
        NestedTensor([video, audio]),
        SAMPLERS[row.sampler],
        sampling.flow_sigmas(row.steps, solver=row.sampler),
        NestedTensor(masks) if row.given else None,
        seed=seed,
        disable_pbar=True,
    )
    video, audio = out.to(comfy.model_management.intermediate_device()).unbind()
    frames = nodes.VideoModel().decode(video).movedim(1, -1) / 2 + 0.5
    return frames, nodes.AudioModel().decode(audio)[:, 0]
