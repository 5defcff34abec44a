"""The sizes of an Ovi model, read from the shapes of its tensors."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from . import geometry

HEAD_DIM = 128  # of every released Ovi and Wan model
TEXT_LEN = 512  # text tokens that both towers read
AUDIO_ROPE_SCALE = 0.19676  # maps 157 audio latents to about 31 latent frames of video
METADATA_KEY = "ovi_config"  # safetensors metadata entry (JSON) for what shapes cannot tell

_FROM_METADATA = ("num_heads", "text_len", "audio_rope_scale")
_BLOCK = re.compile(r"video_model\.blocks\.(\d+)\.")


@dataclass(frozen=True)
class OviConfig:
    """Sizes of the fused towers. The defaults are those of the released models (11.66 billion parameters)."""

    dim: int = 3072
    num_layers: int = 30
    num_heads: int = 24
    video_ffn_dim: int = 14336
    audio_ffn_dim: int = 14336
    audio_patch_dim: int = 8192  # hidden width of the audio patch embedding's gated convolutions
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = TEXT_LEN
    video_channels: int = geometry.VIDEO_CHANNELS
    audio_channels: int = geometry.AUDIO_CHANNELS
    patch_size: tuple[int, int, int] = (1, 2, 2)  # latent frames, height, width
    audio_rope_scale: float = AUDIO_ROPE_SCALE

    @property
    def head_dim(self) -> int:
        """The channels of one attention head."""
        return self.dim // self.num_heads

    @classmethod
    def from_state_dict(cls, sd: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> OviConfig:
        """Read every size from the shapes of a state dict with published key names.

        What shapes cannot tell (`num_heads` = dim // 128, `text_len`, `audio_rope_scale`) is overridden by the JSON
        object under "ovi_config" in `metadata`.

        Raises ValueError where a tensor that gives a size is missing or has the wrong number of dimensions, where 128
        does not divide `dim` and the metadata gives no `num_heads`, and for a temporal patch.
        """
        dim, video_channels, *patch = _shape(sd, "video_model.patch_embedding.weight", 5)
        if patch[0] != 1:
            raise ValueError(f"The video patch spans {patch[0]} latent frames; Ovi's spans 1.")
        given = json.loads((metadata or {}).get(METADATA_KEY, "{}"))
        if unknown := sorted(set(given) - set(_FROM_METADATA)):
            raise ValueError(f"The file's {METADATA_KEY} has {unknown}; known are {list(_FROM_METADATA)}.")
        if "num_heads" not in given and dim % HEAD_DIM:
            raise ValueError(
                f"The model is {dim} wide, which heads of {HEAD_DIM} channels do not divide; "
                f'the file\'s safetensors metadata needs num_heads: {{"{METADATA_KEY}": "{{\\"num_heads\\": ...}}"}}.'
            )
        config = cls(
            dim=dim,
            num_layers=1 + max((int(m[1]) for m in map(_BLOCK.match, sd) if m), default=-1),
            num_heads=dim // HEAD_DIM,
            video_ffn_dim=_shape(sd, "video_model.blocks.0.ffn.0.bias", 1)[0],
            audio_ffn_dim=_shape(sd, "audio_model.blocks.0.ffn.0.bias", 1)[0],
            audio_patch_dim=_shape(sd, "audio_model.patch_embedding.2.w1.weight", 3)[0],
            freq_dim=_inputs(sd, "video_model.time_embedding.0.weight"),
            text_dim=_inputs(sd, "video_model.text_embedding.0.weight"),
            video_channels=video_channels,
            audio_channels=_shape(sd, "audio_model.patch_embedding.0.weight", 3)[1],
            patch_size=(patch[0], patch[1], patch[2]),
        )
        return dataclasses.replace(config, **given)


def _inputs(sd: Mapping[str, Tensor], key: str) -> int:
    """Return how many numbers a matrix reads; in 4 bits, a byte holds two."""
    inputs = _shape(sd, key, 2)[1]
    return 2 * inputs if sd[key].dtype == torch.uint8 else inputs


def _shape(sd: Mapping[str, Tensor], key: str, ndim: int) -> tuple[int, ...]:
    if key not in sd:
        raise ValueError(f"The Ovi checkpoint has no tensor {key}; get a complete file.")
    shape = tuple(sd[key].shape)
    if len(shape) != ndim:
        raise ValueError(f"{key} has shape {list(shape)}, but a tensor of {ndim} dimensions is needed.")
    return shape
