"""The memory that a forward pass needs besides the weights."""

from __future__ import annotations

from collections.abc import Sequence

from .config import OviConfig


def tokens(config: OviConfig, grid: Sequence[int], audio_length: int) -> int:
    """Return the tokens of both towers, for a video latent of `grid` (frames, height, width) and audio latents."""
    frames, height, width = grid
    _, p, q = config.patch_size
    return frames * -(-height // p) * -(-width // q) + audio_length


def activation_bytes(config: OviConfig, batch: int, grid: Sequence[int], audio_length: int, element_size: int) -> int:
    """Return the bytes of activations at the peak of a forward pass without gradients.

    grid: latent frames, height and width of the video; audio_length: latent frames of the audio; element_size: bytes of
    a number.

    The peak is the end of a feed-forward: for each token the block's input, the residual stream, the hidden layer and
    the output. One more copy is counted for hosts that rotate queries and keys without a fused kernel: with its float32
    copies that comes to nine widths, slightly more than a feed-forward.
    """
    return tokens(config, grid, audio_length) * bytes_per_token(config, batch, element_size)


def bytes_per_token(config: OviConfig, batch: int, element_size: int) -> int:
    """Return what one token more, in each clip of a batch, adds to `activation_bytes`."""
    widths = 4 * config.dim + max(config.video_ffn_dim, config.audio_ffn_dim)
    rotations = config.head_dim // 2 * 4 * 4  # a 2 x 2 matrix of float32 for each pair of channels, whatever the batch
    return batch * widths * element_size + rotations
