"""Ovi Guidance."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..ovi import guidance, native
from .inputs import scale_input

AUDIO_CFG = 3.0  # the Ovi release's


def percent(name: str, default: float, tooltip: str, *, optional: bool = False) -> io.Input:
    """Return an input for a place in the schedule, 0 to 1; graphs from before an optional one have none."""
    return io.Float.Input(
        name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip, advanced=True, optional=optional
    )


def reference_cfg(name: str, tooltip: str, trained: float) -> io.Input:
    """Return an input for guidance by references; graphs from before it have none."""
    tooltip = f"{tooltip} DreamID-Omni uses {trained:g}; 0 saves a pass of the model in every step."
    return scale_input(name, 0.0, tooltip, advanced=True, optional=True)


class OviGuidance(io.ComfyNode):
    """Give audio, references and synchrony guidance scales of their own, and skip blocks in the negative pass."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare a MODEL and the settings in, a MODEL out."""
        return io.Schema(
            node_id="OviGuidance",
            display_name="Ovi Guidance",
            category="Ovi/sampling",
            description="Gives the audio its own cfg and skips a block in the negative pass, as in the Ovi release. "
            "Set the video's cfg in the sampler or guider; the Ovi release uses 4.",
            search_aliases=["ovi cfg", "audio cfg", "skip layer guidance", "slg", "modality guidance", "lip sync"],
            inputs=[
                io.Model.Input("model", tooltip="From 'Load Ovi Model', with any LoRAs."),
                scale_input(
                    "audio_cfg",
                    AUDIO_CFG,
                    "How closely the audio follows the prompt. The Ovi release uses 3; 1 turns guidance of the audio "
                    "off.",
                ),
                io.String.Input(
                    "skip_blocks",
                    default=guidance.SKIP_BLOCKS,
                    tooltip="Blocks (1 to 29) that the negative pass skips in both towers, separated by commas; empty "
                    "skips none. The Ovi release skips 11; 7 to 9 add motion to the background.",
                ),
                percent(
                    "skip_start_percent",
                    0.0,
                    "Where in the schedule skipping starts: 0 is the first step. Counted on the MODEL's own schedule "
                    "(ModelSamplingSD3 changes its shift), whatever sigmas the sampler gets.",
                ),
                percent("skip_end_percent", 1.0, "Where in the schedule skipping ends: 1 is after the last step."),
                percent("video_start_percent", 0.0, "Where in the schedule guidance of the video starts."),
                percent(
                    "video_end_percent",
                    1.0,
                    "Where in the schedule guidance of the video ends. Steps that guide neither the video nor the "
                    "audio take half the time.",
                ),
                percent("audio_start_percent", 0.0, "Where in the schedule guidance of the audio starts."),
                percent("audio_end_percent", 1.0, "Where in the schedule guidance of the audio ends."),
                reference_cfg("video_reference_cfg", "How closely the video follows the faces of 'Ovi Person'.", 1.5),
                reference_cfg("audio_reference_cfg", "How closely the audio follows the voices of 'Ovi Person'.", 2.0),
                scale_input(
                    "sync_scale",
                    0.0,
                    "How strongly video and audio are pushed to match each other. Recommended: 1 from 4 steps on, 2 "
                    "from 10 steps on; 0 saves a pass of the model in every step.",
                    optional=True,
                ),
                percent("sync_start_percent", 0.0, "Where in the schedule 'sync_scale' starts.", optional=True),
                percent(
                    "sync_end_percent",
                    1.0,
                    "Where in the schedule 'sync_scale' ends. Steps outside of it take no extra pass.",
                    optional=True,
                ),
                io.Combo.Input(
                    "sync_direction",
                    options=list(guidance.DIRECTIONS),
                    default=guidance.AUTO,
                    tooltip="What 'sync_scale' changes: auto is whatever is generated, so both, or the one that a "
                    "reference does not give; video or audio is that one alone.",
                    advanced=True,
                    optional=True,
                ),
                scale_input(
                    "audio_shift",
                    0.0,
                    "The shift of the audio's noise schedule, where it differs from the video's; 0: the same. Counted "
                    "beside the MODEL's own shift, 5, or that of ModelSamplingSD3.",
                    advanced=True,
                    optional=True,
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="Connect to a sampler or guider, together with the outputs of 'Ovi Text Encode'."
                )
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
        video_reference_cfg: float = 0.0,
        audio_reference_cfg: float = 0.0,
        sync_scale: float = 0.0,
        sync_start_percent: float = 0.0,
        sync_end_percent: float = 1.0,
        sync_direction: str = guidance.AUTO,
        audio_shift: float = 0.0,
    ) -> io.NodeOutput:
        """Patch a clone of the model."""
        skip = skip_start_percent, skip_end_percent
        video = video_start_percent, video_end_percent
        audio = audio_start_percent, audio_end_percent
        guided = native.guide(
            model,
            audio_cfg,
            skip_blocks,
            skip,
            video,
            audio,
            video_reference_cfg,
            audio_reference_cfg,
            sync_scale,
            (sync_start_percent, sync_end_percent),
            sync_direction,
            audio_shift,
        )
        return io.NodeOutput(guided)
