"""Rotary position embedding of both towers.

A table holds one rotation matrix for each token and channel pair, [1, L, 1, head_dim / 2, 2, 2] (ComfyUI's layout);
pairs are interleaved (channels 2j and 2j + 1), theta is 10000 and positions count from 0. Angles are computed in
float64 on the CPU, since not every device has float64, for each axis alone; only the small tables of the axes travel to
the device and are spread over the grid there.

Person references, as in DreamID-Omni (arXiv 2602.12160), follow the clip's tokens, far from them in time and each
person at a time of their own: image and voice of person j, counted from 1, stand at SLOT * j frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

THETA = 10000.0
SLOT = 150  # latent frames of the video: the time of the first person, and from each person to the next


def axis_channels(head_dim: int) -> tuple[int, int, int]:
    """Return the channels of a head that carry time, height and width: 128 → (44, 42, 42)."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def video_table(frames: int, height: int, width: int, head_dim: int, like: Tensor, images: int = 0) -> Tensor:
    """Return the rotations of a video token grid, w fastest: [1, L, 1, head_dim / 2, 2, 2].

    The grid is (frames + images, height, width): those of the clip at times 0, 1, ..., then reference images at the
    times of their persons, SLOT, 2 * SLOT, ... The table is float32 (float64 if `like` is) on `like`'s device.
    """
    time, rows, columns = axis_channels(head_dim)
    times = torch.cat([_count(frames), SLOT * (1 + _count(images))]) if images else _count(frames)
    grid = (frames + images, height, width)
    axes = [
        _axis(times, time, like).view(-1, 1, 1, time // 2, 2, 2),
        _axis(_count(height), rows, like).view(1, height, 1, -1, 2, 2),
        _axis(_count(width), columns, like).view(1, 1, width, -1, 2, 2),
    ]
    table = torch.cat([axis.expand(*grid, -1, 2, 2) for axis in axes], dim=3)
    return table.view(1, -1, 1, head_dim // 2, 2, 2)


def audio_table(
    length: int, head_dim: int, scale: float, like: Tensor, start: float = 0.0, voices: Sequence[int] = ()
) -> Tensor:
    """Return the rotations of audio tokens: [1, L, 1, head_dim / 2, 2, 2].

    The tokens are `length` of the clip, the first at position `start`, then reference voices of so many latents. Voice
    j counts from floor(SLOT / scale) * j: whole latents, so up to one of them before its person's time. `start` moves
    the clip alone. Only the channels of the video's time axis rotate, at `scale` times its frequencies; the others get
    the identity.
    """
    time, *_ = axis_channels(head_dim)
    slot = math.floor(SLOT / scale)  # in latents
    runs = [start + _count(length), *(slot * j + _count(voice) for j, voice in enumerate(voices, 1))]
    turning = _axis(torch.cat(runs), time, like, scale)
    still = torch.eye(2, dtype=turning.dtype, device=turning.device).expand(len(turning), (head_dim - time) // 2, 2, 2)
    return torch.cat([turning, still], dim=1).view(1, -1, 1, head_dim // 2, 2, 2)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the channel pairs of x [B, L, heads, head_dim] by a table; computed in the table's dtype, given in x's."""
    pairs = x.to(table.dtype).unflatten(-1, (-1, 1, 2))
    turned = torch.addcmul(table[..., 0] * pairs[..., 0], table[..., 1], pairs[..., 1])
    return turned.flatten(-2).to(x.dtype)


def _count(positions: int) -> Tensor:
    return torch.arange(positions, dtype=torch.float64)


def _axis(positions: Tensor, channels: int, like: Tensor, scale: float = 1.0) -> Tensor:
    """Return rotations [L, channels / 2, 2, 2] of the positions [L] of an axis, in float64.

    The angles are position * scale * THETA^(-2j / channels).
    """
    frequencies = scale * THETA ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
    angles = torch.outer(positions, frequencies)
    cos, sin = angles.cos(), angles.sin()
    matrices = torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))
    return matrices.to(torch.float64 if like.dtype == torch.float64 else torch.float32).to(like.device)
