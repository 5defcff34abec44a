"""Ovi as ComfyUI's BaseModel: the diffusion model, its conditioning and its config."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import comfy.conds
import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.ldm.flux.math import apply_rope1
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor, nn

from .. import geometry
from ..config import OviConfig
from ..guidance import SKIP_KEY, Modalities, Skip
from ..memory import activation_bytes, bytes_per_token
from ..model import NO_FLOAT64, Block, OviModel, References
from ..parallel import Team
from ..sampling import SHIFT, audio_sigma, carried
from . import references
from .latent import OviLatent

try:
    from comfy import model_prefetch
except ImportError:  # ComfyUI before 0.24 fetches no weights ahead
    model_prefetch = None

AUDIO_SHIFT = "audio_shift"  # of this model, and of core's ModelSamplingAV in newer versions
FUSION_KEYS = ("a2v_cross_attn", "v2a_cross_attn")  # core's transformer_options that cut the fusion
COMPUTE_DTYPES = (torch.bfloat16, torch.float32)  # never float16: Ovi overflows it and the video goes black
GENERATED = "generated"  # in a prompt's model_conds: the Modalities that no mask preserves whole
CUTS = "cuts"  # the same: whether the towers do not attend to each other


class PerPrompt(comfy.conds.CONDConstant):
    """A fact about a prompt, which others in its batch need not share.

    For conditions in one batch the model gets a list, one entry for each chunk of the batch.
    """

    def can_concat(self, other: PerPrompt) -> bool:
        """Let any prompts share a batch."""
        return True

    def concat(self, others: Sequence[PerPrompt]) -> list[Any]:
        """Return the list that the model gets."""
        return [self.cond, *(other.cond for other in others)]


class NativeOviModel(OviModel):
    """OviModel with ComfyUI's attention, rotation and prefetching, called as BaseModel calls a diffusion model."""

    def __init__(
        self,
        ovi_config: OviConfig,
        operations: Any,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            ovi_config,
            operations=operations,
            attention=optimized_attention,
            rotate=apply_rope1,
            device=device,
            dtype=dtype,
        )

    def forward(  # type: ignore[override]
        self,
        x: list[Tensor | None],
        timestep: Tensor | tuple[Tensor, Tensor],
        context: Tensor,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Tensor]:
        """Predict the velocities of [video, audio], through the wrappers that nodes such as EasyCache add."""
        options = transformer_options or {}
        # EasyCache adds to its inputs in place; in float32 these are views of the sampler's own latent.
        x = [None if part is None else part.clone() for part in x]
        return WrapperExecutor.new_class_executor(
            self._forward, self, get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        ).execute(x, timestep, context, control, options, **kwargs)

    def _forward(
        self,
        x: list[Tensor | None],
        timestep: Tensor | tuple[Tensor, Tensor],
        context: Tensor,
        control: Any,
        transformer_options: Mapping[str, Any],
        *,
        audio_context: Tensor | None = None,
        embedded: bool = False,
        skip_blocks: tuple[int, ...] = (),
        skip_rows: Sequence[bool] | None = None,
        cut_rows: Sequence[bool] | None = None,
        pass_blocks: tuple[int, ...] = (),
        audio_start: float = 0.0,
        reference_images: Sequence[Tensor] = (),
        reference_voices: Sequence[Tensor] = (),
        team: Team | None = None,
        **masks: Any,
    ) -> list[Tensor | None]:
        given = References(reference_images, reference_voices) if reference_images or reference_voices else None
        return self.velocities(
            x,
            timestep,
            (context, audio_context) if embedded else self.embed_texts(x, context, audio_context),
            skip_blocks=skip_blocks,
            skip_rows=skip_rows,
            audio_start=audio_start,
            references=given,
            transformer_options=transformer_options,
            cut_rows=cut_rows,
            pass_blocks=pass_blocks,
            team=team,
        )

    def block_pairs(self, device: torch.device, options: Mapping[str, Any]) -> Iterator[tuple[Block, Block]]:
        """Iterate over the pairs of blocks, prefetching the weights of the next pair while one runs."""
        pairs = list(super().block_pairs(device, options))
        queue = None
        if model_prefetch is not None:
            queue = model_prefetch.make_prefetch_queue([nn.ModuleList(pair) for pair in pairs], device, options)
        for pair in pairs:
            if queue is not None:
                model_prefetch.prefetch_queue_pop(queue, device, pair)
            yield pair
        if queue is not None:
            model_prefetch.prefetch_queue_pop(queue, device, None)


class Ovi(comfy.model_base.BaseModel):
    """The BaseModel: what the towers get besides the latents.

    The audio may have a shift of its own. Samplers have one schedule, the video's, and carry the audio scaled so that
    it is an ordinary flow latent on it: (1 - sigma) * ratio * x0 + sigma * noise, with the `shift_ratio`, which is
    `carried(sigma, ratio)` times the audio at `audio_sigma(sigma, ratio)`.
    """

    shared_by = 1  # devices, during a run with Ovi Parallel
    audio_shift = 0.0  # Ovi Guidance patches it in; 0: that of the MODEL's sampling, or else the video's

    def __init__(self, model_config: OviSupported, device: torch.device | None = None) -> None:
        super().__init__(model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=NativeOviModel)

    @property
    def shift_ratio(self) -> float:
        """The shift of the video by that of the audio. Core's own sampling has both from 0.33 on."""
        sampling = self.model_sampling
        audio_shift = self.audio_shift or getattr(sampling, AUDIO_SHIFT, None)
        if not audio_shift:
            return 1.0
        if not isinstance(sampling, comfy.model_sampling.ModelSamplingDiscreteFlow):
            # Not AttributeError or its like, which a property of a module would hide.
            raise ValueError(
                f"The audio has a shift of {audio_shift:g}, but the MODEL's sampling has none for the video to compare "
                "it with: set its shift with 'ModelSamplingSD3', or set 'audio_shift' of 'Ovi Guidance' to 0."
            )
        return sampling.shift / audio_shift

    def process_latent_in(self, latent: Any) -> Any:
        """Return a latent as samplers carry it, from what the VAEs give."""
        return self.latent_format.scale_audio(super().process_latent_in(latent), self.shift_ratio)

    def process_latent_out(self, latent: Any) -> Any:
        """Undo `process_latent_in`."""
        return super().process_latent_out(self.latent_format.scale_audio(latent, 1 / self.shift_ratio))

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """Return the texts of both towers, masks per frame, the latents' shapes and facts about the prompt.

        This runs once per prompt and sampling run, so the texts are embedded here. Masks become one number per frame:
        video [B, 1, F, 1, 1], audio [B, 1, L].
        """
        out = super().extra_conds(**kwargs)
        texts = _split_context(kwargs.get("cross_attn"), self.model_config.unet_config["ovi_config"])
        # Hooks and training change the weights that embed the texts during the run: then every step embeds them.
        embedded = not (kwargs.get("hooks") or getattr(comfy.model_management, "in_training", False))
        if embedded:
            like = torch.empty(0, device=kwargs["device"], dtype=self.get_dtype_inference())
            texts = self.diffusion_model.embed_texts((like, like), *(text.to(like.device) for text in texts))
        out["c_crossattn"], out["audio_context"] = (comfy.conds.CONDRegular(text) for text in texts)
        out["embedded"] = comfy.conds.CONDConstant(embedded)
        if (shapes := kwargs.get("latent_shapes")) is None:
            raise ValueError(
                "A node encodes a prompt in the middle of sampling, without the shapes of video and audio; use "
                "'Perp-Neg Guider' instead of 'Perp-Neg', and leave out other nodes that do so."
            )
        out["latent_shapes"] = comfy.conds.CONDConstant(shapes)
        out["prompt_types"], out[CUTS] = PerPrompt(kwargs["prompt_type"]), PerPrompt(False)
        out |= references.conditions(kwargs, shapes, self.process_latent_in)
        generated = [True, True]
        if (mask := kwargs.get("denoise_mask")) is not None:
            video, audio = comfy.utils.unpack_latents(mask, shapes)
            generated = [bool(part.any()) for part in (video, audio)]
            out["denoise_mask"] = comfy.conds.CONDRegular(video.mean((1, 3, 4), keepdim=True))
            out["audio_denoise_mask"] = comfy.conds.CONDRegular(audio.mean(1, keepdim=True))
        out[GENERATED] = comfy.conds.CONDConstant(Modalities(*generated))
        return out

    def extra_conds_shapes(self, **kwargs: Any) -> dict[str, Any]:
        """Return the sizes of the references, which `memory_required` counts."""
        return references.sizes(kwargs)

    def _apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        *,
        prompt_types: Sequence[str],
        cuts: Sequence[bool],
        generated: Modalities,
        **kwargs: Any,
    ) -> Tensor:
        """Pass the model what changes during a run as arguments.

        It must not read it from transformer_options, which core's TorchCompileModel treats as constants.
        """
        options = transformer_options or {}
        chunk = len(x) // len(prompt_types)
        skip: Skip | None = options.get(SKIP_KEY)
        if skip is not None and "negative" in prompt_types:
            kwargs["skip_blocks"] = skip.at(options["sigmas"])
            kwargs["skip_rows"] = [kind == "negative" for kind in prompt_types for _ in range(chunk)]
        if not any(options.get(key, True) for key in FUSION_KEYS):
            cuts = [True for _ in cuts]
        if any(cuts):
            kwargs["cut_rows"] = [cut for cut in cuts for _ in range(chunk)]
        if passing := options.get("stg_self_attn_blocks"):
            kwargs["pass_blocks"] = tuple(sorted(passing))
        if (window := options.get("context_window")) is not None and window.index_list[0] > 0:
            # A later window's audio begins with its first latent; an anchor is a latent of the video alone, before it.
            anchored = getattr(window, "causal_anchor_index", None) is not None
            kwargs["audio_start"] = geometry.audio_offset(int(anchored))
        rest = (c_concat, c_crossattn, control, options)
        ratio = self.shift_ratio
        if ratio == 1.0:
            return super()._apply_model(x, t, *rest, **kwargs)
        # `x` is as samplers carry it, `own` as the towers read it, from which core takes the video's sigma * velocity.
        size = math.prod(kwargs["latent_shapes"][0][1:])
        carry = carried(t, ratio).view(-1, 1, 1)
        own = torch.cat([x[..., :size], x[..., size:] / carry], dim=-1)
        denoised = super()._apply_model(own, t, *rest, **kwargs)
        audio = own[..., size:]
        audio = ratio * (audio - (audio - denoised[..., size:]) / carry)
        return torch.cat([denoised[..., :size], audio], dim=-1)

    def process_timestep(
        self,
        timestep: Tensor,
        x: Tensor,
        denoise_mask: Tensor | None = None,
        audio_denoise_mask: Tensor | None = None,
        reference_images: Sequence[Tensor] = (),
        reference_voices: Sequence[Tensor] = (),
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Return (video [B] or [B, F + images], audio [B] or [B, L + voices]) for the video's timestep [B].

        It is 0 for frames that the mask preserves, and the whole timestep for references, as in training.
        """
        voices = sum(voice.shape[2] for voice in reference_voices)
        ratio, of_audio = self.shift_ratio, timestep
        if ratio != 1.0:
            # In float64 where that exists: the towers tell apart timesteps that differ in the last bits of a float32.
            scale, exact = self.model_sampling.multiplier, timestep
            if timestep.device.type not in NO_FLOAT64:
                exact = timestep.double()
            of_audio = (scale * audio_sigma(exact / scale, ratio)).float()
        return _masked(timestep, denoise_mask, len(reference_images)), _masked(of_audio, audio_denoise_mask, voices)

    def scale_latent_inpaint(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, **kwargs: Any) -> Tensor:
        """Leave what a mask preserves clean, as in training, instead of adding noise to it again.

        `latent_image` has the audio as `process_latent_in` scales it; at `sigma` [B] samplers carry it otherwise.
        """
        ratio = self.shift_ratio
        if ratio == 1.0:
            return latent_image
        return self.latent_format.scale_audio(latent_image, carried(sigma, ratio).view(-1, 1, 1) / ratio)

    def map_context_window_to_modalities(
        self, primary_indices: Sequence[int], latent_shapes: Sequence[torch.Size], dim: int
    ) -> list[list[int]]:
        """Return, beside the video latents of a context window, the audio latents of the same time."""
        length = latent_shapes[1][dim]
        spans = map(geometry.latents_during_frame, primary_indices)
        audio = dict.fromkeys(i for span in spans for i in range(*span) if i < length)
        return [list(primary_indices), list(audio)]

    def resize_cond_for_context_window(
        self,
        cond_key: str,
        cond_value: comfy.conds.CONDRegular,
        window: Any,
        x_in: Tensor,
        device: torch.device,
        retain_index_list: Any = (),
    ) -> Any:
        """Crop the audio's mask to the audio's window, and never texts and references; core crops the video's mask."""
        if cond_key == "audio_denoise_mask":
            return cond_value._copy_with(window.get_window_for_modality(1).get_tensor(cond_value.cond, device, dim=2))
        whole = ("c_crossattn", "audio_context", references.IMAGES, references.VOICES)
        return cond_value if cond_key in whole else None

    def memory_required(self, input_shape: Sequence[int], cond_shapes: Mapping[str, Any] | None = None) -> float:
        """Return the bytes that a pass on a packed latent [B, 1, N] needs besides the weights, on each device."""
        config: OviConfig = self.diffusion_model.config
        batch, size = input_shape[0], comfy.model_management.dtype_size(self.get_dtype_inference())
        shapes = self.latent_format.shapes
        if shapes is None:  # outside a sampling run the parts are unknown: count everything as video
            _, p, q = config.patch_size
            patches = math.ceil(math.prod(input_shape[1:]) / (config.video_channels * p * q))
            return activation_bytes(config, batch, (patches, p, q), 0, size)
        whole = activation_bytes(config, batch, shapes[0][2:], shapes[1][2], size)
        # A context window is a part of the latent: [B, 1, fewer numbers].
        clip = whole * input_shape[-1] / sum(math.prod(shape[1:]) for shape in shapes)
        persons = references.tokens(cond_shapes or {}, config) * bytes_per_token(config, 1, size)
        return (clip + persons) / self.shared_by


class OviSupported(comfy.supported_models_base.BASE):
    """The config that ComfyUI expects of a model."""

    unet_extra_config: dict[str, Any] = {}
    sampling_settings = {"shift": SHIFT}
    latent_format = OviLatent
    supported_inference_dtypes = list(COMPUTE_DTYPES)
    memory_usage_factor = 1.0  # not used: Ovi.memory_required counts tokens

    def get_model(self, state_dict: Mapping[str, Tensor], prefix: str = "", device: torch.device | None = None) -> Ovi:
        """Return an Ovi without weights."""
        return Ovi(self, device=device)

    def set_inference_dtype(
        self, dtype: torch.dtype, manual_cast_dtype: torch.dtype | None, device: torch.device | None = None
    ) -> None:
        """Set the dtypes of the weights and of the computation. (ComfyUI passes `device` since 0.27.)"""
        self.unet_config["dtype"] = dtype
        self.manual_cast_dtype = manual_cast_dtype


def without_fusion(conds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return prompts, as ComfyUI samples them, for which neither tower attends to the other."""
    return [
        {**cond, "model_conds": cond["model_conds"] | {CUTS: PerPrompt(True)}, "uuid": uuid.uuid5(cond["uuid"], CUTS)}
        for cond in conds
    ]


def require_ovi(patcher: ModelPatcher, node: str) -> None:
    """Raise ValueError, naming the node by its title, for the MODEL of another loader."""
    if not isinstance(patcher.model, Ovi):
        raise ValueError(f"{node} got {type(patcher.model).__name__}, but needs the MODEL of 'Load Ovi Model'.")


def _split_context(context: Tensor | None, config: OviConfig) -> tuple[Tensor, Tensor]:
    """Split a conditioning [B, T, text_dim or 2 * text_dim] into the video tower's and the audio tower's text.

    The wider one holds both, side by side; the narrower one is read by both towers. Raises ValueError for another
    width, and for more tokens than Ovi reads.
    """
    width = 0 if context is None else context.shape[-1]
    if context is None or width not in (config.text_dim, 2 * config.text_dim):
        raise ValueError(
            f"The prompt is encoded {width} wide, but Ovi reads UMT5-XXL, {config.text_dim} wide; "
            "load umt5_xxl_fp16.safetensors or umt5_xxl_fp8_e4m3fn_scaled.safetensors with 'Load CLIP', type wan."
        )
    if context.shape[1] > config.text_len:
        raise ValueError(
            f"The prompt has {context.shape[1]} tokens, but Ovi reads at most {config.text_len}: encode it with 'Ovi "
            "Text Encode', which truncates a long one; and if 'Conditioning (Concat)' joined two, which are padded to "
            f"{config.text_len} tokens each, write both texts into one prompt."
        )
    return context[..., : config.text_dim], context[..., -config.text_dim :]


def _masked(timestep: Tensor, mask: Tensor | None, more: int) -> Tensor:
    """Return the timestep [B] of every latent under a mask, and of `more` after them that no mask covers."""
    if mask is None:
        return timestep
    return timestep[:, None] * nn.functional.pad(mask.flatten(1).float(), (0, more), value=1.0)
