"""How much memory a forward pass needs besides the weights."""

from __future__ import annotations

from collections.abc import Sequence

from .config import OviConfig


def activation_bytes(config: OviConfig, batch: int, grid: Sequence[int], audio_length: int, element_size: int) -> float:
    """Bytes of activations at the peak of a forward pass.

    grid: latent frames, height and width of the video; audio_length: latent frames of the audio; element_size: bytes of
    a number.
    """
    frames, height, width = grid
    _, p, q = config.patch_size
    tokens = frames * -(-height // p) * -(-width // q) + audio_length
    # The widest moment is a feed-forward: residual stream, modulated copy, hidden layer before and after GELU.
    return batch * tokens * 2 * (config.dim + max(config.video_ffn_dim, config.audio_ffn_dim)) * element_size
