"""A prompt from its parts: OviPrompt."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..ovi import geometry, prompt
from ..ovi.config import TEXT_LEN
from .latent import LENGTH, MAX_SIZE
from .notes import show
from .text import tokenize

SCENE = (
    "A woman with short dark hair stands on a windy pier at dusk and looks into the camera. Waves break against the "
    "wood behind her."
)
SPEECH = "The woman: The sea sounds different tonight."
SOUND = "A calm female voice close to the microphone, waves and wind around it."


class OviPrompt(io.ComfyNode):
    """Scene, speech and sound to one prompt in the form that a checkpoint was trained on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="OviPrompt",
            display_name="Ovi Prompt",
            category="Ovi",
            description="Puts a prompt together from scene, speech and sound, and says whether the words fit the clip.",
            search_aliases=["ovi speech", "ovi dialogue", "ovi token count", "speech tags"],
            inputs=[
                io.String.Input(
                    "scene",
                    multiline=True,
                    dynamic_prompts=True,
                    default=SCENE,
                    tooltip="What is seen and what happens. It may hold speech of its own between <S> and <E>.",
                ),
                io.String.Input(
                    "speech",
                    multiline=True,
                    dynamic_prompts=True,
                    default=SPEECH,
                    tooltip="A line for each turn of each speaker, 'who: words', in the order of speaking. Empty: "
                    "nobody speaks.",
                ),
                io.String.Input(
                    "sound",
                    multiline=True,
                    dynamic_prompts=True,
                    default=SOUND,
                    tooltip="What is heard: voices, noises, music. Empty: left to Ovi.",
                ),
                io.Combo.Input(
                    "prompt_style",
                    options=list(geometry.VARIANTS),
                    default="960x960_5s",
                    tooltip="The checkpoint: 720x720_5s (model.safetensors) was trained with <AUDCAP>, the 960x960 "
                    "ones with 'Audio:'.",
                ),
                io.Int.Input(
                    "length",
                    default=LENGTH,
                    min=1,
                    max=MAX_SIZE,
                    step=geometry.FRAMES_PER_LATENT,
                    tooltip="Frames of the clip at 24 per second: the time that the words must fit in.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="UMT5-XXL, to count the tokens of the prompt."),
            ],
            outputs=[io.String.Output("prompt", display_name="prompt", tooltip="For 'Ovi Text Encode'.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, scene: str, speech: str, sound: str, prompt_style: str, length: int, clip: Any = None
    ) -> io.NodeOutput:
        """Compose the prompt, and show its speaking time and tokens on the node."""
        composed = prompt.compose(scene, speech, sound, prompt_style)
        text, notes = prompt.format_prompt(composed, prompt_style)
        notes = (prompt.speech_note(text, length), *notes)
        if clip is not None:
            _, written = tokenize(clip, text)
            excess = len(written) - TEXT_LEN
            cut = f": the last {excess} will be cut, so shorten it" if excess > 0 else ""
            notes = (*notes, f"Prompt: {len(written)} of {TEXT_LEN} tokens{cut}")
        return io.NodeOutput(text, ui=show(cls, notes))
