"""Loading an Ovi model into a ModelPatcher, as ComfyUI's own loaders do."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.quant_ops
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .. import checkpoint, geometry, quantised
from ..config import OviConfig
from ..files import MappedFile, joined, naming, shards
from ..media import check_finite, is_finite
from ..model import OviModel
from . import gguf, timeline
from .apart import separate
from .files import SAFETENSORS_ENDINGS, read
from .guidance import guidance_of
from .latent import check_latent
from .model import Ovi, OviSupported

WRAPPER_KEY = "ovi"
STRETCH = 2**21  # numbers of a float32 file that are in memory at a time


def load(
    paths: Sequence[str], model_options: Mapping[str, Any] | None = None, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """Load an Ovi model from one file with both towers, or from two files with one each, in either order.

    A file may be the first of several shards, which are all read. `model_options` are those of ComfyUI's own loader
    ("dtype", "fp8_optimizations", "custom_operations", "load_device", "offload_device"). Raises ValueError where the
    files are not a complete, valid Ovi model.
    """
    options = dict(model_options or {})
    parts, mapped = zip(*map(_read, paths), strict=True)
    with naming(*map(Path, paths)):
        sd, _, config = checkpoint.assemble(map(joined, parts))
        formats = quantised.formats(sd)
        if strange := set(formats.values()) - comfy.quant_ops.QUANT_ALGOS.keys():
            raise ValueError(
                f"The file is quantised as {min(strange)}, which this version of ComfyUI does not know; update "
                "ComfyUI, or take a file of another format."
            )
        channels = config.video_channels, config.audio_channels
        if channels != (geometry.VIDEO_CHANNELS, geometry.AUDIO_CHANNELS):
            raise ValueError(
                f"The model reads latents of {channels[0]} video and {channels[1]} audio channels; Ovi's have "
                f"{geometry.VIDEO_CHANNELS} and {geometry.AUDIO_CHANNELS}."
            )

    ggml = next((gguf.pack(path) for path in paths if gguf.is_gguf(path)), None)
    if ggml and (options.get("dtype") or formats):
        raise ValueError(
            "The weights of a GGUF file keep their format: set 'weight_dtype' to default, and take the other tower "
            "from a GGUF file too, or from one that is not quantised."
        )

    supported = OviSupported({"ovi_config": config})
    supported.quant_config = comfy.utils.detect_layer_quantization(sd, "")
    load_device = options.get("load_device", comfy.model_management.get_torch_device())
    offload_device = options.get("offload_device", comfy.model_management.unet_offload_device())
    dtype, manual_cast = _dtypes(sd, supported, options.get("dtype"), load_device)
    supported.set_inference_dtype(dtype, manual_cast)
    supported.custom_operations = ggml.GGMLOps if ggml else options.get("custom_operations")
    if options.get("fp8_optimizations"):
        supported.optimizations["fp8"] = True

    model = supported.get_model(sd)
    dynamic = not (disable_dynamic or ggml)
    patcher_class = comfy.model_patcher.CoreModelPatcher if dynamic else comfy.model_patcher.ModelPatcher
    patcher = patcher_class(model, load_device=load_device, offload_device=offload_device)
    if not comfy.model_management.is_device_cpu(offload_device):
        model.to(offload_device)
    narrowed = _narrow(sd, config, dtype, list(chain(*mapped)))
    model.load_model_weights(gguf.packed(sd), "", assign=narrowed or patcher.is_dynamic())
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER_KEY, _around_sampling)
    patcher.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, WRAPPER_KEY, timeline.choose)
    patcher.cached_patcher_init = (load, (paths, options))
    return ggml.GGUFModelPatcher.clone(patcher) if ggml else patcher


def _read(path: str) -> tuple[list[tuple[dict[str, Tensor], dict[str, str]]], list[MappedFile]]:
    """Return the tensors and the metadata of a file, or of each shard whose first one it is; and what of it is mapped.

    That is every safetensors file in float32, which `_narrow` reads in stretches: ComfyUI's own reader cannot release a
    part of a file.
    """
    if gguf.is_gguf(path):
        return [gguf.read(path)], []
    parts, mapped = [], []
    for file in shards(Path(path)):
        tensors, metadata = read(file, checkpoint.WHERE)
        if file.suffix.lower() in SAFETENSORS_ENDINGS and _is_wide(tensors.values()):
            mapped.append(MappedFile(file))
            tensors = mapped[-1].tensors
        parts.append((tensors, metadata))
    return parts, mapped


def _is_wide(tensors: Collection[Tensor]) -> bool:
    """Whether more than half of a file is in float32 or float64; in others, norms and scales may be."""
    wide = sum(tensor.nbytes for tensor in tensors if tensor.dtype in (torch.float32, torch.float64))
    return 2 * wide > sum(tensor.nbytes for tensor in tensors)


def _narrow(sd: dict[str, Tensor], config: OviConfig, dtype: torch.dtype, mapped: Sequence[MappedFile]) -> bool:
    """Convert mapped files to the model's dtypes if those are smaller; return whether they are.

    They are read and released in stretches, since Ovi's largest tensor is of 0.7 GB in float32: of a file of 47 GB,
    memory holds the 23 GB of the result alone. Afterwards no tensor is on the disk any more.
    """
    if not mapped or dtype.itemsize >= torch.float32.itemsize:
        return False
    wanted = OviModel(config, device="meta", dtype=dtype).state_dict()
    for key, tensor in sd.items():
        wide = tensor.is_floating_point() and key in wanted and tensor.itemsize > wanted[key].itemsize
        sd[key] = torch.empty(tensor.shape, dtype=wanted[key].dtype if wide else tensor.dtype)
        for out, stretch in zip(sd[key].view(-1).split(STRETCH), tensor.reshape(-1).split(STRETCH), strict=True):
            out.copy_(stretch)
            for file in mapped:
                file.release()
    return True


def _dtypes(
    sd: Mapping[str, Tensor], supported: OviSupported, asked: torch.dtype | None, device: torch.device
) -> tuple[torch.dtype, torch.dtype | None]:
    """Choose the dtypes of the weights and (None: the same) of the computation, as ComfyUI's own loader does."""
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
    """Wrap a sampling run: set the shapes of the latent format, and refuse a wrong latent, wrong noise and NaN.

    Guidance functions of core's own nodes get video and audio apart. Prompts that change over time need windows.

    What the mask preserves is returned as it came: a run that ends above sigma 0 leaves noise there, which the next
    stage would preserve.
    """
    guider = executor.class_obj
    model: Ovi = guider.model_patcher.model
    separate(guider.model_options, guidance_of(guider.model_options))  # which are this run's
    model.latent_format.shapes = check_latent(latent_shapes)
    timeline.check(guider.conds, guider.model_options, latent_shapes[0][2], sigmas)
    check_finite(latent_image, "latent to sample")  # or the model would be blamed for it
    noise = _noise_for(noise, latent_image)
    samples: Tensor = executor(
        noise, latent_image, sampler, sigmas, denoise_mask, *args, latent_shapes=latent_shapes, **kwargs
    )
    if not is_finite(samples):
        raise ValueError(
            "Sampling gave NaN or infinity instead of a latent; look for a damaged file, a LoRA of another model, "
            "a strength or cfg far too high, or a forced float16 (Ovi needs bfloat16 or float32)."
        )
    if denoise_mask is None:
        return samples
    return torch.where(denoise_mask.to(samples.device) == 0, latent_image.to(samples), samples)


def _noise_for(noise: Tensor, latent: Tensor) -> Tensor:
    """Return the noise for a packed latent [B, 1, N].

    'KSampler (Advanced)' without noise makes zeros for the video alone (ComfyUI up to 0.30): zeros of the latent's
    shape are meant. Raises ValueError for any other noise of another shape.
    """
    if noise.shape[1:] == latent.shape[1:]:
        return noise
    if noise.any():
        raise ValueError(
            f"The sampler made {noise.numel()} numbers of noise, but video and audio together have {latent.numel()}: "
            "it takes the latent for a video alone; use 'KSampler', 'SamplerCustom' or 'SamplerCustomAdvanced'."
        )
    return torch.zeros_like(latent)
