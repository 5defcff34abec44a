"""What only tests and demo need, as a custom-node folder of its own: the product carries none.

Core's CLIPLoader opens no UMT5 but the full-size one, so here an empty file stands for a tiny random one, or for a
language model whose answer is always the same. Graphs run unchanged.
"""

from __future__ import annotations

import io as files
import string
from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
import sentencepiece
import torch
from comfy.supported_models_base import ClipTarget
from comfy.text_encoders import wan

import nodes

SENTENCES = (
    "a singer on a stage shouts: machines are here, the crowd roars back",
    "the red ball falls and bounces with a high clear bell",
    "warm male voice, soft piano, rain on a window",
    *(f"{character} {character}{character}" for character in string.printable if not character.isspace()),
)

ANSWER = "Sure:\nScene: A red ball on a stage.\nSpeech: The ball: It rains.\nAudio: A high clear bell."

TEXT_DIM = 64  # the width of the tiny text encoder


def tiny_clip() -> comfy.sd.CLIP:
    """Return a random two-layer UMT5 of ComfyUI's own class, with a tokenizer trained on the spot."""
    proto = files.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=proto, vocab_size=256, hard_vocab_limit=False,
        character_coverage=1.0, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    spiece = torch.frombuffer(bytearray(proto.getvalue()), dtype=torch.uint8)
    config = {
        "d_model": TEXT_DIM,
        "d_ff": 2 * TEXT_DIM,
        "d_kv": TEXT_DIM // 4,
        "num_heads": 4,
        "num_layers": 2,
        "vocab_size": sentencepiece.SentencePieceProcessor(model_proto=proto.getvalue()).vocab_size(),
    }
    clip = comfy.sd.CLIP(
        ClipTarget(wan.WanT5Tokenizer, wan.te(dtype_t5=torch.float32)),
        tokenizer_data={"spiece_model": spiece},
        model_options={"umt5xxl_model_config": config},
    )
    generator = torch.Generator().manual_seed(0)
    weights = clip.cond_stage_model.umt5xxl.transformer.state_dict()
    for key, value in weights.items():
        if value.ndim == 1:  # RMS norms
            weights[key] = torch.ones_like(value)
        else:
            scale = 1.0 if key == "shared.weight" else value.shape[1] ** -0.5
            weights[key] = torch.randn(value.shape, generator=generator) * scale
    clip.load_sd(weights)
    return clip


class LanguageModel:
    """What core's TextGenerate calls of a CLIP; the answer is always the same."""

    def __init__(self, answer: str) -> None:
        self.answer, self.asked = answer, ""

    def tokenize(self, text: str, **_options: Any) -> dict[str, list[str]]:
        """Keep the text."""
        self.asked = text
        return {"words": text.split()}

    def generate(self, tokens: dict[str, list[str]], **_options: Any) -> list[int]:
        """Return as many tokens as words."""
        return list(range(len(tokens["words"])))

    def decode(self, _ids: list[int]) -> str:
        """Return the answer."""
        return self.answer


load_clip = nodes.CLIPLoader.load_clip


def load_tiny_for_empty(loader: nodes.CLIPLoader, clip_name: str, *args: Any, **options: Any) -> tuple[Any]:
    """Load a text encoder as core does; for an empty file the tiny one, or a language model for one of that name."""
    if Path(folder_paths.get_full_path_or_raise("text_encoders", clip_name)).stat().st_size:
        return load_clip(loader, clip_name, *args, **options)
    return (LanguageModel(ANSWER) if clip_name.startswith("qwen") else tiny_clip(),)


nodes.CLIPLoader.load_clip = load_tiny_for_empty

NODE_CLASS_MAPPINGS: dict[str, type] = {}  # ComfyUI asks a custom node for its nodes; this one has none
