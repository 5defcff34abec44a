"""The miniature's sizes, and the weights that its training starts from.

Matrices are random. On top of that, noise passes through both towers at once, and attention heads start with a view of
their neighbours and of the other tower. The values were chosen together, to learn fast; none was measured alone
(docs/miniature.md). What each one does is said beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniature import world
from ovi import geometry
from ovi.config import OviConfig
from ovi.model import AudioTower, CrossAttention, OviModel, SelfAttention, Tower, VideoTower
from ovi.rope import THETA, axis_channels

CONFIG = OviConfig(
    dim=256,
    num_layers=4,
    num_heads=4,
    video_ffn_dim=256,
    audio_ffn_dim=256,
    audio_patch_dim=48,
    freq_dim=64,
    text_dim=64,
    text_len=32,
)

# Scales of random weights, 1 being the one that keeps the variance from input to output.
TIME_SCALE = 0.1  # last matrix of the time embedding: at first the timestep changes the modulation little
RESIDUAL_SCALE = 0.3  # the matrices whose output is added to the tokens: what a block changes is small at first
QUERY_KEY_SCALE = 0.6  # queries and keys: more of them comes from their biases, the views below
QUERY_KEY_NORM = 1.6  # weight of their norms (else 1): products of query and key are 1.6^2 = 2.56 times as large
GATES = [2, 5]  # places in a block's modulation (shift, scale, gate of attention, then of the feed-forward) ...
GATE = 1.0  # ... and their value: open, so that both are added in full

# Views: what a head looks at, as a distance from the query's token. In time the unit is a video latent of 4 frames (1/6
# second), for audio tokens, too; in height it is a row of video tokens (32 pixels), counted downwards.
VIEW_BIAS = 3.0  # length of the biases of query and key in each channel pair that carries a view
VIEW_PAIRS = 3  # channel pairs of an axis that carry it: the fastest, which can tell neighbours apart
VIDEO_REACH = (1.0, 2.0)  # how far back and ahead the video looks at itself, in even and in odd blocks
VIDEO_ROW = (1.0, -1.0)  # the row it looks at: the next one below in even blocks, above in odd ones
AUDIO_REACH = (0.5, 1.0)  # how far back and ahead the audio looks at itself, in even and in odd blocks
TOKEN_ROWS = world.HEIGHT // geometry.SIZE_MULTIPLE  # each has an audio head of its own
# Latent k stands at position k, but holds frames 4k - 3 to 4k, whose middle is at (4k - 1.5) / 4 = k - 0.375.
VIDEO_DELAY = 0.4
AUDIO_AROUND = (-0.3, 0.0, 0.3)  # moments of the audio, 50 ms apart, that one video head each looks at

# The way of the noise through the audio's patch embedding, see `_pass_audio`.
CONSTANT_BIAS = 2.0  # bias of the constant channel, whose value is silu(2) = 1.76
GATE_INPUT = 2.0  # argument of the SiLU that gates the noise: it passes with a factor of silu(2) = 1.76
TOKEN_GAIN = 2.0  # factor from there to the tokens
OTHER_SCALE = 0.3  # scale of the last convolution's other weights, which mix random features into the tokens


class View(NamedTuple):
    """How far from its token a head looks in time and in height (units: see above); None: anywhere."""

    time: float | None = None
    rows: float | None = None


@torch.no_grad()
def new_model(config: OviConfig = CONFIG, rows: int = TOKEN_ROWS, seed: int = 0) -> OviModel:
    """Return a model with the weights to start from, for a world whose frames are `rows` of tokens high."""
    torch.manual_seed(seed)
    model = OviModel(config)
    _draw(model)
    for tower in (model.video_model, model.audio_model):
        _scale(tower)
    _pass_video(model.video_model)
    _pass_audio(model.audio_model)
    _set_views(model, rows)
    return model


def _draw(model: OviModel) -> None:
    """Draw matrices that keep the variance from input to output; set norms to 1, biases and modulation to 0."""
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter.fill_(1.0)
        elif parameter.ndim == 1 or name.endswith("modulation"):
            parameter.zero_()
        else:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)


def _scale(tower: Tower) -> None:
    """Scale the random weights of a tower's blocks and time embedding, and open the gates."""
    tower.time_embedding[2].weight.mul_(TIME_SCALE)
    for block in tower.blocks:
        block.modulation.modulation[:, GATES] = GATE
        for layer in (block.self_attn.o, block.cross_attn.o, block.ffn[2]):
            layer.weight.mul_(RESIDUAL_SCALE)
        here, other = block.self_attn, block.cross_attn
        for layer in (here.q, here.k, other.q, other.k, other.k_fusion):
            layer.weight.mul_(QUERY_KEY_SCALE)
        for norm in (here.norm_q, here.norm_k, other.norm_q, other.norm_k, other.norm_k_fusion):
            norm.weight.fill_(QUERY_KEY_NORM)


def _pass_video(tower: VideoTower) -> None:
    """Pass the noise through: orthonormal columns in the patch embedding, their transpose in the head."""
    patch = tower.patch_embedding
    columns = _orthonormal(CONFIG.dim, patch.weight[0].numel())
    patch.weight.copy_(columns.view_as(patch.weight))
    back = patch.weight.permute(3, 4, 1, 0, 2).reshape(-1, CONFIG.dim)  # rows (p, q, C), channel fastest
    tower.head.head.weight.copy_(back * _norm_undone(len(back)))


def _pass_audio(tower: AudioTower) -> None:
    """Pass the noise through the gated convolutions of the patch embedding, and back in the head.

    The first convolution makes x, -x and a constant. From these the gated ones make silu(x) - silu(-x) = x, times a
    constant gate.
    """
    first, _, gated = tower.patch_embedding
    n, middle = CONFIG.audio_channels, first.kernel_size[0] // 2
    plus, minus, constant = slice(n), slice(n, 2 * n), 2 * n  # channels of the first convolution
    eye = torch.eye(n)
    first.weight[: constant + 1] = 0
    first.weight[plus, :, middle], first.weight[minus, :, middle] = eye, -eye
    first.bias[constant] = CONSTANT_BIAS
    for layer in (gated.w1, gated.w3):
        layer.weight[:n] = 0
    gated.w1.weight[:n, constant, middle] = GATE_INPUT / F.silu(first.bias[constant])
    gated.w3.weight[:n, plus, middle], gated.w3.weight[:n, minus, middle] = eye, -eye
    columns = _orthonormal(CONFIG.dim, n)
    gated.w2.weight.mul_(OTHER_SCALE)
    gated.w2.weight[:, :n] = 0
    gated.w2.weight[:, :n, middle] = columns * TOKEN_GAIN
    tower.head.head.weight.copy_(columns.T * _norm_undone(n))


def _orthonormal(rows: int, columns: int) -> Tensor:
    """Draw a matrix [rows, columns] with orthonormal columns."""
    return torch.linalg.qr(torch.randn(rows, columns)).Q


def _norm_undone(channels: int) -> float:
    """Return the factor by which the head undoes its layer norm, where the tokens are `channels` independent numbers.

    Spread over the width by orthonormal columns, they have channels / dim of their variance, and the norm makes it 1.
    """
    return (channels / CONFIG.dim) ** 0.5


def _set_views(model: OviModel, rows: int) -> None:
    """Let the heads of every block look at their neighbours and at the other tower."""
    audio_to_video = [View(VIDEO_DELAY, float(row)) for row in range(rows)]  # audio tokens stand in row 0
    video_to_audio = [View(-VIDEO_DELAY + moment) for moment in AUDIO_AROUND]
    for i, (video, audio) in enumerate(zip(model.video_model.blocks, model.audio_model.blocks, strict=True)):
        reach, row = VIDEO_REACH[i % 2], VIDEO_ROW[i % 2]
        look(video.self_attn, [View(-reach), View(reach), View(rows=row), View()])
        reach = AUDIO_REACH[i % 2]
        look(audio.self_attn, [View(-reach), View(reach), View(0.0), View()])
        look(audio.cross_attn, [*audio_to_video, View(VIDEO_DELAY)])
        look(video.cross_attn, [*video_to_audio, View()])


def look(attention: SelfAttention, views: Sequence[View]) -> None:
    """Give each head its view, by the biases of query and key: rotary positions turn a constant into a window.

    In cross-attention it is a view of the other tower.
    """
    key = attention.k_fusion if isinstance(attention, CrossAttention) else attention.k
    time, rows, _ = axis_channels(CONFIG.head_dim)
    for head, view in enumerate(views):
        start = head * CONFIG.head_dim
        for distance, first, channels in ((view.time, start, time), (view.rows, start + time, rows)):
            if distance is None:
                continue
            for pair in range(VIEW_PAIRS):
                angle = distance * THETA ** (-2 * pair / channels)
                channel = first + 2 * pair
                attention.q.bias[channel] = VIEW_BIAS * math.cos(angle)
                attention.q.bias[channel + 1] = VIEW_BIAS * math.sin(angle)
                key.bias[channel] = VIEW_BIAS
