"""Prompts: OviTextEncode."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..ovi import prompt as ovi_prompt
from ..ovi.config import TEXT_LEN
from .notes import show

TOKENIZER = "umt5xxl"
PADDING = 0  # UMT5's token of that meaning

PROMPT = (
    "A woman with short dark hair stands on a windy pier at dusk and looks into the camera. She smiles and says, "
    "<S>The sea sounds different tonight.<E> Waves break against the wood behind her.\n\n"
    "Audio: A calm female voice close to the microphone, waves and wind around it."
)


def tokenize(clip: Any, text: str) -> tuple[dict[str, Any], list[Any]]:
    """Tokens of a text as it is written, weights off: all, for the text encoder, and those that are not padding.

    Raises ValueError for another text encoder than UMT5-XXL.
    """
    tokens = clip.tokenize(ovi_prompt.clean(text), disable_weights=True)
    if TOKENIZER not in tokens:
        raise ValueError(
            f"Ovi reads UMT5-XXL, but the CLIP given reads {' and '.join(tokens)}; load umt5_xxl_fp16.safetensors "
            "or umt5_xxl_fp8_e4m3fn_scaled.safetensors (Comfy-Org/Wan_2.2_ComfyUI_Repackaged) with 'Load CLIP', type "
            "wan."
        )
    (row,) = tokens[TOKENIZER]
    return tokens, [token for token in row if token[0] != PADDING]


def encode(clip: Any, text: str) -> tuple[list[list[Any]], str]:
    """Encode a text with UMT5-XXL; return its conditioning and a note on its tokens.

    What goes beyond 512 tokens is cut as published: the end-of-text token stays the last.
    """
    tokens, written = tokenize(clip, text)
    note = f"{len(written)} of {TEXT_LEN} tokens"
    if len(written) > TEXT_LEN:
        tokens[TOKENIZER] = [[*written[: TEXT_LEN - 1], written[-1]]]
        note = f"{len(written)} tokens: the last {len(written) - TEXT_LEN} were cut, Ovi reads {TEXT_LEN}"
    return clip.encode_from_tokens_scheduled(tokens), note


class OviTextEncode(io.ComfyNode):
    """One prompt for both towers, and a negative one for each."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="OviTextEncode",
            display_name="Ovi Text Encode",
            category="Ovi",
            description="Encodes the prompt, which both towers read, and a negative prompt for each tower. Words "
            "between <S> and <E> are spoken. Weights such as (word:1.5) have no effect.",
            search_aliases=["ovi prompt", "ovi negative", "speech tags", "audcap"],
            inputs=[
                io.Clip.Input("clip", tooltip="UMT5-XXL, from 'Load CLIP' with type wan."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default=PROMPT,
                    tooltip="What is seen, what is said between <S> and <E>, and at the end how it sounds: 'Audio: "
                    "...' or <AUDCAP>...<ENDAUDCAP>, turned into what the prompt style wants.",
                ),
                io.String.Input(
                    "video_negative",
                    multiline=True,
                    dynamic_prompts=True,
                    default=ovi_prompt.VIDEO_NEGATIVE,
                    tooltip="What the picture should not have.",
                ),
                io.String.Input(
                    "audio_negative",
                    multiline=True,
                    dynamic_prompts=True,
                    default=ovi_prompt.AUDIO_NEGATIVE,
                    tooltip="What the sound should not have.",
                ),
                io.Combo.Input(
                    "prompt_style",
                    options=list(ovi_prompt.STYLES),
                    default="960x960_5s",
                    tooltip="The checkpoint: 720x720_5s (model.safetensors) was trained with <AUDCAP>, the 960x960 "
                    "ones with 'Audio:'. 'as written' changes nothing.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", display_name="positive"),
                io.Conditioning.Output(
                    "negative", display_name="negative", tooltip="Both negative texts, side by side, for an Ovi model."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, clip: Any, prompt: str, video_negative: str, audio_negative: str, prompt_style: str
    ) -> io.NodeOutput:
        """Encode the three texts, and show on the node what was done to the prompt."""
        formatted = ovi_prompt.format_prompt(prompt, prompt_style)
        positive, note = encode(clip, formatted.text)
        of_video, video_note = encode(clip, video_negative)
        of_audio, audio_note = encode(clip, audio_negative)
        negative = [
            [torch.cat([video, audio], dim=-1), values]
            for (video, values), (audio, _) in zip(of_video, of_audio, strict=True)
        ]
        notes = [f"Prompt: {note}", *formatted.notes]
        notes += [
            f"{which} negative: {cut}" for which, cut in (("Video", video_note), ("Audio", audio_note)) if "cut" in cut
        ]
        return io.NodeOutput(positive, negative, ui=show(cls, notes))
