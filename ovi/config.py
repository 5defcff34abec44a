"""The sizes of an Ovi model, read from the shapes of its tensors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import geometry
from .files import read_json, shown

HEAD_DIM = 128  # of every released Ovi and Wan model
TEXT_LEN = 512  # text tokens that both towers read
AUDIO_ROPE_SCALE = 0.19676  # maps 157 audio latents to about 31 latent frames of video
REFERENCE_ROPE_SCALE = 0.197265625  # the same in DreamID-Omni, which rounded 31 / 157 to bfloat16
METADATA_KEY = "ovi_config"  # safetensors metadata entry (JSON) for what shapes cannot tell

# What a file may say, so that no number in it sizes more than a model could have.
MAX_SIZE = 2**20  # of a tensor's dimension
MAX_LAYERS = 128
MAX_TEXT_LEN = 8192
MAX_ROPE_SCALE = 16.0
MAX_METADATA = 10_000  # characters

_SCALES = ("audio_rope_scale", "reference_rope_scale")
_FROM_METADATA = ("num_heads", "text_len", *_SCALES)
_BLOCK = re.compile(r"video_model\.blocks\.(0|[1-9][0-9]{0,8})\.")


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
    reference_rope_scale: float = REFERENCE_ROPE_SCALE  # stands in for it in a clip with person references

    @property
    def head_dim(self) -> int:
        """The channels of one attention head."""
        return self.dim // self.num_heads

    @classmethod
    def from_state_dict(cls, sd: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> OviConfig:
        """Read every size from the shapes of a state dict with published key names.

        What shapes cannot tell (`num_heads` = dim // 128, `text_len`, `audio_rope_scale`, `reference_rope_scale`) is
        overridden by the JSON object under "ovi_config" in `metadata`.

        Raises ValueError where a tensor that gives a size is missing or has the wrong number of dimensions, where 128
        does not divide `dim` and the metadata gives no `num_heads`, for a temporal patch, for metadata that is
        unknown or of another type, and for a size that no model has.
        """
        dim, video_channels, *patch = _shape(sd, "video_model.patch_embedding.weight", 5)
        if patch[0] != 1:
            raise ValueError(f"The video patch spans {patch[0]} latent frames; Ovi's spans 1.")
        given = _given(metadata or {})
        if "num_heads" not in given and dim % HEAD_DIM:
            raise ValueError(
                f"The model is {dim} wide, which heads of {HEAD_DIM} channels do not divide; "
                f'the file\'s safetensors metadata needs num_heads: {{"{METADATA_KEY}": "{{\\"num_heads\\": ...}}"}}.'
            )
        config = cls(
            dim=dim,
            num_layers=_layers(sd),
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
        config = dataclasses.replace(config, **given)
        _check_sizes(config)
        return config


def _given(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return what the metadata says of a model, each value of the type that it must have."""
    text = metadata.get(METADATA_KEY, "{}")
    try:
        given = read_json(text, MAX_METADATA)
    except ValueError as error:
        raise ValueError(f"The file's {METADATA_KEY} is not JSON ({shown(error)}): {shown(text, 60)}") from error
    if not isinstance(given, dict):
        raise ValueError(f"The file's {METADATA_KEY} is {shown(text, 60)}, but a JSON object is needed.")
    if unknown := sorted(given.keys() - set(_FROM_METADATA)):
        raise ValueError(f"The file's {METADATA_KEY} has {shown(unknown)}; known are {list(_FROM_METADATA)}.")
    for name, value in given.items():
        types = (int, float) if name in _SCALES else (int,)
        if type(value) not in types:  # bool is an int
            needed = "a number" if float in types else "a whole number"
            raise ValueError(f"The file's {METADATA_KEY} gives {name} as {shown(repr(value), 60)}; {needed} is needed.")
    return given


def _layers(sd: Mapping[str, Tensor]) -> int:
    """Count the blocks; they are numbered from 0 without a gap."""
    numbers = {int(found[1]) for found in map(_BLOCK.match, sd) if found}
    gap = next((number for number in range(len(numbers)) if number not in numbers), None)
    if gap is not None:
        raise ValueError(f"The Ovi checkpoint has video_model.blocks.{max(numbers)} but no video_model.blocks.{gap}.")
    return len(numbers)


def _check_sizes(config: OviConfig) -> None:
    """Raise ValueError for sizes that no model has."""
    limits: dict[str, float] = {"num_layers": MAX_LAYERS, "text_len": MAX_TEXT_LEN}
    limits |= dict.fromkeys(_SCALES, MAX_ROPE_SCALE)
    for name, value in dataclasses.asdict(config).items():
        limit = limits.get(name, MAX_SIZE)
        for size in value if isinstance(value, tuple) else (value,):
            if not 0 < size <= limit:
                raise ValueError(
                    f"The Ovi checkpoint has {name} {shown(size, 60)}; more than 0, up to {limit}, is needed."
                )
    if config.dim % config.num_heads or config.head_dim % 2:
        raise ValueError(
            f"The Ovi checkpoint is {config.dim} wide with num_heads {config.num_heads}, which do not give heads of an "
            f"even width; its {METADATA_KEY} is wrong."
        )
    if config.freq_dim % 2:
        raise ValueError(f"The Ovi checkpoint has freq_dim {config.freq_dim}; an even number is needed.")


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
