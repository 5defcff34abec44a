"""Rotary position embedding of both towers.

A table holds one rotation matrix for each token and channel pair, [1, L, 1, head_dim / 2, 2, 2] (ComfyUI's layout);
pairs are interleaved (channels 2j and 2j + 1), theta is 10000 and positions count from 0. Angles are computed in
float64 on the CPU, since not every device has float64, for each axis alone; only the small tables of the axes travel to
the device and are spread over the grid there.
"""

from __future__ import annotations

import torch
from torch import Tensor

THETA = 10000.0


def axis_channels(head_dim: int) -> tuple[int, int, int]:
    """Return the channels of a head that carry time, height and width: 128 → (44, 42, 42)."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def video_table(frames: int, height: int, width: int, head_dim: int, like: Tensor) -> Tensor:
    """Return the rotations of a video token grid, w fastest: [1, frames * height * width, 1, head_dim / 2, 2, 2].

    The table is float32 (float64 if `like` is) on `like`'s device.
    """
    time, rows, columns = axis_channels(head_dim)
    grid = (frames, height, width)
    axes = [
        _axis(frames, time, like).view(frames, 1, 1, -1, 2, 2),
        _axis(height, rows, like).view(1, height, 1, -1, 2, 2),
        _axis(width, columns, like).view(1, 1, width, -1, 2, 2),
    ]
    table = torch.cat([axis.expand(*grid, -1, 2, 2) for axis in axes], dim=3)
    return table.view(1, frames * height * width, 1, head_dim // 2, 2, 2)


def audio_table(length: int, head_dim: int, scale: float, like: Tensor, start: float = 0.0) -> Tensor:
    """Return the rotations of audio tokens, the first at position `start`: [1, length, 1, head_dim / 2, 2, 2].

    Only the channels of the video's time axis rotate, at `scale` times its frequencies; the others get the identity.
    """
    time, *_ = axis_channels(head_dim)
    turning = _axis(length, time, like, scale, start)
    still = torch.eye(2, dtype=turning.dtype, device=turning.device).expand(length, (head_dim - time) // 2, 2, 2)
    return torch.cat([turning, still], dim=1).view(1, length, 1, head_dim // 2, 2, 2)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the channel pairs of x [B, L, heads, head_dim] by a table; computed in the table's dtype, given in x's."""
    pairs = x.to(table.dtype).unflatten(-1, (-1, 1, 2))
    turned = torch.addcmul(table[..., 0] * pairs[..., 0], table[..., 1], pairs[..., 1])
    return turned.flatten(-2).to(x.dtype)


def _axis(positions: int, channels: int, like: Tensor, scale: float = 1.0, start: float = 0.0) -> Tensor:
    """Return rotations [positions, channels / 2, 2, 2] of an axis: position * scale * THETA^(-2j / channels)."""
    frequencies = scale * THETA ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
    angles = torch.outer(start + torch.arange(positions, dtype=torch.float64), frequencies)
    cos, sin = angles.cos(), angles.sin()
    matrices = torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))
    return matrices.to(torch.float64 if like.dtype == torch.float64 else torch.float32).to(like.device)
