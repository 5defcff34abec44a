"""Ovi Guidance on a MODEL: scales for the audio, references and synchrony, skipped blocks, and the steps of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import comfy.samplers
import torch
from torch import Tensor

from ..guidance import (
    AUTO,
    BOTH,
    SKIP_KEY,
    WHOLE,
    Modalities,
    SigmaRange,
    Skip,
    Synchrony,
    guide_parts,
    guide_references,
    guide_synchrony,
    parse_blocks,
)
from . import references
from .apart import CFG_FUNCTION, Apart
from .model import AUDIO_SHIFT, GENERATED, require_ovi, without_fusion

Predict = Callable[[Mapping[str, Any]], list[Tensor]]


@dataclass(frozen=True)
class Guidance:
    """The scales, and when each modality is guided. Two methods are hooks in ComfyUI's sampling."""

    audio_cfg: float
    video: SigmaRange
    audio: SigmaRange
    video_reference_cfg: float
    audio_reference_cfg: float
    synchrony: Synchrony
    predict: Predict  # the hook that `predict_needed` stands in for

    def at(self, sigma: Tensor) -> Modalities:
        """Return which modalities are guided in a step at `sigma` [B]."""
        return Modalities(self.video.contains(sigma), self.audio_cfg != 1.0 and self.audio.contains(sigma))

    def passes(self, sigma: Tensor, cfg: float) -> int:
        """Return the passes of the model in a step at `sigma` [B], where the sampler's own scale is `cfg`.

        It counts for a clip of which neither modality is given whole.
        """
        negative = (cfg, self.audio_cfg) != (1.0, 1.0) and any(self.at(sigma))  # else core leaves it out
        ranges = (self.video_reference_cfg, self.video), (self.audio_reference_cfg, self.audio)
        referring = sum(bool(scale) and when.contains(sigma) for scale, when in ranges)
        return 1 + negative + referring + any(self.synchrony.at(sigma, BOTH))

    def predict_needed(self, args: Mapping[str, Any]) -> list[Tensor]:
        """Predict without the negative prompt where nothing is guided; without references or fusion where they guide.

        All in one call, as EasyCache and a split of the batch over GPUs need it. Where nothing is guided, the positive
        prediction stands for both, so that any scale gives it back exactly. What references and synchrony add is added
        to both, so that it is in the guided result whatever the scale.
        """
        positive, *others = args["conds"]
        guided = any(self.at(args["sigma"]))
        if not guided:
            others = [None for _ in others]
        kinds = self._references_at(args["sigma"], positive)
        towards = self._synchrony_at(args["sigma"], positive)
        extra = [references.without(positive, kind) for kind in kinds]
        if any(towards):
            extra.append(without_fusion(positive))
        of_positive, *rest = self.predict({**args, "conds": [positive, *others, *extra]})
        of_others = rest[: len(others)] if guided else [of_positive for _ in others]
        if not extra:
            return [of_positive, *of_others]
        of_extra = rest[len(others) :]
        found = dict(zip(kinds, of_extra, strict=False))  # without fusion comes after them
        parts = found.get(references.IMAGES), found.get(references.VOICES)
        size = args["model"].latent_format.video_size(of_positive)
        scales = self.video_reference_cfg, self.audio_reference_cfg
        pushed = [guide_references(each, of_positive, *parts, size, *scales) for each in (of_positive, *of_others)]
        if not any(towards):
            return pushed
        cut, scale = of_extra[-1], self.synchrony.scale
        return [guide_synchrony(each, of_positive, cut, size, scale, towards) for each in pushed]

    def _synchrony_at(self, sigma: Tensor, positive: Any) -> Modalities:
        """Return which modalities a step at `sigma` pushes towards the other one."""
        return self.synchrony.at(sigma, positive[0]["model_conds"][GENERATED].cond)

    def _references_at(self, sigma: Tensor, positive: Any) -> list[str]:
        """Return the kinds of references that a step at `sigma` is guided by."""
        kinds = []
        for kind, what, modality, scale, when in (
            (references.IMAGES, "face", "video", self.video_reference_cfg, self.video),
            (references.VOICES, "voice", "audio", self.audio_reference_cfg, self.audio),
        ):
            if scale and not references.has(positive, kind):
                raise ValueError(
                    f"Ovi Guidance has a {modality}_reference_cfg of {scale:g}, but the positive prompt has no {what}: "
                    "connect one to 'Ovi Person', or set it to 0."
                )
            if scale and when.contains(sigma):
                kinds.append(kind)
        return kinds

    def guide_audio(self, args: Mapping[str, Any]) -> Tensor:
        """Apply the audio's own scale to the sampler's guided result."""
        denoised: Tensor = args["denoised"]
        guided = self.at(args["sigma"])
        if args["uncond"] is None:
            if guided.audio:
                raise ValueError(
                    f"Ovi Guidance has an audio cfg of {self.audio_cfg}, but the guider ran this step without a "
                    "negative prompt; use a guider that has one in every step and end guidance with "
                    "'video_end_percent' and 'audio_end_percent' of 'Ovi Guidance', or set an audio cfg of 1."
                )
            return denoised
        size = args["model"].latent_format.video_size(denoised)
        predicted = args["cond_denoised"], args["uncond_denoised"]
        result = guide_parts(denoised, *predicted, size, self.audio_cfg, guided)
        if guided.audio and isinstance(args["model_options"].get(CFG_FUNCTION), Apart):
            return torch.cat([result[..., :size], denoised[..., size:]], dim=-1)  # it has the audio's scale already
        return result


def guidance_of(options: Mapping[str, Any]) -> Guidance | None:
    """Return what Ovi Guidance set in a MODEL's model_options, if it was there."""
    hooks = (getattr(function, "__self__", None) for function in options.get("sampler_post_cfg_function", ()))
    return next((hook for hook in hooks if isinstance(hook, Guidance)), None)


def guide(
    model: comfy.model_patcher.ModelPatcher,
    audio_cfg: float,
    skip_blocks: str,
    skip: tuple[float, float] = (0.0, 1.0),
    video: tuple[float, float] = (0.0, 1.0),
    audio: tuple[float, float] = (0.0, 1.0),
    video_reference_cfg: float = 0.0,
    audio_reference_cfg: float = 0.0,
    sync_scale: float = 0.0,
    sync: tuple[float, float] = (0.0, 1.0),
    sync_direction: str = AUTO,
    audio_shift: float = 0.0,
) -> comfy.model_patcher.ModelPatcher:
    """Return a clone of an Ovi MODEL with a guidance scale for the audio and blocks that the negative pass skips.

    The video's scale stays that of the sampler or guider. `skip`, `video` and `audio` are the parts of the schedule,
    start and end in 0 to 1, in which blocks are skipped and each modality is guided; where neither modality is, there
    is no negative pass. The reference cfgs say how closely the clip follows faces and voices, where its modality is
    guided; 0 saves a pass. The sync scale says how strongly video and audio are pushed towards each other, in the part
    `sync`; `sync_direction` is one of `DIRECTIONS`. The audio shift, where it is not 0, is that of the audio's noise
    schedule, beside the video's, which is the MODEL's; all parts count in the video's. Raises ValueError for a model
    that is not Ovi or has Ovi Guidance already, a block that cannot be skipped, and a part that ends before it starts.
    """
    require_ovi(model, "Ovi Guidance")
    if SKIP_KEY in model.model_options["transformer_options"]:
        raise ValueError("This MODEL has been through an Ovi Guidance already; connect the MODEL from before that one.")
    blocks = parse_blocks(skip_blocks, model.model.diffusion_model.config.num_layers)
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    parts = (skip, video, audio, sync)
    skip_range, video_range, audio_range, sync_range = (SigmaRange.from_percents(part, to_sigma) for part in parts)
    model = model.clone()
    options = model.model_options
    options["transformer_options"][SKIP_KEY] = Skip(blocks, skip_range)
    if audio_shift:
        model.add_object_patch(AUDIO_SHIFT, audio_shift)
    predict = options.get("sampler_calc_cond_batch_function", _predict)
    synchrony = Synchrony(sync_scale, sync_range, sync_direction)
    references_cfg = video_reference_cfg, audio_reference_cfg
    guidance = Guidance(audio_cfg, video_range, audio_range, *references_cfg, synchrony, predict)
    if (video_range, audio_range) != (WHOLE, WHOLE) or any(references_cfg) or sync_scale:
        options["sampler_calc_cond_batch_function"] = guidance.predict_needed
    # With a video cfg of 1, core would leave out the negative pass, which the audio needs.
    model.set_model_sampler_post_cfg_function(guidance.guide_audio, disable_cfg1_optimization=audio_cfg != 1.0)
    # First, because it replaces the audio: what other nodes do to the guided result has to come after.
    _move_last_to_front(options["sampler_post_cfg_function"])
    return model


def passes(model: comfy.model_patcher.ModelPatcher, cfg: float, sigmas: Tensor) -> int:
    """Return the passes of a MODEL over a schedule, with a CFGGuider's `cfg` and one call of the model in each step."""
    guidance, steps = guidance_of(model.model_options), sigmas[:-1]
    if guidance is None:
        return len(steps) * (1 + (cfg != 1.0))
    return sum(guidance.passes(sigma[None], cfg) for sigma in steps)


def _predict(args: Mapping[str, Any]) -> list[Tensor]:
    """Predict as ComfyUI does where no node replaces its function."""
    return comfy.samplers.calc_cond_batch(
        args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
    )


def _move_last_to_front(functions: list[Any]) -> None:
    functions[:] = functions[-1:] + functions[:-1]
