"""The sizes of the miniature that speaks, and what its training starts from beside the weights of `initial`.

A syllable has to be said at its time: the audio tower has to know which token is where, and which word is which. Both
are hard to find by chance, so that attention heads start with them. docs/miniature.md says what each one brings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from miniature import initial, speech
from ovi import geometry
from ovi.model import AudioTower, OviModel

CONFIG = dataclasses.replace(initial.CONFIG, video_ffn_dim=80, audio_ffn_dim=80)  # small, for files of 32 MB in all
ROWS = speech.HEIGHT // geometry.SIZE_MULTIPLE

# The clock: the first and the last tokens carry a mark, and heads of the first blocks see how far away it is.
MARK_GAIN = 3.0  # of a mark in the tokens
CLOCK_HEADS = (0, 3, 3, 0), (0, 2, 3, 1), (1, 3, 2, 0), (1, 2, 2, 1)  # block, head, channel pair, mark (first, last)
CLOCK_KEY, CLOCK_QUERY = 0.9, 2.0  # how much a mark adds to the key, and the bias of the query that finds it
CLOCK_OTHERS = 0.2  # scale of the other weights of these heads' queries and keys
CLOCK_OUT = 3.0  # scale of what these heads hand on

# Words: heads of the text attention look at one place after the <S> each.
WORD_BIAS = 12.0  # of the query, and of the key where the place's word stands
WORD_OTHERS = 0.3  # scale of the other weights of the key
RIDGE = 1e-2  # added to the covariance of the texts, which has fewer dimensions than the width


@torch.no_grad()
def new_model(
    texts: Tensor, places: Sequence[int], *, clock: bool = True, words: bool = True, seed: int = 0
) -> OviModel:
    """Return a model with the weights to start from.

    `texts` [N, T, text_dim] are those of captions with as many syllables as there are `places`, their rows.
    """
    model = initial.new_model(CONFIG, ROWS, seed)
    if words:
        _look_at_words(model.audio_model, texts, places)
    if clock:
        _look_at_ends(model.audio_model, _mark_ends(model.audio_model))
    return model


def _look_at_words(tower: AudioTower, texts: Tensor, places: Sequence[int]) -> None:
    """Let heads of the text attention find the word of one place each, by what its row has more than the others."""
    embedded = tower.text_embedding(texts)  # [N, T, D]
    mean = embedded.mean((0, 1))
    spread = torch.cov((embedded - mean).flatten(0, 1).T) + RIDGE * torch.eye(CONFIG.dim)
    of_places = [embedded[:, place].mean(0) - mean for place in places]  # [D] each
    size = CONFIG.head_dim
    for i, block in enumerate(tower.blocks):
        attention = block.cross_attn
        for head in range(CONFIG.num_heads):
            if head == CONFIG.num_heads - 1 and i < len(tower.blocks) - 1:
                continue  # one head sees the whole text, except in the last block
            centre = of_places[(i + head) % len(of_places)]
            direction = torch.linalg.solve(spread, centre)
            response = WORD_BIAS / (centre @ direction)
            channels, along = slice(head * size, (head + 1) * size), F.normalize(torch.randn(size), dim=0)
            attention.k.weight[channels] *= WORD_OTHERS
            attention.k.weight[channels] += torch.outer(along, direction) * response
            attention.k.bias[channels] -= along * response * (mean @ direction)
            attention.q.bias[channels] += along * WORD_BIAS


def _mark_ends(tower: AudioTower) -> Sequence[Tensor]:
    """Mark the first three tokens in one direction [D] and the last three in another, which are returned.

    The first convolution makes a constant (see `initial`), but the gated ones see zeros beyond both ends: a channel
    that compares the middle with the three latents before it is zero except in the first three tokens.
    """
    first, _, gated = tower.patch_embedding
    n, middle = CONFIG.audio_channels, first.kernel_size[0] // 2
    constant, value = 2 * n, F.silu(first.bias[2 * n])
    columns = gated.w2.weight[:, :n, middle]  # of the noise, to which the marks are orthogonal
    marks = torch.linalg.qr(torch.cat([columns, torch.randn(CONFIG.dim, 2)], dim=1)).Q[:, n:].T
    before, after = range(middle), range(middle + 1, first.kernel_size[0])
    for channel, taps, mark in zip((n, n + 1), (before, after), marks, strict=True):
        for layer in (gated.w1, gated.w3):
            layer.weight[channel] = 0
        gated.w1.weight[channel, constant, middle] = initial.GATE_INPUT / value
        gated.w3.weight[channel, constant, middle] = len(taps) / value
        gated.w3.weight[channel, constant, list(taps)] = -1 / value
        gated.w2.weight[:, channel] = 0
        gated.w2.weight[:, channel, middle] = MARK_GAIN * mark
    return list(marks)


def _look_at_ends(tower: AudioTower, marks: Sequence[Tensor]) -> None:
    """Let heads look for a mark through a slow pair of channels, whose rotation tells how far away it is."""
    size = CONFIG.head_dim
    for block, head, pair, mark in CLOCK_HEADS:
        attention = tower.blocks[block].self_attn
        channels, channel = slice(head * size, (head + 1) * size), head * size + 2 * pair
        for layer in (attention.q, attention.k):
            layer.bias[channels] = 0
            layer.weight[channels] *= CLOCK_OTHERS
        attention.k.weight[channel] += CLOCK_KEY * marks[mark]
        attention.q.bias[channel] = CLOCK_QUERY
        attention.o.weight[:, channels] *= CLOCK_OUT
