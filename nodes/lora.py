"""Load Ovi LoRA."""

from __future__ import annotations

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..ovi import turbo
from ..ovi.native.files import read
from ..ovi.native.lora import apply
from .inputs import MAX_STRENGTH
from .notes import show


class OviLoraLoader(io.ComfyNode):
    """Apply a LoRA of Wan 2.2 5B or of Ovi."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare a MODEL, a file and two strengths in, a MODEL out."""
        strength = {"default": 1.0, "min": -MAX_STRENGTH, "max": MAX_STRENGTH, "step": 0.01}
        return io.Schema(
            node_id="OviLoraLoader",
            display_name="Load Ovi LoRA",
            category="Ovi/loaders",
            description="Applies a LoRA to Ovi, with a strength for each tower. A LoRA of Wan 2.2 5B changes the "
            "video, a LoRA of Ovi video and audio. The node shows how many weights were patched, and how a LoRA for "
            "few steps is to be sampled, if its file says so.",
            search_aliases=["ovi lora", "wan 2.2 5b lora", "lora loader"],
            inputs=[
                io.Model.Input("model", tooltip="From 'Load Ovi Model', or from another LoRA loader."),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="A LoRA in models/loras, trained on Wan 2.2 5B or on Ovi. LoRAs of Wan's 14B models do "
                    "not fit.",
                ),
                io.Float.Input(
                    "video_strength", tooltip="Strength on the video tower; 0 leaves the video unchanged.", **strength
                ),
                io.Float.Input(
                    "audio_strength", tooltip="Strength on the audio tower; 0 leaves the audio unchanged.", **strength
                ),
            ],
            outputs=[io.Model.Output(tooltip="Connect to 'Ovi Guidance', another LoRA loader or a sampler.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model: ModelPatcher, lora_name: str, video_strength: float, audio_strength: float
    ) -> io.NodeOutput:
        """Load the file and patch a clone of the model."""
        path = folder_paths.get_full_path_or_raise("loras", lora_name)
        sd, metadata = read(path)
        patched, notes = apply(model, sd, video_strength, audio_strength)
        return io.NodeOutput(patched, ui=show(cls, [*turbo.note(metadata), *notes]))
