"""GGUF files through the pack ComfyUI-GGUF, where it is installed: its reader, its layers, its patcher.

The weights of linear layers, nearly all of the model, stay quantised until they are used. The rest is dequantised here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..files import shown

CONFIG_FIELD = "comfy.gguf.ovi_config"  # metadata that safetensors files have as `ovi_config`
_LOADER = "UnetLoaderGGUF"
_PACKED = "ovi_packed"  # attribute of an empty weight: the quantised one


def is_gguf(path: str) -> bool:
    """Return whether a file is called one of GGUF."""
    return path.lower().endswith(".gguf")


def pack(path: str) -> Any:
    """Return ComfyUI-GGUF's module of nodes. Raises ValueError where it is not installed; `path` needs it."""
    import nodes  # ComfyUI's; here, so that everything but GGUF does without it

    loader = nodes.NODE_CLASS_MAPPINGS.get(_LOADER)
    if loader is None:
        raise ValueError(
            f"{shown(path)} is a GGUF file, which needs the pack ComfyUI-GGUF (github.com/city96/ComfyUI-GGUF): "
            "install it, or take a safetensors file; fp8 is as small as Q8, nvfp4 as Q4."
        )
    return sys.modules[loader.__module__]


def read(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors and metadata; empty bf16 weights stand for quantised ones until `packed`.

    Raises ValueError for a file that ComfyUI-GGUF cannot read.
    """
    reader = pack(path)
    import gguf  # ComfyUI-GGUF needs it too

    try:
        loaded = reader.gguf_sd_loader(path)
        config = gguf.GGUFReader(path).get_field(CONFIG_FIELD)
        tensors = loaded[0] if isinstance(loaded, tuple) else loaded  # newer versions return metadata beside them
        metadata = {} if config is None else {"ovi_config": bytes(config.parts[config.data[-1]]).decode()}
        sd = {key: _prepared(key, tensor, gguf.dequantize) for key, tensor in tensors.items()}
    except Exception as error:  # damaged files raise anything
        raise ValueError(
            f"{shown(path)} cannot be read by ComfyUI-GGUF ({shown(error)}): it is damaged or of another model; "
            "download it again, or take a safetensors file of Ovi."
        ) from error
    return sd, metadata


def _prepared(key: str, tensor: Any, dequantize: Any) -> Tensor:
    """Return a tensor of ComfyUI-GGUF as a plain one, or as an empty one that holds the quantised weight."""
    shape, data = tuple(tensor.shape), tensor.as_subclass(Tensor)
    if data.is_floating_point():
        return data.view(shape)
    if len(shape) == 2 and key.endswith(".weight"):
        empty = torch.empty(shape, dtype=torch.bfloat16, device="meta")
        setattr(empty, _PACKED, tensor)
        return empty
    return torch.from_numpy(dequantize(data.numpy(), tensor.tensor_type)).view(shape)


def packed(sd: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with the quantised weights in the places of the empty ones."""
    return {key: getattr(tensor, _PACKED, tensor) for key, tensor in sd.items()}
