"""Every name of ComfyUI that the pack relies on beyond its public node API (`comfy_api.latest`), and why.

`NAMES` are what the pack calls and reads, `HOOKS` what it defines for ComfyUI to call and read, `KEYS` the entries of
dicts that the two hand each other. `require` looks the first two up when the pack is loaded; a test does on every
version of ComfyUI that the pack is tested on, and finds no other name in the source of `ovi/native` and `nodes`. What
ComfyUI-GGUF's module of nodes has to offer is in `gguf`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import logging
from collections.abc import Iterable
from types import ModuleType
from typing import Any, NamedTuple

from ..version import numbers


class Name(NamedTuple):
    """A name of ComfyUI, what for, and how the pack calls it: the least that its parameters have to accept.

    A call is written as a signature: parameters before `*` are passed by position, those after it by their names. A
    name that is newer than the oldest ComfyUI that the pack supports has the version that brought it: before, the pack
    does without.
    """

    path: str
    why: str
    call: str = ""
    since: str = ""


NAMES = (
    # The version, the folders and the nodes
    Name("comfyui_version.__version__", "what differs between versions"),
    Name("folder_paths.folder_names_and_paths", "whether GGUF files have a folder"),
    Name("folder_paths.get_filename_list", "the files to choose from", "(folder)"),
    Name("folder_paths.get_full_path_or_raise", "the file of a name", "(folder, name)"),
    Name("nodes.NODE_CLASS_MAPPINGS", "ComfyUI-GGUF's loader, and the inputs that a node cannot do without"),
    Name("server.PromptServer", "notes on a node while a prompt runs, and replacements for the nodes of other packs"),
    Name("server.PromptServer.instance", "whether a server runs"),
    Name("server.PromptServer.client_id", "the page that queued the prompt"),
    Name("server.PromptServer.send_progress_text", "notes on a node", "(text, node_id, sid)"),
    Name("comfy_execution.validation.validate_node_input", "sockets of nodes that check their inputs", "(got, needed)"),
    Name("comfy_execution.progress.get_progress_state", "the node that a note appears on", "()"),
    Name("comfy_execution.progress.ProgressRegistry.dynprompt", "the node that a note appears on"),
    Name("comfy_execution.graph.DynamicPrompt.get_display_node_id", "the node that a note appears on", "(node_id)"),
    Name("comfy_execution.graph.DynamicPrompt.get_node", "the inputs of a storyboard, and titles", "(node_id)"),
    # Storyboards
    Name("comfy_execution.graph_utils.GraphBuilder", "the nodes of the shots", "()"),
    Name("comfy_execution.graph_utils.GraphBuilder.node", "a node of a shot", "(class_type, *, id, clip)"),
    Name("comfy_execution.graph_utils.GraphBuilder.finalize", "the nodes of the shots", "()"),
    Name("comfy_execution.graph_utils.Node", "a node of a shot"),
    Name("comfy_execution.graph_utils.Node.out", "an output of a node of a shot", "(index)"),
    Name("folder_paths.get_output_directory", "shots that are saved", "()"),
    Name("folder_paths.get_temp_directory", "shots that are only shown", "()"),
    Name("folder_paths.get_save_image_path", "the file of a shot", "(prefix, folder, width, height)"),
    Name("comfy.cli_args.args", "whether files may have the graph in them"),
    Name("comfy.cli_args.args.disable_metadata", "whether files may have the graph in them"),
    # Clips for training
    Name("comfy.utils.ProgressBar", "the progress of clips that are read and encoded", "(total)"),
    Name("comfy.utils.ProgressBar.update", "the progress of clips that are read and encoded", "(value)"),
    Name("comfy.model_management.throw_exception_if_processing_interrupted", "cancelling between two clips", "()"),
    # Conditioning
    Name("node_helpers.conditioning_set_values", "persons and the style of a prompt", "(prompt, values, *, append)"),
    Name("comfy.conds.CONDConstant", "what a model gets as it is", "(value)"),
    Name("comfy.conds.CONDConstant.cond", "the type of a prompt"),
    Name("comfy.conds.CONDList", "the references of a prompt", "(tensors)"),
    Name("comfy.conds.CONDList.cond", "the references of a prompt"),
    Name("comfy.conds.CONDList.size", "the memory of references", "()"),
    Name("comfy.conds.CONDRegular", "texts and masks", "(tensor)"),
    Name("comfy.conds.CONDRegular.cond", "the mask of a context window"),
    Name("comfy.conds.CONDRegular._copy_with", "the mask of a context window", "(tensor)"),
    Name("comfy.sd.CLIP", "the text encoder"),
    Name("comfy.sd.CLIP.tokenize", "a text without weights", "(text, *, disable_weights)"),
    Name("comfy.sd.CLIP.encode_from_tokens_scheduled", "the conditioning of a text", "(tokens)"),
    # Latents
    Name("comfy.nested_tensor.NestedTensor", "a joint latent", "(tensors)"),
    Name("comfy.nested_tensor.NestedTensor.is_nested", "whether a latent is a joint one"),
    Name("comfy.nested_tensor.NestedTensor.unbind", "the parts of a joint latent", "()"),
    Name("comfy.utils.pack_latents", "joint latents as samplers see them", "(tensors)"),
    Name("comfy.utils.unpack_latents", "the parts of a packed latent", "(packed, shapes)"),
    Name("comfy.latent_formats.Wan22", "the statistics of video latents", "()"),
    Name("comfy.model_management.intermediate_device", "where new latents are", "()"),
    # The model
    Name("comfy.model_base.BaseModel", "what ComfyUI samples", "(config, type, *, device, unet_model)"),
    Name("comfy.model_base.BaseModel.diffusion_model", "the two towers"),
    Name("comfy.model_base.BaseModel.latent_format", "the shapes of the latent that is sampled"),
    Name("comfy.model_base.BaseModel.model_config", "the sizes of the towers"),
    Name("comfy.model_base.BaseModel.model_sampling", "the video's shift, beside that of the audio"),
    Name("comfy.model_sampling.ModelSamplingDiscreteFlow", "whether a MODEL's sampling has a shift"),
    Name("comfy.model_sampling.ModelSamplingDiscreteFlow.shift", "the video's shift, beside that of the audio"),
    Name("comfy.model_sampling.ModelSamplingDiscreteFlow.multiplier", "the audio's timesteps"),
    Name("comfy.model_base.BaseModel.get_dtype_inference", "the dtype to embed texts in", "()"),
    Name("comfy.model_base.BaseModel.process_latent_in", "faces as the towers read them", "(latent)"),
    Name("comfy.model_base.BaseModel.load_model_weights", "the weights of a file", "(sd, prefix, *, assign)"),
    Name("comfy.model_base.ModelType", "flow matching"),
    Name("comfy.model_base.ModelType.FLOW", "flow matching"),
    Name("comfy.supported_models_base.BASE", "the config of a model", "(unet_config)"),
    Name("comfy.supported_models_base.BASE.unet_config", "the sizes of the towers"),
    Name("comfy.supported_models_base.BASE.quant_config", "files that are quantised"),
    Name("comfy.supported_models_base.BASE.optimizations", "the weight dtype fp8 with fast matrices"),
    Name("comfy.supported_models_base.BASE.custom_operations", "the layers of GGUF files"),
    Name("comfy.ldm.modules.attention.optimized_attention", "attention", "(q, k, v, heads, *, transformer_options)"),
    Name("comfy.ldm.flux.math.apply_rope1", "the rotation of positions", "(x, table)"),
    Name("comfy.model_prefetch", "fetching weights ahead", since="0.24"),
    Name("comfy.model_prefetch.make_prefetch_queue", "fetching weights ahead", "(blocks, device, options)", "0.24"),
    Name("comfy.model_prefetch.prefetch_queue_pop", "fetching weights ahead", "(queue, device, block)", "0.24"),
    Name("comfy.context_windows.IndexListContextWindow.index_list", "the frames of a context window"),
    Name(
        "comfy.context_windows.IndexListContextWindow.causal_anchor_index",
        "a frame of a window that lies before it",
        since="0.24",
    ),
    Name(
        "comfy.context_windows.IndexListContextWindow.get_window_for_modality",
        "the audio of a context window",
        "(number)",
        "0.27",
    ),
    Name("comfy.context_windows.IndexListContextWindow.get_tensor", "the mask of a window", "(mask, device, *, dim)"),
    Name("comfy.context_windows.IndexListContextHandler", "which windows there are, for prompts that change over time"),
    Name("comfy.context_windows.IndexListContextHandler.dim", "the axis of time"),
    Name("comfy.context_windows.IndexListContextHandler.context_length", "whether a clip is sampled in windows"),
    Name(
        "comfy.context_windows.IndexListContextHandler.set_step", "the windows of the first step", "(sigmas, options)"
    ),
    Name(
        "comfy.context_windows.IndexListContextHandler.get_context_windows",
        "the windows of the first step",
        "(model, sizes, options)",
    ),
    # Loading
    Name("comfy.utils.load_torch_file", "the tensors of a file", "(path, *, safe_load, return_metadata)"),
    Name("comfy.utils.detect_layer_quantization", "files that are quantised", "(sd, prefix)"),
    Name("comfy.utils.calculate_parameters", "the dtype of the weights", "(sd)"),
    Name("comfy.utils.weight_dtype", "the dtype of the weights", "(sd)"),
    Name("comfy.quant_ops.QUANT_ALGOS", "the formats that ComfyUI knows"),
    Name("comfy.model_management.get_torch_device", "the device that computes", "()"),
    Name("comfy.model_management.unet_offload_device", "the device that holds weights", "()"),
    Name("comfy.model_management.is_device_cpu", "whether weights wait elsewhere", "(device)"),
    Name(
        "comfy.model_management.unet_dtype",
        "the dtype of the weights",
        "(*, model_params, supported_dtypes, weight_dtype)",
    ),
    Name("comfy.model_management.unet_manual_cast", "the dtype to compute in", "(weights, device, supported)"),
    Name("comfy.model_management.should_use_bf16", "the dtype to compute in", "(device)"),
    Name("comfy.model_management.in_training", "whether texts are embedded once for a run"),
    Name("comfy.model_management.dtype_size", "the memory of a pass", "(dtype)"),
    Name("comfy.model_patcher.ModelPatcher", "a MODEL", "(model, *, load_device, offload_device)"),
    Name(
        "comfy.model_patcher.CoreModelPatcher", "a MODEL with dynamic VRAM", "(model, *, load_device, offload_device)"
    ),
    Name("comfy.model_patcher.ModelPatcher.model", "whether a MODEL is Ovi's"),
    Name("comfy.model_patcher.ModelPatcher.model_options", "guidance"),
    Name("comfy.model_patcher.ModelPatcher.clone", "nodes that change a MODEL", "()"),
    Name("comfy.model_patcher.ModelPatcher.add_patches", "LoRAs", "(patches, strength)"),
    Name("comfy.model_patcher.ModelPatcher.is_dynamic", "what a LoRA can change", "()"),
    Name("comfy.model_patcher.ModelPatcher.get_model_object", "the schedule of a MODEL", "(name)"),
    Name("comfy.model_patcher.ModelPatcher.add_object_patch", "the audio's shift", "(name, value)"),
    Name(
        "comfy.model_patcher.ModelPatcher.set_model_sampler_post_cfg_function",
        "the audio's own scale",
        "(function, *, disable_cfg1_optimization)",
    ),
    Name("comfy.model_patcher.ModelPatcher.add_wrapper_with_key", "a run's shapes and checks", "(type, key, wrapper)"),
    Name("comfy.model_patcher.ModelPatcher.cached_patcher_init", "loading again for another device"),
    # Sampling
    Name("comfy.patcher_extension.WrapperExecutor", "wrappers of other nodes"),
    Name("comfy.patcher_extension.WrapperExecutor.class_obj", "the guider of a sampling run"),
    Name(
        "comfy.patcher_extension.WrapperExecutor.new_class_executor",
        "wrappers of other nodes",
        "(forward, model, wrappers)",
    ),
    Name("comfy.patcher_extension.WrapperExecutor.execute", "wrappers of other nodes", "(x, timestep, context)"),
    Name("comfy.patcher_extension.WrappersMP", "the kinds of wrappers"),
    Name("comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL", "wrappers of other nodes, such as EasyCache's"),
    Name("comfy.patcher_extension.WrappersMP.OUTER_SAMPLE", "a run's shapes and checks"),
    Name("comfy.patcher_extension.WrappersMP.CALC_COND_BATCH", "prompts that change over time, several GPUs"),
    Name("comfy.patcher_extension.get_all_wrappers", "wrappers of other nodes", "(type, options)"),
    Name("comfy.samplers.CFGGuider.model_patcher", "the MODEL of a sampling run"),
    Name("comfy.samplers.CFGGuider.conds", "prompts that change over time"),
    Name("comfy.samplers.CFGGuider.model_options", "guidance of core's other nodes, video and audio apart"),
    Name("comfy.samplers.KSAMPLER", "Ovi UniPC as a SAMPLER", "(function)"),
    Name("comfy.samplers.calc_cond_batch", "the predictions of a step", "(model, conds, x, sigma, options)"),
    # Several GPUs
    Name("comfy.multigpu", "copies of a MODEL for other devices", since="0.24"),
    Name(
        "comfy.multigpu.create_multigpu_deepclones",
        "copies of a MODEL for other devices",
        "(model, gpus, *, reuse_loaded)",
        "0.24",
    ),
    Name("comfy.multigpu.MultiGPUThreadPool", "a thread for each device", since="0.24"),
    Name(
        "comfy.multigpu.MultiGPUThreadPool.submit", "a thread for each device", "(device, function, argument)", "0.24"
    ),
    Name("comfy.multigpu.MultiGPUThreadPool.get_result", "a thread for each device", "(device)", "0.24"),
    Name("comfy.model_management.get_all_torch_devices", "the GPUs that are there", "()", "0.24"),
    Name("comfy.model_management.loaded_models", "copies that are loaded already", "()"),
    Name("comfy.model_patcher.ModelPatcher.get_additional_models_with_key", "the copies of a MODEL", "(key)"),
    Name("comfy.model_patcher.ModelPatcher.wrappers", "whether a MODEL is shared out already"),
    Name("comfy.model_patcher.ModelPatcher.current_hooks", "LoRAs that change during a run"),
    Name("comfy.patcher_extension.WrappersMP.APPLY_MODEL", "whether a MODEL is compiled"),
    Name(
        "comfy.patcher_extension.get_wrappers_with_key",
        "whether a MODEL is compiled",
        "(type, key, options, *, is_model_options)",
    ),
    Name("comfy.patcher_extension.copy_nested_dicts", "options for each device", "(options)"),
    Name("comfy.samplers.cast_transformer_options", "patches on each device", "(options, *, device)", "0.24"),
    # VAEs
    Name("comfy.sd.VAE", "the audio VAE of two files", "(*, sd, dtype)"),
    Name("comfy.sd.VAE.patcher", "loading again for another device"),
    Name("comfy.sd.VAE.throw_exception_if_invalid", "a file that is no VAE", "()"),
    Name("comfy.sd.VAE.latent_dim", "whether a VAE is the one needed"),
    Name("comfy.sd.VAE.latent_channels", "whether a VAE is the one needed"),
    Name("comfy.sd.VAE.audio_sample_rate", "the rate of audio"),
    Name("comfy.sd.VAE.spacial_compression_decode", "the size of tiles", "()"),
    Name("comfy.sd.VAE.encode", "frames and audio to latents", "(pixels)"),
    Name("comfy.ldm.mmaudio.vae.autoencoder.AudioAutoencoder", "whether a VAE can encode a voice at 16 kHz"),
    Name("comfy.ldm.mmaudio.vae.autoencoder.AudioAutoencoder.encode_audio", "a voice at 16 kHz", "(wave)"),
    Name("comfy.sd.VAE.first_stage_model", "a voice at 16 kHz"),
    Name("comfy.sd.VAE.memory_used_encode", "the memory of a voice"),
    Name("comfy.sd.VAE.vae_dtype", "a voice at 16 kHz"),
    Name("comfy.sd.VAE.device", "where a voice is encoded"),
    Name("comfy.sd.VAE.output_device", "where a voice is kept"),
    Name("comfy.model_management.load_models_gpu", "room for a voice", "(patchers, *, memory_required)"),
    Name("comfy.sd.VAE.decode", "latents to frames and audio", "(latent)"),
    Name("comfy.sd.VAE.decode_tiled", "frames in tiles", "(latent, *, tile_x, tile_y, overlap, tile_t)"),
    # LoRAs
    Name("comfy.lora.load_lora", "the patches of a file", "(sd, weights, log_missing)"),
    Name("comfy.lora.calculate_weight", "whether a patch fits a weight", "(patches, weight, key)"),
    Name("comfy.weight_adapter.WeightAdapterBase", "a patch of a LoRA"),
    Name("comfy.weight_adapter.LoRAAdapter", "the size of a LoRA's patch", "(loaded_keys, weights)"),
    Name("comfy.weight_adapter.LoRAAdapter.loaded_keys", "a patch of a LoRA"),
    Name("comfy.weight_adapter.LoRAAdapter.weights", "the tensors of a LoRA's patch"),
    Name("comfy.weight_adapter.LoHaAdapter", "the size of a LoHa's patch", "(loaded_keys, weights)"),
    Name("comfy.weight_adapter.LoKrAdapter", "the size of a LoKr's patch", "(loaded_keys, weights)"),
    Name("comfy.weight_adapter.GLoRAAdapter", "the size of a GLoRA's patch", "(loaded_keys, weights)"),
    Name("comfy.weight_adapter.OFTAdapter", "the size of an OFT's patch", "(loaded_keys, weights)"),
)

HOOKS = (
    Name("comfy.conds.CONDConstant.can_concat", "both prompts in one pass that skips blocks for one of them"),
    Name("comfy.conds.CONDConstant.concat", "both prompts in one pass that skips blocks for one of them"),
    Name("comfy.latent_formats.Wan22.process_in", "normalising the video alone"),
    Name("comfy.latent_formats.Wan22.process_out", "normalising the video alone"),
    Name("comfy.latent_formats.Wan22.latent_rgb_factors_reshape", "previews that move"),
    Name("comfy.latent_formats.Wan22.taesd_decoder_name", "previews by a small decoder"),
    Name("comfy.latent_formats.Wan22.temporal_downscale_ratio", "the frames of a latent", since="0.24"),
    Name("comfy.model_base.BaseModel.extra_conds", "texts and masks for both towers"),
    Name("comfy.model_base.BaseModel.extra_conds_shapes", "the memory of references"),
    Name("comfy.model_base.BaseModel._apply_model", "skipped blocks and context windows"),
    Name("comfy.model_base.BaseModel.process_timestep", "timestep 0 for what a mask preserves"),
    Name("comfy.model_base.BaseModel.process_latent_in", "the audio, which samplers carry scaled"),
    Name("comfy.model_base.BaseModel.process_latent_out", "the audio, which samplers carry scaled"),
    Name("comfy.model_base.BaseModel.scale_latent_inpaint", "what a mask preserves stays clean"),
    Name("comfy.model_base.BaseModel.memory_required", "the memory of a pass"),
    Name("comfy.model_base.BaseModel.resize_cond_for_context_window", "masks of context windows", since="0.20"),
    Name("comfy.model_base.LTXAV.map_context_window_to_modalities", "audio in context windows", since="0.27"),
    Name("comfy.supported_models_base.BASE.unet_extra_config", "loading without guesses about the towers"),
    Name("comfy.supported_models_base.BASE.sampling_settings", "the shift of the schedule"),
    Name("comfy.supported_models_base.BASE.latent_format", "joint latents"),
    Name("comfy.supported_models_base.BASE.supported_inference_dtypes", "never computing in float16"),
    Name("comfy.supported_models_base.BASE.memory_usage_factor", "the memory of a pass"),
    Name("comfy.supported_models_base.BASE.manual_cast_dtype", "the dtype to compute in"),
    Name("comfy.supported_models_base.BASE.get_model", "loading"),
    Name("comfy.supported_models_base.BASE.set_inference_dtype", "the dtype of the weights"),
)

SINCE = {  # keys that are newer than the oldest ComfyUI
    "multigpu_clones": "0.24",
    "multigpu_thread_pool": "0.24",
    "stg_self_attn_blocks": "0.33",
}
KEYS = {  # by the module of ComfyUI that reads or writes them
    "comfy.samplers": {
        "conds": "what a step predicts",
        "input": "the latent of a step",
        "sigma": "the step, for guidance",
        "sigmas": "the step, for skipped blocks",
        "model": "the model of a step",
        "model_options": "what nodes have changed",
        "context_handler": "whether there are context windows, for prompts that change over time",
        "model_conds": "the references of a prompt",
        "uuid": "prompts without a reference are others for caches",
        "uncond": "whether a step has a negative prompt",
        "cond_scale": "guidance of core's other nodes, video and audio apart",
        "conds_out": "guidance of core's other nodes, video and audio apart",
        "sampler_pre_cfg_function": "guidance of core's other nodes, video and audio apart",
        "sampler_cfg_function": "guidance of core's other nodes, video and audio apart",
        "denoised": "the guided result",
        "cond_denoised": "the audio's own scale",
        "uncond_denoised": "the audio's own scale",
        "sampler_calc_cond_batch_function": "steps without a negative pass, and references",
        "sampler_post_cfg_function": "the audio's own scale",
        "transformer_options": "skipped blocks",
        "multigpu_clones": "the MODEL on each device",
        "multigpu_thread_pool": "a thread for each device",
        "cond_or_uncond": "the prompts of a batch, dealt out among devices",
        "uuids": "the prompts of a batch, dealt out among devices",
        "prompt_type": "blocks that the negative pass skips",
        "latent_shapes": "the parts of a joint latent",
        "denoise_mask": "what is preserved",
        "device": "where texts are embedded",
        "hooks": "whether texts are embedded once for a run",
    },
    "comfy.model_base": {
        "cross_attn": "the prompt",
        "reference_latents": "faces, as 'Reference Latent' gives them",
    },
    "comfy.ldm.lightricks.av_model": {
        "a2v_cross_attn": "core's nodes that cut the fusion",
        "v2a_cross_attn": "core's nodes that cut the fusion",
        "stg_self_attn_blocks": "core's node for blocks whose self-attention passes values",
    },
    "comfy.context_windows": {"context_window": "the part of the latent that a pass reads"},
    "comfy.sd": {
        "dtype": "the weight dtype",
        "fp8_optimizations": "the weight dtype fp8 with fast matrices",
        "custom_operations": "layers that another node gives",
        "load_device": "the device that computes",
        "offload_device": "the device that holds weights",
    },
}


def require() -> None:
    """Raise ImportError, one sentence, where this ComfyUI lacks a name; log one where it has no use for a hook."""
    version = importlib.import_module("comfyui_version").__version__
    if unused := missing(HOOKS, version):
        logging.warning("Ovi: ComfyUI %s has no %s; update this pack.", version, _listed(unused))
    if lacking := missing(NAMES, version):
        raise ImportError(f"Ovi needs {_listed(lacking)}, which ComfyUI {version} does not have: update this pack.")


def missing(names: Iterable[Name], version: str) -> list[Name]:
    """Return the names that a version should have and that are not there, or cannot be called as the pack does."""
    return [name for name in names if numbers(name.since) <= numbers(version) and not is_there(name)]


def is_there(name: Name) -> bool:
    """Return whether this ComfyUI has a name, with the parameters that the pack passes."""
    owner_path, _, last = name.path.rpartition(".")
    try:
        owner = _find(owner_path)
        found = _attribute(owner, name.path, last)
    except (ImportError, AttributeError):
        return False
    return not name.call or _accepts(found, name.call, is_method=_is_method(owner, last))


def _find(path: str) -> Any:
    """Return what a path stands for. Raises ImportError or AttributeError where there is no such thing."""
    owner_path, _, last = path.rpartition(".")
    return _attribute(_find(owner_path), path, last) if owner_path else importlib.import_module(path)


def _attribute(owner: Any, path: str, name: str) -> Any:
    if hasattr(owner, name):
        return getattr(owner, name)
    if isinstance(owner, ModuleType):
        return importlib.import_module(path)
    # Not of the class but of its objects: then the code of its methods names it.
    code = (each.__code__ for cls in owner.__mro__ for each in vars(cls).values() if inspect.isfunction(each))
    if any(name in each.co_names or name in each.co_consts for each in code):
        return None
    raise AttributeError(path)


def _is_method(owner: Any, name: str) -> bool:
    """Return whether a call through an object passes the object too."""
    return isinstance(owner, type) and inspect.isfunction(inspect.getattr_static(owner, name, None))


def _accepts(function: Any, call: str, *, is_method: bool) -> bool:
    """Return whether a function can be called so."""
    (definition,) = ast.parse(f"def call{call}: ...").body
    assert isinstance(definition, ast.FunctionDef)
    positional = [None] * (len(definition.args.args) + is_method)
    try:
        inspect.signature(function).bind(*positional, **{each.arg: None for each in definition.args.kwonlyargs})
    except TypeError:
        return False
    return True


def _listed(names: list[Name]) -> str:
    more = f" and {len(names) - 1} more names" if len(names) > 1 else ""
    return f"{names[0].path}{names[0].call} ({names[0].why}){more}"
