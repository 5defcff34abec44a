"""Ovi Prompt."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..ovi import parts, prompt
from ..ovi.config import TEXT_LEN
from ..ovi.native.text import tokenize
from .inputs import length_input, prompt_style_input, text_input
from .notes import show

SCENE = (
    "A woman with short dark hair stands on a windy pier at dusk and looks into the camera. Waves break against the "
    "wood behind her."
)
SPEECH = "The woman: The sea sounds different tonight."
SOUND = "A calm female voice close to the microphone, waves and wind around it."


class OviPrompt(io.ComfyNode):
    """Build one prompt from its parts, in the form that a checkpoint was trained on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare the parts of a prompt in, the prompt out."""
        return io.Schema(
            node_id="OviPrompt",
            display_name="Ovi Prompt",
            category="Ovi/conditioning",
            description="Builds a prompt from scene, speech and sound, and shows whether the speech fits the clip.",
            search_aliases=["ovi speech", "ovi dialogue", "ovi token count", "speech tags"],
            inputs=[
                text_input(
                    "scene",
                    SCENE,
                    "What the video shows and what happens in it. It may contain speech between <S> and <E>.",
                ),
                text_input(
                    "speech",
                    SPEECH,
                    "One line per turn, 'speaker: words', in speaking order. Leave empty if nobody speaks.",
                ),
                text_input(
                    "sound",
                    SOUND,
                    "What is heard: voices, noises, music. Leave empty to let Ovi choose.",
                ),
                prompt_style_input(list(parts.STYLES)),
                length_input(1, "Length of the clip in frames at 24 per second, to check that the speech fits."),
                io.Clip.Input("clip", optional=True, tooltip="UMT5-XXL, to count the tokens of the prompt."),
                text_input(
                    "persons",
                    "",
                    "For the style dreamid-omni: one line per person, 'name: description', in the order of the 'Ovi "
                    "Person' nodes. The other fields may then use the names.",
                    advanced=True,
                ),
                text_input(
                    "looks", "", "For the style dreamid-omni: what the persons look like and wear.", advanced=True
                ),
                text_input("actions", "", "For the style dreamid-omni: what the persons do.", advanced=True),
            ],
            outputs=[io.String.Output("prompt", display_name="prompt", tooltip="Connect to 'Ovi Text Encode'.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        scene: str,
        speech: str,
        sound: str,
        prompt_style: str,
        length: int,
        clip: Any = None,
        persons: str = "",
        looks: str = "",
        actions: str = "",
    ) -> io.NodeOutput:
        """Compose the prompt, and show its speaking time and token count on the node."""
        text, changes, doubts = parts.read(scene, speech, sound, prompt_style, persons, looks, actions)
        notes = (prompt.speech_note(text, length), *changes, *doubts)
        if clip is not None:
            _, of_text = tokenize(clip, text)
            excess = len(of_text) - TEXT_LEN
            warning = f": the last {excess} will be truncated, so shorten it" if excess > 0 else ""
            notes = (*notes, f"Prompt: {len(of_text)} of {TEXT_LEN} tokens{warning}")
        return io.NodeOutput(text, ui=show(cls, notes))
