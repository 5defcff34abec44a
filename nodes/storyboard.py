"""Ovi Storyboard, and Ovi Shot, which it is expanded to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..ovi import geometry, join, prompt, storyboard
from ..ovi.native import storyboard as expansion
from ..ovi.native.guidance import passes
from ..ovi.native.model import require_ovi
from ..ovi.native.vae import require_vaes
from .inputs import (
    fit_input,
    overlap_input,
    prompt_style_input,
    scale_input,
    size_inputs,
    text_input,
    tile_size_input,
    voice_inputs,
)
from .notes import show

VIDEO_CFG = 4.0  # the Ovi release's
MAX_IMAGES, MAX_PERSONS = 50, 10
SHOTS = (
    "--- all\n"
    "A lighthouse keeper with a grey beard and a blue coat.\n"
    "--- cut 5s\n"
    "He climbs the stairs of the lighthouse at dusk with a lamp in his hand. Audio: Slow steps on stone, wind.\n"
    "--- continue 5s\n"
    "At the top he sets the lamp down and looks out to sea. He says, <S>They should be back by now.<E> Audio: A deep "
    "tired male voice, wind.\n"
    "--- cut 5s\n"
    "He stands on the gallery in the storm and waves his lamp. Audio: Wind, rain and breaking waves."
)


def growing_input(kind: str, template: io.Input, most: int, tooltip: str) -> io.Input:
    """Return an input of a kind that grows: image1, image2 and so on."""
    names = [f"{kind}{number}" for number in range(1, most + 1)]
    return io.Autogrow.Input(
        f"{kind}s", template=io.Autogrow.TemplateNames(template, names=names, min=0), tooltip=tooltip
    )


class OviStoryboard(io.ComfyNode):
    """Generate several shots from one text, and join them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare all that a clip needs, and a text of several shots, in; one VIDEO out."""
        return io.Schema(
            node_id="OviStoryboard",
            display_name="Ovi Storyboard",
            category="Ovi/video",
            description="Generates several shots from one text, which a line such as '--- continue 5s' or '--- cut 4s "
            "seed=7 image=2' separates, and joins them. A shot that you change is generated anew, together with those "
            "that continue it; ComfyUI keeps the others. Experimental where shots continue: Ovi was trained with a "
            "first frame as its only reference.",
            search_aliases=["ovi multishot", "ovi timeline", "ovi long video", "ovi scenes", "shots", "ovi extend"],
            is_experimental=True,
            enable_expand=True,
            inputs=[
                io.Model.Input("model", tooltip="From 'Ovi Guidance'."),
                io.Clip.Input("clip", tooltip="UMT5-XXL, from 'Load CLIP' with type wan."),
                io.Vae.Input("vae", tooltip="The Wan 2.2 VAE."),
                io.Vae.Input("audio_vae", tooltip="From 'Load Ovi Audio VAE'."),
                io.Sampler.Input("sampler", tooltip="From 'Ovi UniPC' or 'KSamplerSelect'."),
                io.Sigmas.Input("sigmas", tooltip="From 'Ovi Scheduler', for every shot."),
                scale_input("cfg", VIDEO_CFG, "How closely the video follows the prompt. The Ovi release uses 4."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=storyboard.SEEDS - 1,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Noise of the first shot after a cut; each shot that continues it has the next seed. "
                    "'seed=7' in a shot's line is for that shot.",
                ),
                text_input(
                    "shots",
                    SHOTS,
                    "The prompts of the shots. A line '---' opens one, and may say more: cut or continue, a length "
                    "such as 5s, seed=7, image=1. The text below '--- all' is put in front of every shot's prompt.",
                ),
                text_input("video_negative", prompt.VIDEO_NEGATIVE, "What to avoid in the video.", multiline=False),
                text_input("audio_negative", prompt.AUDIO_NEGATIVE, "What to avoid in the audio.", multiline=False),
                prompt_style_input(list(prompt.STYLES), " 'as written' changes nothing."),
                *size_inputs(),
                overlap_input("Seconds from the end of a shot with which one that continues it begins."),
                fit_input("an image"),
                io.String.Input(
                    "filename_prefix",
                    default="",
                    tooltip="Saves each shot, as soon as it is done, under this name with the number of the shot. "
                    "Leave empty to see the shots without saving them.",
                ),
                tile_size_input(),
                *voice_inputs(),
                growing_input(
                    "image", io.Image.Input("image"), MAX_IMAGES, "Start images: 'image=1' in a shot's line is image1."
                ),
                growing_input(
                    "face",
                    io.Image.Input("face"),
                    MAX_PERSONS,
                    "Faces of the persons in every shot, for DreamID-Omni: face1 is <sub1> of the prompts.",
                ),
                growing_input(
                    "voice",
                    io.Audio.Input("voice"),
                    MAX_PERSONS,
                    "Voices of the persons in every shot, for DreamID-Omni: voice1 is that of <sub1>.",
                ),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="Your own recording, which the shots follow, each its part, and which is the audio of the "
                    "result, unchanged. Shots that do not say their length end in its pauses.",
                ),
            ],
            outputs=[io.Video.Output(tooltip="All shots, joined. Connect to 'Save Video'.")],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: Any,
        vae: Any,
        audio_vae: Any,
        sampler: Any,
        sigmas: Tensor,
        cfg: float,
        seed: int,
        shots: str,
        video_negative: str,
        audio_negative: str,
        prompt_style: str,
        width: int,
        height: int,
        length: int,
        overlap: float,
        fit: str,
        filename_prefix: str,
        tile_size: int,
        voice_start: float,
        voice_seconds: float,
        images: dict[str, Tensor],
        faces: dict[str, Tensor],
        voices: dict[str, Any],
        audio: Mapping[str, Any] | None = None,
    ) -> io.NodeOutput:
        """Read the text, show on the node what all shots will take, and expand to their nodes."""
        require_ovi(model, "Ovi Storyboard")
        require_vaes(vae, audio_vae)
        geometry.check_size(width, height)
        if len(sigmas) < 2:
            raise ValueError("The sigmas have no step: connect 'Ovi Scheduler', with a denoise above 0.")
        expansion.check_prefix(filename_prefix)
        given = cls.hidden.dynprompt.get_node(cls.hidden.unique_id)["inputs"]
        expansion.persons(given)
        defaults = storyboard.Defaults(length, geometry.nearest_frames(overlap), seed, prompt_style)
        track = storyboard.Track.of(audio) if audio is not None else None
        board = storyboard.read(shots, defaults, expansion.numbers(given, "image"), track)
        count, frames = len(board.shots), board.frames
        note = (
            f"{count} {'shots' if count > 1 else 'shot'}, {frames} frames, {geometry.seconds(frames):.2f} s: "
            f"{count * (len(sigmas) - 1)} steps, {count * passes(model, cfg, sigmas)} passes of the model"
        )
        lengths = sorted({shot.frames for shot in board.shots})
        misfits = [geometry.fit_note(width, height, each) for each in lengths if not geometry.fits(width, height, each)]
        notes = [*board.notes, note, *dict.fromkeys(misfits)]
        graph, joined = expansion.Expansion(board, given, filename_prefix, note).build()
        return io.NodeOutput(joined, ui=show(cls, notes), expand=graph)


class OviShot(io.ComfyNode):
    """Show, and save, a shot of a storyboard as soon as it is done."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare a VIDEO, or what to wait for, in; nothing out."""
        return io.Schema(
            node_id="OviShot",
            display_name="Ovi Shot",
            category="Ovi/video",
            description="A step of 'Ovi Storyboard', which adds this node by itself: shows, and saves, a shot as soon "
            "as it is done.",
            search_aliases=["ovi storyboard step"],
            is_dev_only=True,
            is_output_node=True,
            inputs=[
                io.String.Input("note", default="", tooltip="What to show."),
                io.String.Input(
                    "filename_prefix", default="", tooltip="Name of the file in the output folder; empty saves none."
                ),
                io.Video.Input("clip", optional=True, tooltip="The shot, from 'Create Video'."),
                io.Autogrow.Input(
                    "waits",
                    template=io.Autogrow.TemplatePrefix(
                        io.AnyType.Input("wait"), prefix="wait", min=0, max=join.MOST_CLIPS
                    ),
                    tooltip="What has to be done before.",
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, note: str, filename_prefix: str, waits: dict[str, Any], clip: Any = None) -> io.NodeOutput:
        """Save the shot, and show it with the note."""
        if clip is None:
            return io.NodeOutput(ui=show(cls, [note]))
        preview = expansion.save(clip, filename_prefix, cls.hidden)
        return io.NodeOutput(ui=preview.as_dict() | show(cls, [note]).as_dict())
