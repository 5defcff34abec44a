"""Guidance of both modalities: OviGuidance."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..ovi import guidance, native

AUDIO_CFG = 3.0  # published
MAX_CFG = 100.0


def percent(name: str, default: float, tooltip: str) -> io.Input:
    """An input for a place in the schedule, 0 to 1."""
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip, advanced=True)


class OviGuidance(io.ComfyNode):
    """A scale for the audio beside the sampler's own, and blocks that the negative pass skips."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="OviGuidance",
            display_name="Ovi Guidance",
            category="Ovi",
            description="Guides the sound with a cfg of its own and skips a block in the negative pass, as published. "
            "The sampler's cfg (or the guider's) is the picture's; 4 is published.",
            search_aliases=["ovi cfg", "audio cfg", "skip layer guidance", "slg"],
            inputs=[
                io.Model.Input("model", tooltip="From 'Load Ovi Model', with any LoRAs."),
                io.Float.Input(
                    "audio_cfg",
                    default=AUDIO_CFG,
                    min=0.0,
                    max=MAX_CFG,
                    step=0.1,
                    round=0.01,
                    tooltip="How closely the sound follows the prompt. 3 is published; 1 leaves the sound unguided.",
                ),
                io.String.Input(
                    "skip_blocks",
                    default=guidance.SKIP_BLOCKS,
                    tooltip="Blocks (1 to 29) that the negative pass skips in both towers, separated by commas; empty "
                    "skips none. 11 is published; 7 to 9 give more motion in the background.",
                ),
                percent("skip_start_percent", 0.0, "Where in the schedule skipping begins (0: at the first step)."),
                percent("skip_end_percent", 1.0, "Where in the schedule skipping ends (1: after the last step)."),
                percent("video_start_percent", 0.0, "Where in the schedule guidance of the picture begins."),
                percent(
                    "video_end_percent",
                    1.0,
                    "Where in the schedule guidance of the picture ends. Steps in which neither the picture nor the "
                    "sound is guided take half the time.",
                ),
                percent("audio_start_percent", 0.0, "Where in the schedule guidance of the sound begins."),
                percent("audio_end_percent", 1.0, "Where in the schedule guidance of the sound ends."),
            ],
            outputs=[
                io.Model.Output(tooltip="For a sampler or a guider, with positive and negative of 'Ovi Text Encode'.")
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        audio_cfg: float,
        skip_blocks: str,
        skip_start_percent: float,
        skip_end_percent: float,
        video_start_percent: float,
        video_end_percent: float,
        audio_start_percent: float,
        audio_end_percent: float,
    ) -> io.NodeOutput:
        """Patch a clone of the model."""
        skip = skip_start_percent, skip_end_percent
        video = video_start_percent, video_end_percent
        audio = audio_start_percent, audio_end_percent
        return io.NodeOutput(native.guide(model, audio_cfg, skip_blocks, skip, video, audio))
