"""Ovi Text Encode and Ovi Timeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import node_helpers
from comfy_api.latest import io

from ..ovi import prompt as ovi_prompt
from ..ovi import timeline
from ..ovi.config import TEXT_LEN
from ..ovi.native.references import STYLE_KEY
from ..ovi.native.text import EncodedText, beside, encode
from ..ovi.native.timeline import TIME_KEY
from .inputs import prompt_style_input, text_input
from .notes import show

PROMPT = (
    "A woman with short dark hair stands on a windy pier at dusk and looks into the camera. She smiles and says, "
    "<S>The sea sounds different tonight.<E> Waves break against the wood behind her.\n\n"
    "Audio: A calm female voice close to the microphone, waves and wind around it."
)


TIMELINE = (
    "--- all\n"
    "A woman with short dark hair and a red coat on a windy pier. Waves break against the wood.\n"
    "--- from 0s\n"
    "At dusk she walks slowly towards the end of the pier. Audio: Waves, wind, slow steps on wood.\n"
    "--- from 7s\n"
    "She stops at the railing, and it begins to rain. Audio: Waves, wind, rain on wood.\n"
    "--- from 14s\n"
    "She opens a yellow umbrella and looks out to sea. Audio: Heavy rain on an umbrella, waves."
)


def truncations(named: Mapping[str, EncodedText]) -> list[str]:
    """Return a note on each text that Ovi does not read to its end."""
    return [
        f"{name}: {encoded.tokens} tokens, but Ovi reads {TEXT_LEN}: the last {encoded.truncated} were truncated"
        for name, encoded in named.items()
        if encoded.truncated
    ]


def encode_negatives(clip: Any, video: str, audio: str) -> dict[str, EncodedText]:
    """Encode a negative prompt for each tower, by the name that notes have for it."""
    return {"Video negative": encode(clip, video), "Audio negative": encode(clip, audio)}


def negative_inputs() -> list[io.Input]:
    """Return inputs for a negative prompt of each tower."""
    # In one line: boxes for several would have no labels, and be as large as the prompt's.
    return [
        text_input("video_negative", ovi_prompt.VIDEO_NEGATIVE, "What to avoid in the video.", multiline=False),
        text_input("audio_negative", ovi_prompt.AUDIO_NEGATIVE, "What to avoid in the audio.", multiline=False),
    ]


def negative_output() -> io.Output:
    """Return the output for both negative prompts."""
    return io.Conditioning.Output(
        "negative",
        display_name="negative",
        tooltip="Both negative prompts, side by side. Only an Ovi model reads them.",
    )


class OviTextEncode(io.ComfyNode):
    """Encode one prompt for both towers, and a negative prompt for each."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare a CLIP and three texts in, positive and negative CONDITIONING out."""
        return io.Schema(
            node_id="OviTextEncode",
            display_name="Ovi Text Encode",
            category="Ovi/conditioning",
            description="Encodes the prompt, which both towers read, and a negative prompt for each tower. Words "
            "between <S> and <E> are spoken. Weights such as (word:1.5) have no effect.",
            search_aliases=["ovi prompt", "ovi negative", "speech tags", "audcap"],
            inputs=[
                io.Clip.Input("clip", tooltip="UMT5-XXL, from 'Load CLIP' with type wan."),
                text_input(
                    "prompt",
                    PROMPT,
                    "The scene, speech between <S> and <E>, and at the end a description of the audio: 'Audio: ...' or "
                    "<AUDCAP>...<ENDAUDCAP>, converted to the form of the prompt style.",
                ),
                *negative_inputs(),
                prompt_style_input(list(ovi_prompt.STYLES), " 'as written' changes nothing."),
            ],
            outputs=[
                io.Conditioning.Output("positive", display_name="positive"),
                negative_output(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, clip: Any, prompt: str, video_negative: str, audio_negative: str, prompt_style: str
    ) -> io.NodeOutput:
        """Encode the three texts, and show on the node what was changed in them."""
        formatted = ovi_prompt.format_prompt(prompt, prompt_style)
        positive, negatives = encode(clip, formatted.text), encode_negatives(clip, video_negative, audio_negative)
        notes = truncations({"Prompt": positive, **negatives})
        notes += [*ovi_prompt.doubts(prompt, prompt_style), *formatted.notes]
        if not positive.truncated:
            notes.append(f"Prompt: {positive.tokens} of {TEXT_LEN} tokens")
        style = {STYLE_KEY: prompt_style}
        both = positive.conditioning, beside(*negatives.values())
        prompts = (node_helpers.conditioning_set_values(each, style) for each in both)
        return io.NodeOutput(*prompts, ui=show(cls, notes))


class OviTimeline(io.ComfyNode):
    """Encode prompts for parts of a clip, and a negative prompt for each tower."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare a CLIP and three texts in, positive and negative CONDITIONING out."""
        return io.Schema(
            node_id="OviTimeline",
            display_name="Ovi Timeline",
            category="Ovi/conditioning",
            description="Encodes prompts that change over time, for a long clip in context windows: a line such as "
            "'--- from 5s' begins each. A window reads the prompt of its middle, and where two windows overlap, one "
            "prompt blends into the next. Experimental: Ovi was trained on clips of one piece.",
            search_aliases=["ovi prompt schedule", "ovi prompt travel", "ovi context windows", "ovi long video"],
            is_experimental=True,
            inputs=[
                io.Clip.Input("clip", tooltip="UMT5-XXL, from 'Load CLIP' with type wan."),
                text_input(
                    "prompt",
                    TIMELINE,
                    "The prompts. A line '--- from 5s' begins one at that time of the clip; it holds until the next "
                    "line. The text below '--- all' is put in front of every prompt.",
                ),
                *negative_inputs(),
                prompt_style_input(list(ovi_prompt.STYLES), " 'as written' changes nothing."),
            ],
            outputs=[
                io.Conditioning.Output(
                    "positive",
                    display_name="positive",
                    tooltip="A prompt for each part of the clip. The MODEL needs 'Context Windows (Manual)'.",
                ),
                negative_output(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, clip: Any, prompt: str, video_negative: str, audio_negative: str, prompt_style: str
    ) -> io.NodeOutput:
        """Encode all texts, and show on the node when each prompt begins and what was changed in it."""
        read = timeline.read(prompt, prompt_style)
        style = {STYLE_KEY: prompt_style}
        positive, named, changes = [], {}, []
        for stretch in read.stretches:
            name, formatted = f"Line {stretch.line}", ovi_prompt.format_prompt(stretch.prompt, prompt_style)
            named[name] = encoded = encode(clip, formatted.text)
            changes += [f"{name}: {note}" for note in formatted.notes]
            time = {TIME_KEY: (stretch.start, stretch.end)} if len(read.stretches) > 1 else {}
            positive += node_helpers.conditioning_set_values(encoded.conditioning, style | time)
        negatives = encode_negatives(clip, video_negative, audio_negative)
        negative = node_helpers.conditioning_set_values(beside(*negatives.values()), style)
        notes = [*truncations(named | negatives), read.summary, *read.notes, *changes]
        return io.NodeOutput(positive, negative, ui=show(cls, notes))
