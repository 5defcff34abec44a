"""Ovi Training Clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..ovi import footage, geometry, prompt
from ..ovi.native import footage as planned
from ..ovi.native import training
from ..ovi.native.vae import require_vaes
from .inputs import length_input, prompt_style_input
from .notes import show

SIDE = 960  # pixels
SHORTEST = 49  # frames


class OviTrainingClips(io.ComfyNode):
    """Encode videos with captions, or prompts alone, to the files that training reads."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare lists of videos and texts, and what encodes them, in; a contact sheet and a report out."""
        return io.Schema(
            node_id="OviTrainingClips",
            display_name="Ovi Training Clips",
            category="Ovi/training",
            description="Makes the files that the training of a LoRA reads from videos with captions: cuts them into "
            "clips, encodes these, and says what is odd about them. What is written already is not encoded again, and "
            "a video that cannot be read costs its own clips alone.",
            search_aliases=["ovi lora training", "ovi dataset", "ovi finetune", "prepare dataset", "train lora"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Video.Input(
                    "videos", optional=True, tooltip="From 'Load Video-Text (from Folder)', with its texts as captions."
                ),
                io.String.Input(
                    "texts",
                    optional=True,
                    force_input=True,
                    tooltip="Captions, one for each video or one for all. Without videos, each line is a prompt and "
                    "is encoded alone.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="UMT5-XXL, from 'Load CLIP' with type wan."),
                io.Vae.Input("vae", optional=True, tooltip="The Wan 2.2 VAE, for videos."),
                io.Vae.Input("audio_vae", optional=True, tooltip="From 'Load Ovi Audio VAE', for videos."),
                io.String.Input(
                    "folder",
                    default="clips/my_clips",
                    tooltip="The folder to write to, inside ComfyUI's output folder. Use one for each training.",
                ),
                prompt_style_input(list(prompt.STYLES), " Captions are converted to it; 'as written' changes nothing."),
                io.Int.Input(
                    "size",
                    default=SIDE,
                    min=geometry.SIZE_MULTIPLE,
                    max=geometry.MAX_SIZE,
                    tooltip="A clip has as many pixels as a square of this side, in the nearest of nine shapes. 960 "
                    "for the 960x960 checkpoints and DreamID-Omni, 720 for 720x720_5s; less saves memory.",
                ),
                length_input(
                    1,
                    "Frames of a clip at 24 per second, 4n + 1: 121 are 5 seconds. Longer videos are cut into several "
                    "clips, shorter ones give a clip of whole seconds and one frame.",
                ),
                io.Int.Input(
                    "shortest",
                    default=SHORTEST,
                    min=1,
                    max=geometry.MAX_SIZE,
                    step=geometry.FRAMES_PER_LATENT,
                    tooltip="Frames that a clip has at least, 4n + 1. What is shorter is left out.",
                ),
                io.Combo.Input(
                    "cut",
                    options=list(footage.CUTS),
                    default=footage.SCENES,
                    tooltip="Where a video is cut: 'scenes' at its scene changes, if PySceneDetect is installed, and "
                    "then every scene into pieces; 'pieces' one after another; 'beginning' takes the first clip alone.",
                ),
                io.Combo.Input(
                    "without_audio",
                    options=list(footage.WITHOUT_AUDIO),
                    default=footage.SKIP,
                    tooltip="What to do with clips without audio, or with silent audio: 'skip' leaves them out, "
                    "'silence' teaches that they are silent.",
                ),
                io.Boolean.Input(
                    "preview_only",
                    default=False,
                    tooltip="Encode nothing, and only show which clips there would be.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "contact_sheet",
                    display_name="contact_sheet",
                    tooltip="The first frame of each clip, with its number in the report.",
                ),
                io.String.Output(
                    "report", display_name="report", tooltip="What is learned, what is left out, and what is odd."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> float:
        """Run each time: files may have been deleted, or a run cancelled."""
        return float("nan")

    @classmethod
    def execute(
        cls,
        folder: list[str],
        prompt_style: list[str],
        size: list[int],
        length: list[int],
        shortest: list[int],
        cut: list[str],
        without_audio: list[str],
        preview_only: list[bool],
        videos: list[Any] | None = None,
        texts: list[str] | None = None,
        clip: list[Any] | None = None,
        vae: list[Any] | None = None,
        audio_vae: list[Any] | None = None,
    ) -> io.NodeOutput:
        """Encode what is not written yet; show what is learned."""
        into = training.folder(folder[0])
        encoders = training.Encoders(_first(clip), _first(vae), _first(audio_vae))
        captions = training.captions(texts, encoders.text)
        if not videos:
            if preview_only[0]:
                raise ValueError("There are no videos to preview: connect videos, or switch preview_only off.")
            report = training.write_prompts(captions, prompt_style[0], encoders.text, into)
            return cls._shown(footage.contact_sheet([], []), report)
        require_vaes(encoders.video, encoders.audio)
        settings = planned.Settings(
            size[0] * size[0], length[0], shortest[0], cut[0], without_audio[0], prompt_style[0]
        )
        report = planned.plan(videos, captions, settings)
        if not preview_only[0]:
            training.write_clips(report, settings, encoders, into)
        return cls._shown(planned.preview(report.clips), report)

    @classmethod
    def _shown(cls, sheet: Tensor, report: planned.Report) -> io.NodeOutput:
        lines = list(planned.summary(report))
        return io.NodeOutput(sheet, "\n".join(lines), ui=show(cls, lines))


def _first(given: Sequence[Any] | None) -> Any:
    return given[0] if given else None
