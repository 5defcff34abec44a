"""The text encoders of the miniature: UMT5 of one random layer, in files with ComfyUI's names.

Random attention loses the order of the words. In the talking world each head therefore looks at one place, some words
before or after a word's own. Its tokenizer has a token for each word that stands between spaces, so that every syllable
is one token, and none is found in "small" or "says". `python -m miniature.text` writes its file.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from miniature import WEIGHTS, speech, world
from miniature.initial import CONFIG

TALKING = WEIGHTS / "umt5_talking.safetensors"  # the text encoder of the talking world

PADDING, END, UNKNOWN = 0, 1, 2  # tokens
FIRST = 3  # token of a word

AROUND = (-1, -2, -3, -4, -5, -6, -7, 1)  # places that the heads look at, counted from a word's own
LOOK = 12.0  # logit there; it is the negative elsewhere
QUERY_SCALE = 0.05  # of random queries: what a word is changes little where a head looks
OUTPUT_SCALE = 1.5  # of what the heads find, next to the word itself
BUCKETS, EXACT, FARTHEST = 16, 8, 128  # T5's: of distances to one side, those of one place each, the last one's

WORDS = sorted(
    {
        *("A", "face", "on", "the", "says", "<S>", "<E>", ".", "Audio:", "a", "voice"),
        *(*world.COLOURS, *speech.RADII, *speech.SIDES, *speech.VOICES, *speech.PACES),
        *speech.SYLLABLES,
    }
)


def tokenizer(sentences: Sequence[str], kind: str, size: int) -> Tensor:
    """Train a sentencepiece model of a kind and of at most this size on sentences; return its file as bytes."""
    import sentencepiece  # not needed to read captions

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=size, model_type=kind,
        hard_vocab_limit=False, character_coverage=1.0, normalization_rule_name="identity",
        pad_id=PADDING, eos_id=END, unk_id=UNKNOWN, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)


def layer(vocabulary: int, heads: int, seed: int) -> dict[str, Tensor]:
    """Draw the weights of a UMT5 of one layer, in float16."""
    width, hidden = CONFIG.text_dim, 2 * CONFIG.text_dim
    attention, gated = "encoder.block.0.layer.0.SelfAttention", "encoder.block.0.layer.1.DenseReluDense"
    shapes = {f"{attention}.{name}.weight": (width, width) for name in "qkvo"}
    shapes |= {
        "shared.weight": (vocabulary, width),
        f"{attention}.relative_attention_bias.weight": (2 * BUCKETS, heads),
        f"{gated}.wi_0.weight": (hidden, width),
        f"{gated}.wi_1.weight": (hidden, width),
        f"{gated}.wo.weight": (width, hidden),
    }
    draw = torch.Generator().manual_seed(seed)
    weights = {}
    for key, shape in shapes.items():
        scale = 1.0 if key == "shared.weight" else shape[1] ** -0.5
        weights[key] = (torch.randn(shape, generator=draw) * scale).half()
    norms = "encoder.block.0.layer.0.layer_norm", "encoder.block.0.layer.1.layer_norm", "encoder.final_layer_norm"
    return weights | {f"{norm}.weight": torch.ones(width).half() for norm in norms}


def talking_weights(seed: int = 0) -> dict[str, Tensor]:
    """Return the text encoder of the talking world, with its tokenizer."""
    weights = layer(FIRST + len(WORDS), len(AROUND), seed)
    attention = "encoder.block.0.layer.0.SelfAttention"
    looks = torch.full((2 * BUCKETS, len(AROUND)), -LOOK)
    looks[_bucket(torch.tensor(AROUND)), torch.arange(len(AROUND))] = LOOK
    weights[f"{attention}.relative_attention_bias.weight"] = looks.half()
    weights[f"{attention}.q.weight"] *= QUERY_SCALE
    weights[f"{attention}.o.weight"] *= OUTPUT_SCALE
    return weights | {"spiece_model": tokenizer([" ".join(WORDS)], "word", FIRST + len(WORDS))}


def tokens(captions: Sequence[str]) -> Tensor:
    """Return the tokens [N, text_len] of captions of the talking world, padded; the tokenizer gives the same.

    Sentencepiece numbers words that are equally frequent in the order of their characters.
    """
    known = {word: FIRST + i for i, word in enumerate(WORDS)}
    rows = [[known.get(word, UNKNOWN) for word in caption.split()] + [END] for caption in captions]
    return torch.tensor([row + [PADDING] * (CONFIG.text_len - len(row)) for row in rows])


def contexts(captions: Sequence[str], weights: Mapping[str, Tensor]) -> Tensor:
    """Encode captions of the talking world, [N, text_len, text_dim], as ComfyUI does, but without it and at once."""
    weights = {name: tensor.float() for name, tensor in weights.items() if tensor.is_floating_point()}
    prefix = "encoder.block.0.layer."
    ids = tokens(captions).to(weights["shared.weight"].device)
    read = ids != PADDING

    def normed(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weights[f"{name}.weight"], eps=1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{prefix}{name}.weight"].T

    x = weights["shared.weight"][ids]
    here = normed(x, f"{prefix}0.layer_norm")
    looks = weights[f"{prefix}0.SelfAttention.relative_attention_bias.weight"]
    q, k, v = (
        linear(here, f"0.SelfAttention.{name}").unflatten(2, (looks.shape[1], -1)).transpose(1, 2) for name in "qkv"
    )
    places = torch.arange(ids.shape[1], device=ids.device)
    bias = looks[_bucket(places - places[:, None])].permute(2, 0, 1)  # [heads, T, T]
    bias = bias.masked_fill(~read[:, None, None], -math.inf)
    found = F.scaled_dot_product_attention(q, k, v, bias, scale=1.0).transpose(1, 2).flatten(2)
    x = x + linear(found, "0.SelfAttention.o")
    here = normed(x, f"{prefix}1.layer_norm")
    gated = F.gelu(linear(here, "1.DenseReluDense.wi_0"), approximate="tanh") * linear(here, "1.DenseReluDense.wi_1")
    x = x + linear(gated, "1.DenseReluDense.wo")
    return normed(x, "encoder.final_layer_norm") * read[..., None]


def _bucket(distance: Tensor) -> Tensor:
    """Return T5's number of the place at a distance: those farther than 8 share numbers by their logarithm."""
    far = distance.abs().clamp(min=EXACT) / EXACT
    far = EXACT + (far.log() / math.log(FARTHEST / EXACT) * (BUCKETS - EXACT)).long().clamp(max=BUCKETS - EXACT - 1)
    return torch.where(distance.abs() < EXACT, distance.abs(), far) + BUCKETS * (distance > 0)


if __name__ == "__main__":
    save_file(talking_weights(), TALKING)
