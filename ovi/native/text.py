"""Prompts through ComfyUI's UMT5-XXL."""

from __future__ import annotations

from typing import Any, NamedTuple

import comfy.sd
import torch

from ..config import TEXT_LEN
from ..prompt import clean

TOKENIZER = "umt5xxl"
PADDING = 0  # UMT5's padding token

Conditioning = list[list[Any]]


class EncodedText(NamedTuple):
    """A text's conditioning, and how many tokens it has: those beyond 512 are truncated."""

    conditioning: Conditioning
    tokens: int

    @property
    def truncated(self) -> int:
        """The tokens that Ovi does not read."""
        return max(0, self.tokens - TEXT_LEN)


def tokenize(clip: comfy.sd.CLIP, text: str) -> tuple[dict[str, Any], list[Any]]:
    """Tokenise a text as written, without weights; return all tokens, for the text encoder, and those of the text.

    Raises ValueError for a text encoder other than UMT5-XXL.
    """
    tokens = clip.tokenize(clean(text), disable_weights=True)
    if TOKENIZER not in tokens:
        raise ValueError(
            f"Ovi reads UMT5-XXL, but the CLIP given reads {' and '.join(tokens)}; load umt5_xxl_fp16.safetensors "
            "or umt5_xxl_fp8_e4m3fn_scaled.safetensors (Comfy-Org/Wan_2.2_ComfyUI_Repackaged) with 'Load CLIP', type "
            "wan."
        )
    (row,) = tokens[TOKENIZER]
    return tokens, [token for token in row if not _is_padding(token[0])]


def _is_padding(token: Any) -> bool:
    return not isinstance(token, torch.Tensor) and token == PADDING  # a tensor is a vector of `embedding:NAME`


def encode(clip: comfy.sd.CLIP, text: str) -> EncodedText:
    """Encode a text with UMT5-XXL.

    Beyond 512 tokens it is truncated as in the Ovi release: the end-of-text token stays the last.
    """
    tokens, of_text = tokenize(clip, text)
    if len(of_text) > TEXT_LEN:
        tokens[TOKENIZER] = [[*of_text[: TEXT_LEN - 1], of_text[-1]]]
    return EncodedText(clip.encode_from_tokens_scheduled(tokens), len(of_text))


def beside(video: EncodedText, audio: EncodedText) -> Conditioning:
    """Return the conditioning in which each tower reads a text of its own, side by side."""
    pairs = zip(video.conditioning, audio.conditioning, strict=True)
    return [[torch.cat([of_video, of_audio], dim=-1), values] for (of_video, values), (of_audio, _) in pairs]
