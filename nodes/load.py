"""Load Ovi Model."""

from __future__ import annotations

import folder_paths
import torch
from comfy_api.latest import io

from ..ovi import native
from .inputs import NO_SECOND_FILE

WEIGHT_DTYPES: dict[str, dict[str, object]] = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}

GGUF_FILES = "unet_gguf"  # the .gguf files of the same folders, where the pack ComfyUI-GGUF is installed


class OviModelLoader(io.ComfyNode):
    """Load one file with both towers, or one file for each, as a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare two files and a weight dtype in, a MODEL out."""
        files = folder_paths.get_filename_list("diffusion_models")
        if GGUF_FILES in folder_paths.folder_names_and_paths:
            files = files + folder_paths.get_filename_list(GGUF_FILES)
        return io.Schema(
            node_id="OviModelLoader",
            display_name="Load Ovi Model",
            category="Ovi/loaders",
            description="Loads Ovi's video and audio towers as one MODEL, from one file or from one file for each.",
            search_aliases=["ovi", "ovi loader", "video with audio", "audio video model", "talking video"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=files,
                    tooltip="An Ovi checkpoint in models/diffusion_models, such as model_960x960.safetensors "
                    "(huggingface.co/chetwinlow1/Ovi), or one of its towers.",
                ),
                io.Combo.Input(
                    "second_model_name",
                    options=[NO_SECOND_FILE, *files],
                    default=NO_SECOND_FILE,
                    tooltip="The other tower, if the video tower and the audio tower are separate files. Either order "
                    "works.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    tooltip="How the weights are stored in memory. 'default' keeps the file's own format. fp8 halves "
                    "the memory of a bf16 file at some cost in quality; a scaled fp8 file, loaded with 'default', "
                    "loses less.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="Connect to 'Ovi Guidance', a LoRA loader or a sampler.")],
        )

    @classmethod
    def execute(cls, model_name: str, second_model_name: str, weight_dtype: str) -> io.NodeOutput:
        """Load the files."""
        names = [name for name in (model_name, second_model_name) if name != NO_SECOND_FILE]
        paths = [folder_paths.get_full_path_or_raise("diffusion_models", name) for name in names]
        return io.NodeOutput(native.load(paths, WEIGHT_DTYPES[weight_dtype]))
