"""Ovi Text Encode."""

from __future__ import annotations

from typing import Any

import node_helpers
import torch
from comfy_api.latest import io

from ..ovi import prompt as ovi_prompt
from ..ovi.config import TEXT_LEN
from ..ovi.native.references import STYLE_KEY
from ..ovi.native.text import EncodedText, encode
from .inputs import prompt_style_input, text_input
from .notes import show

PROMPT = (
    "A woman with short dark hair stands on a windy pier at dusk and looks into the camera. She smiles and says, "
    "<S>The sea sounds different tonight.<E> Waves break against the wood behind her.\n\n"
    "Audio: A calm female voice close to the microphone, waves and wind around it."
)


def truncation(name: str, encoded: EncodedText) -> str:
    """Return the note on a text that Ovi does not read to its end."""
    return f"{name}: {encoded.tokens} tokens, but Ovi reads {TEXT_LEN}: the last {encoded.truncated} were truncated"


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
                # In one line: boxes for several would have no labels, and be as large as the prompt's.
                text_input("video_negative", ovi_prompt.VIDEO_NEGATIVE, "What to avoid in the video.", multiline=False),
                text_input("audio_negative", ovi_prompt.AUDIO_NEGATIVE, "What to avoid in the audio.", multiline=False),
                prompt_style_input(list(ovi_prompt.STYLES), " 'as written' changes nothing."),
            ],
            outputs=[
                io.Conditioning.Output("positive", display_name="positive"),
                io.Conditioning.Output(
                    "negative",
                    display_name="negative",
                    tooltip="Both negative prompts, side by side. Only an Ovi model reads them.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, clip: Any, prompt: str, video_negative: str, audio_negative: str, prompt_style: str
    ) -> io.NodeOutput:
        """Encode the three texts, and show on the node what was changed in them."""
        formatted = ovi_prompt.format_prompt(prompt, prompt_style)
        positive, for_video, for_audio = (
            encode(clip, text) for text in (formatted.text, video_negative, audio_negative)
        )
        negative = [
            [torch.cat([video, audio], dim=-1), values]
            for (video, values), (audio, _) in zip(for_video.conditioning, for_audio.conditioning, strict=True)
        ]
        named = {"Prompt": positive, "Video negative": for_video, "Audio negative": for_audio}
        notes = [truncation(name, encoded) for name, encoded in named.items() if encoded.truncated]
        notes += [*ovi_prompt.doubts(prompt, prompt_style), *formatted.notes]
        if not positive.truncated:
            notes.append(f"Prompt: {positive.tokens} of {TEXT_LEN} tokens")
        style = {STYLE_KEY: prompt_style}
        prompts = (node_helpers.conditioning_set_values(each, style) for each in (positive.conditioning, negative))
        return io.NodeOutput(*prompts, ui=show(cls, notes))
