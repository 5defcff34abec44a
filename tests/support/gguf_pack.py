"""A stand-in for the pack ComfyUI-GGUF and the library gguf, with their names: files, reader, layers, patcher.

Its files hold what `write` was given, in PyTorch's format; `Q8_0` is the true one, blocks of 32 numbers with a scale.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

F32, F16, Q8_0 = 0, 1, 8
BLOCK = 32


def write(path: Path, tensors: Mapping[str, Tensor], kind: int, fields: Mapping[str, str] | None = None) -> None:
    """Write a file: F16 as a whole; Q8_0 where rows divide into blocks, of matrices and (as others do) of biases."""
    stored = {}
    for key, tensor in tensors.items():
        quantised = tensor.shape[-1] % BLOCK == 0 and (tensor.ndim == 2 or key.endswith(".bias"))
        this = kind if quantised or kind == F16 else F32
        stored[key] = this, tuple(tensor.shape), _packed(tensor, this)
    torch.save({"tensors": stored, "fields": dict(fields or {})}, path)


def _packed(tensor: Tensor, kind: int) -> Tensor:
    if kind != Q8_0:
        return tensor.to({F32: torch.float32, F16: torch.float16}[kind])
    blocks = tensor.float().reshape(-1, BLOCK)
    scale = (blocks.abs().amax(1, keepdim=True) / 127).half()
    numbers = (blocks / scale.float().clamp_min(1e-12)).round().clamp(-127, 127).to(torch.int8)
    rows = torch.cat([scale.view(torch.uint8), numbers.view(torch.uint8)], dim=1)
    return rows.reshape(*tensor.shape[:-1], -1)


def dequantized(data: Tensor, kind: int) -> Tensor:
    """Return the numbers of packed data, in the order of the tensor."""
    if kind != Q8_0:
        return data.float()
    blocks = data.reshape(-1, 2 + BLOCK)
    return blocks[:, 2:].contiguous().view(torch.int8) * blocks[:, :2].contiguous().view(torch.float16).float()


class GGMLTensor(torch.Tensor):
    """Packed data that says it has the shape of the tensor."""

    tensor_type: int
    tensor_shape: torch.Size
    patches: list[Any]

    @staticmethod
    def of(data: Tensor, kind: int, shape: tuple[int, ...]) -> GGMLTensor:
        """Wrap packed data."""
        tensor = data.as_subclass(GGMLTensor)
        tensor.tensor_type, tensor.tensor_shape, tensor.patches = kind, torch.Size(shape), []
        return tensor

    def to(self, *args: Any, **kwargs: Any) -> GGMLTensor:  # type: ignore[override]
        """Keep what the data is."""
        moved = GGMLTensor.of(super().to(*args, **kwargs), self.tensor_type, self.tensor_shape)
        moved.patches = list(getattr(self, "patches", []))
        return moved

    def detach(self) -> GGMLTensor:
        """Keep the object, as the pack does."""
        return self

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        """The shape of the tensor, not of its data."""
        return self.tensor_shape if hasattr(self, "tensor_shape") else self.size()


def install(monkeypatch: Any, folder_paths: Any, mappings: dict[str, Any], newer: bool) -> None:
    """Install the stand-in until the end of a test; the `newer` versions of the pack return metadata too."""
    import comfy.lora
    import comfy.model_patcher
    import comfy.ops

    def gguf_sd_loader(path: str) -> Any:
        held = torch.load(path)["tensors"]
        tensors = {key: GGMLTensor.of(data, kind, shape) for key, (kind, shape, data) in held.items()}
        return (tensors, {"arch_str": "wan"}) if newer else tensors

    class GGMLOps(comfy.ops.manual_cast):
        class Linear(comfy.ops.manual_cast.Linear):
            def __init__(self, in_features: int, out_features: int, bias: bool = True, **_: Any) -> None:
                torch.nn.Module.__init__(self)
                self.in_features, self.out_features, self.weight, self.bias = in_features, out_features, None, None

            def _load_from_state_dict(self, sd: Any, prefix: str, *_: Any) -> None:
                self.weight = torch.nn.Parameter(sd[f"{prefix}weight"], requires_grad=False)
                if f"{prefix}bias" in sd:
                    self.bias = torch.nn.Parameter(sd[f"{prefix}bias"], requires_grad=False)

            def forward(self, x: Tensor) -> Tensor:
                weight: Any = self.weight
                if isinstance(weight, GGMLTensor):
                    plain = dequantized(weight.as_subclass(Tensor), weight.tensor_type).view(weight.shape)
                    for patches, key in weight.patches:
                        plain = comfy.lora.calculate_weight(patches, plain, key)
                    weight = plain
                bias = None if self.bias is None else self.bias.to(x)
                return torch.nn.functional.linear(x, weight.to(x), bias)

    class GGUFModelPatcher(comfy.model_patcher.ModelPatcher):
        def patch_weight_to_device(self, key: str, device_to: Any = None, inplace_update: bool = False) -> None:
            weight = comfy.utils.get_attr(self.model, key)
            if not isinstance(weight, GGMLTensor):
                return super().patch_weight_to_device(key, device_to, inplace_update)
            if key in self.patches:
                weight.patches = [(self.patches[key], key)]
            return None

        def load(self, *args: Any, force_patch_weights: bool = False, **kwargs: Any) -> Any:
            return super().load(*args, force_patch_weights=True, **kwargs)

        def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> Any:
            for weight in self.model.parameters():
                if unpatch_weights and isinstance(weight, GGMLTensor):
                    weight.patches = []
            return super().unpatch_model(device_to=device_to, unpatch_weights=unpatch_weights)

        def clone(self, *args: Any, **kwargs: Any) -> Any:
            source, self.__class__ = self.__class__, GGUFModelPatcher
            copy = super().clone(*args, **kwargs)
            self.__class__ = source
            return copy

    def get_field(path: str, name: str) -> Any:
        value = torch.load(path)["fields"].get(name)
        return value and SimpleNamespace(parts=[b"", value.encode()], data=[1])

    pack, library = ModuleType("gguf_stand_in.nodes"), ModuleType("gguf")
    loader = type("UnetLoaderGGUF", (), {"__module__": pack.__name__})
    for value in (gguf_sd_loader, GGMLOps, GGUFModelPatcher, loader):
        setattr(pack, value.__name__, value)
    library.GGUFReader = lambda path: SimpleNamespace(get_field=lambda name: get_field(path, name))
    library.dequantize = lambda data, kind: dequantized(torch.from_numpy(data), kind).numpy()
    monkeypatch.setitem(sys.modules, pack.__name__, pack)
    monkeypatch.setitem(sys.modules, library.__name__, library)
    monkeypatch.setitem(mappings, "UnetLoaderGGUF", loader)
    folders = folder_paths.folder_names_and_paths
    monkeypatch.setitem(folders, "unet_gguf", (folders["diffusion_models"][0], {".gguf"}))
