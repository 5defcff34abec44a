"""The formulas of the Ovi release, step by step: the cost of a literal port.

As in the release's code, each token has a time embedding and a modulation of its own, norms are computed in float32,
and queries and keys are rotated as complex numbers in float64. It runs on an OviModel's weights and returns its
outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovi.config import OviConfig
from ovi.model import EPS, Block, OviModel, Tower, sinusoid
from ovi.rope import THETA, axis_channels


class Transcription(nn.Module):
    """A model that is called as OviModel is, with both latents and a timestep [B]."""

    def __init__(self, config: OviConfig, **options: Any) -> None:
        super().__init__()
        self.ovi = OviModel(config, **options)

    def forward(self, x: list[Tensor], timestep: Tensor, context: Tensor) -> list[Tensor]:
        """Return the velocities of [video [B, C, F, H, W] with even H and W, audio [B, C, L]]."""
        config = self.ovi.config
        video_latent, audio_latent = x
        *_, frames, height, width = video_latent.shape
        grid = (frames, height // 2, width // 2)
        video = self.ovi.video_model.patch_embedding(video_latent).flatten(2).transpose(1, 2)
        audio = self.ovi.audio_model.patch_embedding(audio_latent).transpose(1, 2)
        rotations = (
            video_rotations(grid, config.head_dim, video.device),
            audio_rotations(audio.shape[1], config, audio.device),
        )
        video_state = embed(self.ovi.video_model, timestep, video, context)
        audio_state = embed(self.ovi.audio_model, timestep, audio, context)
        for pair in zip(self.ovi.video_model.blocks, self.ovi.audio_model.blocks, strict=True):
            video, audio = fuse(*pair, video, audio, video_state, audio_state, rotations)
        patches = head(self.ovi.video_model, video, video_state[0])
        patches = patches.view(-1, *grid, 2, 2, config.video_channels)
        velocity = torch.einsum("bfhwpqc->bcfhpwq", patches).reshape(video_latent.shape)
        return [velocity, head(self.ovi.audio_model, audio, audio_state[0]).transpose(1, 2)]


def embed(tower: Tower, timestep: Tensor, tokens: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the time [B, L, D] and modulation [B, L, 6, D] of each token, and the text [B, text_len, D]."""
    batch, length, _ = tokens.shape
    features = sinusoid(timestep[:, None].expand(-1, length).flatten(), tower.config.freq_dim)
    time = tower.time_embedding(features.to(tokens.dtype)).view(batch, length, -1)
    missing = tower.config.text_len - context.shape[1]
    text = tower.text_embedding(F.pad(context, (0, 0, 0, missing)))
    return time, tower.time_projection(time).unflatten(2, (6, -1)), text


def axis_rotations(positions: Tensor, channels: int, scale: float = 1.0) -> Tensor:
    """Return the rotations of positions [N] as unit complex numbers [N, channels / 2]."""
    powers = torch.arange(0, channels, 2, dtype=torch.float64, device=positions.device) / channels
    angles = torch.outer(positions.double(), scale * THETA**-powers)
    return torch.polar(torch.ones_like(angles), angles)


def video_rotations(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> Tensor:
    """Return the rotations of a token grid (frames, height, width): [L, 1, head_dim / 2]."""
    positions = torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij")
    axes = zip(positions, axis_channels(head_dim), strict=True)
    return torch.cat([axis_rotations(p.flatten(), channels) for p, channels in axes], dim=1)[:, None]


def audio_rotations(length: int, config: OviConfig, device: torch.device) -> Tensor:
    """Return the rotations of the audio tokens: [L, 1, head_dim / 2], none in the channels of height and width."""
    time, *space = axis_channels(config.head_dim)
    in_time = axis_rotations(torch.arange(length, device=device), time, config.audio_rope_scale)
    return F.pad(in_time, (0, sum(space) // 2), value=1.0)[:, None]


def rotate(x: Tensor, rotation: Tensor, heads: int) -> Tensor:
    """Rotate x [B, L, D] head by head, by [L, 1, head_dim / 2]."""
    pairs = torch.view_as_complex(x.double().unflatten(2, (heads, -1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(2).to(x.dtype)


def layer_norm(x: Tensor, module: nn.Module) -> Tensor:
    """Return the layer norm of x [B, L, D], computed in float32."""
    weight, bias = (None if p is None else p.float() for p in (module.weight, module.bias))
    return F.layer_norm(x.float(), x.shape[-1:], weight, bias, EPS).to(x.dtype)


def rms_norm(x: Tensor, module: nn.Module) -> Tensor:
    """Return the RMS norm of x [B, L, D] over all heads together, computed in float32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype) * module.weight


def attend_self(block: Block, x: Tensor, modulation: Tensor, rotation: Tensor) -> Tensor:
    """Add the gated self-attention to x [B, L, D]."""
    attention = block.self_attn
    shift, scale, gate, *_ = (m.squeeze(2) for m in (block.modulation.modulation + modulation).chunk(6, dim=2))
    y = layer_norm(x, block.norm1) * (1 + scale) + shift
    q = rotate(rms_norm(attention.q(y), attention.norm_q), rotation, attention.heads)
    k = rotate(rms_norm(attention.k(y), attention.norm_k), rotation, attention.heads)
    return x + attention.o(attention.attention(q, k, attention.v(y), attention.heads)) * gate


def attend_cross(
    block: Block, x: Tensor, text: Tensor, other: Tensor, rotation: Tensor, other_rotation: Tensor
) -> Tensor:
    """Add the attention to the text and to the other tower's tokens [B, L', D] to x [B, L, D]."""
    attention = block.cross_attn
    q = rms_norm(attention.q(layer_norm(x, block.norm3)), attention.norm_q)
    k = rms_norm(attention.k(text), attention.norm_k)
    out = attention.attention(q, k, attention.v(text), attention.heads)
    other = layer_norm(other, attention.pre_attn_norm_fusion)
    k = rotate(rms_norm(attention.k_fusion(other), attention.norm_k_fusion), other_rotation, attention.heads)
    q = rotate(q, rotation, attention.heads)
    out = out + attention.attention(q, k, attention.v_fusion(other), attention.heads)
    return x + attention.o(out)


def feed_forward(block: Block, x: Tensor, modulation: Tensor) -> Tensor:
    """Add the gated feed-forward to x [B, L, D]."""
    *_, shift, scale, gate = (m.squeeze(2) for m in (block.modulation.modulation + modulation).chunk(6, dim=2))
    widen, _, narrow = block.ffn
    y = layer_norm(x, block.norm2) * (1 + scale) + shift
    return x + narrow(F.gelu(widen(y), approximate="tanh")) * gate


def fuse(
    video_block: Block,
    audio_block: Block,
    video: Tensor,
    audio: Tensor,
    video_state: Any,
    audio_state: Any,
    rotations: Any,
) -> tuple[Tensor, Tensor]:
    """Run one fusion block. A state is (time, modulation, text); `rotations` are those of video and audio."""
    video = attend_self(video_block, video, video_state[1], rotations[0])
    audio = attend_self(audio_block, audio, audio_state[1], rotations[1])
    new_video = attend_cross(video_block, video, video_state[2], audio, *rotations)
    new_audio = attend_cross(audio_block, audio, audio_state[2], video, *reversed(rotations))
    return feed_forward(video_block, new_video, video_state[1]), feed_forward(audio_block, new_audio, audio_state[1])


def head(tower: Tower, x: Tensor, time: Tensor) -> Tensor:
    """Return the patches [B, L, out] of the tokens x [B, L, D] with their time [B, L, D]."""
    shift, scale = (m.squeeze(2) for m in (tower.head.modulation + time[:, :, None]).chunk(2, dim=2))
    return tower.head.head(layer_norm(x, tower.head.norm) * (1 + scale) + shift)
