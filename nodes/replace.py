"""Nodes of other Ovi packs that ComfyUI replaces with ours where those packs are not installed.

Loaders only: their values carry over, and no loader feeds another. ComfyUI's server fails on a prompt in which one
replaced node feeds another, and on a prompt that lacks an input of the mapping. docs/migration.md covers other nodes.
"""

from __future__ import annotations

from comfy_api.latest import ComfyAPI, io
from server import PromptServer

from .inputs import NO_SECOND_FILE

REPLACEMENTS = [
    # ComfyUI-WanVideoWrapper
    io.NodeReplace(
        old_node_id="OviMMAudioVAELoader",
        new_node_id="OviAudioVAELoader",
        old_widget_ids=["vae", "vocoder", "precision"],
        input_mapping=[{"new_id": "vae_name", "old_id": "vae"}, {"new_id": "vocoder_name", "old_id": "vocoder"}],
        output_mapping=[{"new_idx": 0, "old_idx": 0}],
    ),
    # ComfyUI-Ovi
    io.NodeReplace(
        old_node_id="OviEngineLoader",
        new_node_id="OviModelLoader",
        old_widget_ids=["model_precision", "cpu_offload", "device"],
        input_mapping=[
            {"new_id": "model_name", "old_id": "model_precision"},  # the name of a file, in the same folder
            {"new_id": "second_model_name", "set_value": NO_SECOND_FILE},
            {"new_id": "weight_dtype", "set_value": "default"},
        ],
        output_mapping=[{"new_idx": 0, "old_idx": 0}],
    ),
]


async def register() -> None:
    """Register the replacements with the server, where one is running."""
    if hasattr(PromptServer, "instance"):
        for replacement in REPLACEMENTS:
            await ComfyAPI().node_replacement.register(replacement)
