"""Ovi as ComfyUI sees it: BaseModel, config, latent format, and loading into a ModelPatcher.

The only module of `ovi` that imports ComfyUI. In ComfyUI a joint latent is a nested tensor (video [B, 48, F, H, W],
audio [B, 20, L]); samplers see it packed, [B, 1, N]. Core gives the shapes of the parts to the model's conditioning,
but not to the latent format, which needs them to scale the video part alone: a wrapper around each sampling run tells
it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.quant_ops
import comfy.samplers
import comfy.supported_models_base
import comfy.utils
import comfyui_version
import torch
from comfy.ldm.flux.math import apply_rope1
from comfy.ldm.modules.attention import optimized_attention
from comfy.nested_tensor import NestedTensor
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor, nn

from . import checkpoint, geometry, guidance
from .config import OviConfig
from .memory import activation_bytes
from .model import Block, OviModel

try:
    from comfy import model_prefetch
except ImportError:  # ComfyUI before 0.24 fetches no weights ahead
    model_prefetch = None

WRAPPER_KEY = "ovi"
SKIP_KEY = "ovi_skip"  # transformer_options entry: a Skip
SHIFT = 5.0
COMFYUI = tuple(map(int, comfyui_version.__version__.split(".")[:2]))
COMPUTE_DTYPES = (torch.bfloat16, torch.float32)  # never float16: Ovi overflows it and the picture goes black


class OviLatent(comfy.latent_formats.Wan22):
    """Wan 2.2's latents, and beside them audio latents that are used as they are.

    `shapes` are those of the parts of the joint latent that is being sampled, or was last.
    """

    temporal_downscale_ratio = 4

    def __init__(self) -> None:
        super().__init__()
        if COMFYUI < (0, 30):
            self.taesd_decoder_name = None  # it was given the packed latent, which it cannot read
        self.shapes: list[torch.Size] | None = None
        self.latent_rgb_factors_reshape = self.preview_frame
        self._previews = 0

    def process_in(self, latent: Any) -> Any:
        """Normalise the video part."""
        return self._on_video(super().process_in, latent)

    def process_out(self, latent: Any) -> Any:
        """Undo the normalisation of the video part."""
        return self._on_video(super().process_out, latent)

    def preview_frame(self, latent: Tensor) -> Tensor:
        """A frame [B, 48, 1, H, W] of a video or packed latent, the next one each time, so that previews move."""
        video = latent if latent.ndim == 5 else self._unpack(latent)[0]
        index = self._previews % video.shape[2]
        self._previews += 1
        return video[:, :, index : index + 1]

    def video_size(self, packed: Tensor) -> int:
        """How many numbers of a packed latent [B, 1, N] are video."""
        return self._unpack(packed)[0][0].numel()

    def _on_video(self, change: Callable[[Tensor], Tensor], latent: Any) -> Any:
        if latent.is_nested:
            video, *others = latent.unbind()
            return NestedTensor([change(video), *others])
        if latent.ndim == 5:
            return change(latent)
        video, *others = self._unpack(latent)
        packed, _ = comfy.utils.pack_latents([change(video), *others])
        return packed

    def _unpack(self, packed: Tensor) -> list[Tensor]:
        if self.shapes is None or sum(math.prod(shape[1:]) for shape in self.shapes) != packed.shape[-1]:
            raise RuntimeError(
                f"A packed latent of shape {list(packed.shape)} came without the shapes of its parts; "
                "Ovi needs the MODEL of 'Load Ovi Model' with its sampling wrapper in place."
            )
        return comfy.utils.unpack_latents(packed, self.shapes)


class PromptType(comfy.conds.CONDConstant):
    """ "positive" or "negative"; batched conditions give the model a list, one entry for each chunk of the batch."""

    def can_concat(self, other: PromptType) -> bool:
        """Prompts of both types share a batch."""
        return True

    def concat(self, others: Sequence[PromptType]) -> list[str]:
        """The list that the model receives."""
        return [self.cond, *(other.cond for other in others)]


@dataclass(frozen=True)
class Span:
    """A part of the schedule: the steps whose sigma lies between two; by default all of it."""

    first: float = math.inf
    last: float = 0.0

    @classmethod
    def of(cls, percents: tuple[float, float], schedule: Any) -> Span:
        """Of a start and an end in 0 to 1 of the model's schedule, as in ComfyUI's own nodes.

        Raises ValueError where it ends before it starts.
        """
        start, end = percents
        if start > end:
            raise ValueError(f"The range from {start:g} to {end:g} ends before it starts; give the smaller one first.")
        return cls(schedule.percent_to_sigma(start) if start > 0 else math.inf, schedule.percent_to_sigma(end))

    def holds(self, sigmas: Tensor) -> bool:
        """Whether this step is in it; asks the device only where it is not the whole schedule."""
        return self == WHOLE or self.last <= sigmas[0].item() <= self.first


WHOLE = Span()


@dataclass(frozen=True)
class Skip:
    """Blocks that the negative pass skips in a part of the schedule."""

    blocks: tuple[int, ...]
    span: Span

    def at(self, sigmas: Tensor) -> tuple[int, ...]:
        """The blocks to skip at this step."""
        return self.blocks if self.span.holds(sigmas) else ()


class NativeOviModel(OviModel):
    """OviModel with ComfyUI's attention, rotation and prefetching, called as BaseModel calls a diffusion model."""

    def __init__(
        self,
        ovi_config: OviConfig,
        image_model: str,
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
        x: list[Tensor],
        timestep: Tensor | tuple[Tensor, Tensor],
        context: Tensor,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Tensor]:
        """Velocities of [video, audio], through the wrappers that nodes such as EasyCache add."""
        options = transformer_options or {}
        # EasyCache adds to its inputs in place; computing in float32, these are views of the sampler's own latent.
        x = [part.clone() for part in x]
        return WrapperExecutor.new_class_executor(
            self._forward, self, get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        ).execute(x, timestep, context, control, options, **kwargs)

    def _forward(
        self,
        x: list[Tensor],
        timestep: Tensor | tuple[Tensor, Tensor],
        context: Tensor,
        control: Any,
        transformer_options: Mapping[str, Any],
        *,
        audio_context: Tensor | None = None,
        skip_blocks: tuple[int, ...] = (),
        skip_rows: Sequence[bool] | None = None,
        audio_start: float = 0.0,
        **masks: Any,
    ) -> list[Tensor | None]:
        return super().forward(
            x,
            timestep,
            context,
            audio_context,
            skip_blocks=skip_blocks,
            skip_rows=skip_rows,
            audio_start=audio_start,
            transformer_options=transformer_options,
        )

    def block_pairs(self, device: torch.device, options: Mapping[str, Any]) -> Iterator[tuple[Block, Block]]:
        """The pairs of blocks, the weights of the next one on their way while one runs."""
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
    """The BaseModel: what goes into the towers besides the latents."""

    def __init__(self, model_config: OviSupported, device: torch.device | None = None) -> None:
        super().__init__(model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=NativeOviModel)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """Text of both towers, masks for each frame, the latents' shapes and the kind of prompt.

        A conditioning of width 2 * text_dim holds the video tower's text and the audio tower's, side by side. Texts are
        padded to text_len, as the model would, so that prompts of any length share a batch. Masks become one number for
        each frame, video [B, 1, F, 1, 1] and audio [B, 1, L].
        """
        out = super().extra_conds(**kwargs)
        config = self.model_config.unet_config["ovi_config"]
        out["c_crossattn"], out["audio_context"] = (
            comfy.conds.CONDRegular(text) for text in _texts(kwargs.get("cross_attn"), config)
        )
        shapes = kwargs["latent_shapes"]
        out["latent_shapes"] = comfy.conds.CONDConstant(shapes)
        out["prompt_types"] = PromptType(kwargs["prompt_type"])
        if (mask := kwargs.get("denoise_mask")) is not None:
            video, audio = comfy.utils.unpack_latents(mask, shapes)
            out["denoise_mask"] = comfy.conds.CONDRegular(video.mean((1, 3, 4), keepdim=True))
            out["audio_denoise_mask"] = comfy.conds.CONDRegular(audio.mean(1, keepdim=True))
        return out

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
        **kwargs: Any,
    ) -> Tensor:
        """Hand what changes during a run to the model as arguments.

        It cannot wait in transformer_options for the model to read: core's TorchCompileModel takes those for constants.
        """
        options = transformer_options or {}
        skip: Skip | None = options.get(SKIP_KEY)
        if skip is not None and "negative" in prompt_types:
            chunk = len(x) // len(prompt_types)
            kwargs["skip_blocks"] = skip.at(options["sigmas"])
            kwargs["skip_rows"] = [kind == "negative" for kind in prompt_types for _ in range(chunk)]
        if (window := options.get("context_window")) is not None and window.index_list[0] > 0:
            # A later window's sound begins with its first latent; an anchor is one of the video alone, before that.
            anchored = getattr(window, "causal_anchor_index", None) is not None
            kwargs["audio_start"] = geometry.audio_offset(int(anchored))
        return super()._apply_model(x, t, c_concat, c_crossattn, control, options, **kwargs)

    def process_timestep(
        self,
        timestep: Tensor,
        x: Tensor,
        denoise_mask: Tensor | None = None,
        audio_denoise_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """[B] → (video [B] or [B, F], audio [B] or [B, L]): a frame that the mask keeps has timestep 0."""
        return _masked(timestep, denoise_mask), _masked(timestep, audio_denoise_mask)

    def scale_latent_inpaint(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, **kwargs: Any) -> Tensor:
        """What a mask keeps stays clean, as in training, instead of being noised again."""
        return latent_image

    def map_context_window_to_modalities(
        self, primary_indices: Sequence[int], latent_shapes: Sequence[torch.Size], dim: int
    ) -> list[list[int]]:
        """The audio latents that sound during the video latents of a context window."""
        length = latent_shapes[1][dim]
        audio = dict.fromkeys(i for index in primary_indices for i in range(*geometry.audio_span(index)) if i < length)
        return [list(primary_indices), list(audio)]

    def resize_cond_for_context_window(
        self,
        cond_key: str,
        cond_value: Any,
        window: Any,
        x_in: Tensor,
        device: torch.device,
        retain_index_list: Any = (),
    ) -> Any:
        """Cut the audio's mask with the audio's window, and texts never; core cuts the video's mask."""
        if cond_key == "audio_denoise_mask":
            return cond_value._copy_with(window.get_window_for_modality(1).get_tensor(cond_value.cond, device, dim=2))
        return cond_value if cond_key in ("c_crossattn", "audio_context") else None

    def memory_required(self, input_shape: Sequence[int], cond_shapes: Mapping[str, Any] | None = None) -> float:
        """Bytes that a forward pass needs besides the weights, from its true number of tokens."""
        shapes = self.latent_format.shapes
        if shapes is None:
            raise RuntimeError("Ovi's memory was asked for outside a sampling run, where no latent is known.")
        size = comfy.model_management.dtype_size(self.get_dtype_inference())
        whole = activation_bytes(self.diffusion_model.config, input_shape[0], shapes[0][2:], shapes[1][2], size)
        # A context window is a part of the latent: [B, 1, fewer numbers].
        return whole * input_shape[-1] / sum(math.prod(shape[1:]) for shape in shapes)


class OviSupported(comfy.supported_models_base.BASE):
    """What ComfyUI asks of a model's config."""

    unet_extra_config: dict[str, Any] = {}
    sampling_settings = {"shift": SHIFT}
    latent_format = OviLatent
    supported_inference_dtypes = list(COMPUTE_DTYPES)
    memory_usage_factor = 1.0  # not used: Ovi.memory_required counts tokens

    def get_model(self, state_dict: Mapping[str, Tensor], prefix: str = "", device: torch.device | None = None) -> Ovi:
        """An Ovi without weights."""
        return Ovi(self, device=device)

    def set_inference_dtype(
        self, dtype: torch.dtype, manual_cast_dtype: torch.dtype | None, device: torch.device | None = None
    ) -> None:
        """Dtypes of the weights and of the computation. (`device` came to ComfyUI after 0.24.)"""
        self.unet_config["dtype"] = dtype
        self.manual_cast_dtype = manual_cast_dtype


def load(
    paths: Sequence[str], model_options: Mapping[str, Any] | None = None, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """Load an Ovi model from one file with both towers, or from two with one each, in either order.

    `model_options` are those of ComfyUI's own loader ("dtype", "fp8_optimizations", "custom_operations", "load_device",
    "offload_device"). Raises ValueError where the files are not a complete, sound Ovi model.
    """
    options = dict(model_options or {})
    sd, _, config = checkpoint.assemble(_read(path) for path in paths)
    if strange := set(checkpoint.formats(sd).values()) - comfy.quant_ops.QUANT_ALGOS.keys():
        raise ValueError(
            f"The file is quantised as {min(strange)}, which this version of ComfyUI does not know; update ComfyUI, or "
            "take a file of another format."
        )

    supported = OviSupported({"image_model": "ovi", "ovi_config": config})
    supported.quant_config = comfy.utils.detect_layer_quantization(sd, "")
    load_device = options.get("load_device", comfy.model_management.get_torch_device())
    offload_device = options.get("offload_device", comfy.model_management.unet_offload_device())
    supported.set_inference_dtype(*_dtypes(sd, supported, options.get("dtype"), load_device))
    supported.custom_operations = options.get("custom_operations")
    if options.get("fp8_optimizations"):
        supported.optimizations["fp8"] = True

    model = supported.get_model(sd)
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(model, load_device=load_device, offload_device=offload_device)
    if not comfy.model_management.is_device_cpu(offload_device):
        model.to(offload_device)
    model.load_model_weights(sd, "", assign=patcher.is_dynamic())
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER_KEY, _around_sampling)
    patcher.cached_patcher_init = (load, (paths, options))
    return patcher


def _read(path: str) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """A file's tensors and metadata."""
    if path.lower().endswith(".gguf"):
        raise ValueError(
            f"{path} is a GGUF file, which only the pack ComfyUI-GGUF reads, and its loader knows no Ovi; take a "
            "safetensors file instead: fp8 is as small as Q8, nvfp4 as Q4."
        )
    return comfy.utils.load_torch_file(path, return_metadata=True)


def guide(
    model: comfy.model_patcher.ModelPatcher,
    audio_cfg: float,
    skip_blocks: str,
    skip: tuple[float, float] = (0.0, 1.0),
    video: tuple[float, float] = (0.0, 1.0),
    audio: tuple[float, float] = (0.0, 1.0),
) -> comfy.model_patcher.ModelPatcher:
    """A clone of an Ovi MODEL whose sound has a guidance scale of its own and whose negative pass skips blocks.

    The video keeps what the sampler or guider makes of it. `skip`, `video` and `audio` are the parts of the schedule in
    which blocks are skipped and each modality is guided; where neither is, there is no negative pass. Raises ValueError
    for a model that is not Ovi or is guided already, a block that cannot be skipped and a part that ends before it
    starts.
    """
    if not isinstance(model.model, Ovi):
        raise ValueError(f"Ovi Guidance got {type(model.model).__name__}, but needs the MODEL of 'Load Ovi Model'.")
    if SKIP_KEY in model.model_options["transformer_options"]:
        raise ValueError("This MODEL has been through an Ovi Guidance already; connect the MODEL from before that one.")
    blocks = guidance.parse_blocks(skip_blocks, model.model.diffusion_model.config.num_layers)
    schedule = model.get_model_object("model_sampling")
    skip_span, video_span, audio_span = (Span.of(percents, schedule) for percents in (skip, video, audio))
    model = model.clone()
    model.model_options["transformer_options"][SKIP_KEY] = Skip(blocks, skip_span)
    predict = model.model_options.get("sampler_calc_cond_batch_function", _predict)

    def guided_at(sigma: Tensor) -> tuple[bool, bool]:
        return video_span.holds(sigma), audio_cfg != 1.0 and audio_span.holds(sigma)

    def leave_out_negative(args: Mapping[str, Any]) -> list[Tensor]:
        """Where nothing is guided, the positive prediction stands for both: any scale then gives it back exactly."""
        if any(guided_at(args["sigma"])):
            return predict(args)
        positive, *_ = predict({**args, "conds": [args["conds"][0], None]})
        return [positive, positive]

    def guide_both(args: Mapping[str, Any]) -> Tensor:
        denoised: Tensor = args["denoised"]
        guided = guided_at(args["sigma"])
        if args["uncond"] is None:
            if guided[1]:
                raise ValueError(
                    f"Ovi Guidance has an audio cfg of {audio_cfg}, but the guider has no negative prompt; "
                    "use a sampler or guider with a negative input, or an audio cfg of 1."
                )
            return denoised
        size = args["model"].latent_format.video_size(denoised)
        return guidance.guide_parts(denoised, args["cond_denoised"], args["uncond_denoised"], size, audio_cfg, guided)

    if (video_span, audio_span) != (WHOLE, WHOLE):
        model.model_options["sampler_calc_cond_batch_function"] = leave_out_negative
    # With a video cfg of 1 core would leave the negative pass out, which the sound needs.
    model.set_model_sampler_post_cfg_function(guide_both, disable_cfg1_optimization=audio_cfg != 1.0)
    # What nodes before this one do to the guided result comes after: the sound is guided anew here.
    functions = model.model_options["sampler_post_cfg_function"]
    functions.insert(0, functions.pop())
    return model


def _predict(args: Mapping[str, Any]) -> list[Tensor]:
    """The predictions that ComfyUI's sampling makes when no node replaces them."""
    return comfy.samplers.calc_cond_batch(
        args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
    )


def _dtypes(
    sd: Mapping[str, Tensor], supported: OviSupported, asked: torch.dtype | None, device: torch.device
) -> tuple[torch.dtype, torch.dtype | None]:
    """The dtypes of the weights and (None: the same) of the computation, chosen as ComfyUI's own loader does."""
    management = comfy.model_management
    weights = asked or management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(sd),
        supported_dtypes=supported.supported_inference_dtypes,
        weight_dtype=None if supported.quant_config else comfy.utils.weight_dtype(sd),
    )
    if weights == torch.float16:  # --fp16-unet: stored so, but never computed in
        return weights, torch.bfloat16 if management.should_use_bf16(device) else torch.float32
    stored = None if supported.quant_config else weights
    return weights, management.unet_manual_cast(stored, device, supported.supported_inference_dtypes)


def _around_sampling(
    executor: Any,
    noise: Tensor,
    latent_image: Tensor,
    sampler: Any,
    sigmas: Tensor,
    denoise_mask: Tensor | None = None,
    *args: Any,
    latent_shapes: Sequence[torch.Size],
    **kwargs: Any,
) -> Tensor:
    """Around a whole sampling run: tell the latent format the shapes, refuse a wrong latent and a result with NaN.

    What the mask keeps is given back as it came: a run that ends above sigma 0 leaves its noise there, which the next
    stage would keep.
    """
    model: Ovi = executor.class_obj.model_patcher.model
    model.latent_format.shapes = check_latent(latent_shapes)
    samples: Tensor = executor(
        noise, latent_image, sampler, sigmas, denoise_mask, *args, latent_shapes=latent_shapes, **kwargs
    )
    if not torch.isfinite(samples).all():
        raise ValueError(
            "Sampling gave NaN or infinity instead of a latent; look for a damaged file, a LoRA of another model, "
            "a strength or cfg far too high, or a forced float16 (Ovi needs bfloat16 or float32)."
        )
    if denoise_mask is None:
        return samples
    return torch.where(denoise_mask.to(samples.device) == 0, latent_image.to(samples), samples)


def check_latent(shapes: Sequence[torch.Size]) -> Sequence[torch.Size]:
    """Refuse what is not a joint latent of video [B, 48, F, H, W] and audio [B, 20, L]; else return its shapes."""
    channels = (geometry.VIDEO_CHANNELS, geometry.AUDIO_CHANNELS)
    if [len(shape) for shape in shapes] != [5, 3] or tuple(shape[1] for shape in shapes) != channels:
        raise ValueError(
            f"Ovi needs a joint latent of video [B, {channels[0]}, F, H, W] and audio [B, {channels[1]}, L], but got "
            f"{' and '.join(str(list(shape)) for shape in shapes)}; use 'Empty Ovi Latent' or 'Ovi Image to Video'."
        )
    return shapes


def _texts(context: Tensor | None, config: OviConfig) -> tuple[Tensor, Tensor]:
    """A conditioning [B, T, text_dim or 2 * text_dim] → video and audio texts, [B, text_len, text_dim] each."""
    width = 0 if context is None else context.shape[-1]
    if context is None or width not in (config.text_dim, 2 * config.text_dim):
        raise ValueError(
            f"The prompt is encoded {width} wide, but Ovi reads UMT5-XXL, {config.text_dim} wide; "
            "load umt5_xxl_fp16.safetensors or umt5_xxl_fp8_e4m3fn_scaled.safetensors with 'Load CLIP', type wan."
        )
    missing = config.text_len - context.shape[1]
    if missing < 0:
        raise ValueError(
            f"The prompt has {context.shape[1]} tokens, but Ovi reads at most {config.text_len}; "
            "shorten it, or use 'Ovi Text Encode', which cuts it there as published and says so."
        )
    context = nn.functional.pad(context, (0, 0, 0, missing))
    return (
        (context, context)
        if width == config.text_dim
        else (context[..., : config.text_dim], context[..., config.text_dim :])
    )


def _masked(timestep: Tensor, mask: Tensor | None) -> Tensor:
    return timestep if mask is None else timestep[:, None] * mask.flatten(1).float()


def require_video_vae(vae: Any) -> None:
    """Refuse a VAE whose latents are not Wan 2.2's."""
    if (vae.latent_dim, vae.latent_channels) != (3, geometry.VIDEO_CHANNELS):
        raise ValueError(
            f"The video VAE given is {_describe_vae(vae)}, but Ovi needs Wan 2.2's of {geometry.VIDEO_CHANNELS} "
            "channels: "
            "load wan2.2_vae.safetensors (Comfy-Org/Wan_2.2_ComfyUI_Repackaged) with 'Load VAE'."
        )


def require_audio_vae(vae: Any) -> None:
    """Refuse a VAE whose latents are not MMAudio's at 16 kHz."""
    if (vae.latent_dim, vae.latent_channels) != (1, geometry.AUDIO_CHANNELS):
        raise ValueError(
            f"The audio VAE given is {_describe_vae(vae)}, but Ovi needs MMAudio's 16 kHz VAE with its vocoder: "
            "load v1-16.pth and best_netG.pt (hkchengrex/MMAudio) with 'Load Ovi Audio VAE'."
        )


def _describe_vae(vae: Any) -> str:
    kind = {1: "an audio VAE", 2: "an image VAE", 3: "a video VAE"}.get(vae.latent_dim, "a VAE")
    wan21 = " (such as Wan 2.1's)" if (vae.latent_dim, vae.latent_channels) == (3, 16) else ""
    return f"{kind} of {vae.latent_channels} channels{wan21}"


def latent_parts(latent: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Video [B, 48, F, H, W] and audio [B, 20, L] of a LATENT; refuses what is not a joint latent of Ovi."""
    samples = latent["samples"]
    parts = samples.unbind() if samples.is_nested else [samples]
    check_latent([part.shape for part in parts])
    video, audio = parts
    return video, audio
