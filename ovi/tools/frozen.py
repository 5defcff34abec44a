"""Quantised layers of a model that is not trained itself: LoRAs on the files that people generate with.

A weight stays in its format and is dequantised each time that it is used, in the forward and in the backward pass.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import quantised
from ..model import OviModel

LAYOUTS = {  # of comfy-kitchen, by ComfyUI's name of a format
    "float8_e4m3fn": "TensorCoreFP8Layout",
    "float8_e5m2": "TensorCoreFP8Layout",
    "int8_tensorwise": "TensorWiseINT8Layout",
    "mxfp8": "TensorCoreMXFP8Layout",
    "nvfp4": "TensorCoreNVFP4Layout",
}
BLOCK_SCALES = {"mxfp8": torch.float8_e8m0fnu, "nvfp4": torch.float8_e4m3fn}  # which files may hold as bytes


class _Form(NamedTuple):
    dtype: torch.dtype
    shape: torch.Size


class FrozenLinear(nn.Module):
    """A linear layer with a quantised weight and an exact bias, without a gradient for either."""

    def __init__(self, name: str, weight: Tensor, scales: Mapping[str, Tensor], like: nn.Linear) -> None:
        """`name` is the weight's format, `scales` are those of comfy-kitchen's layout; `like` has the layer's sizes."""
        super().__init__()
        self.in_features, self.out_features = like.in_features, like.out_features
        self.layout = LAYOUTS[name]
        self.bias = like.bias
        self.forms: dict[str, _Form] = {}
        for part, tensor in {"stored": weight, **scales}.items():
            self.forms[part] = _Form(tensor.dtype, tensor.shape)
            # As bytes, which keep their meaning where a module's floating-point numbers are converted.
            numbers = tensor.contiguous().flatten().view(torch.uint8)
            self.register_parameter(part, nn.Parameter(numbers, requires_grad=False))

    def parts(self) -> list[Tensor]:
        """Return the bytes of the weight and of its scales, in the order of `forms`."""
        return [getattr(self, part) for part in self.forms]

    def dequantised(self, dtype: torch.dtype, of: Sequence[Tensor] | None = None) -> Tensor:
        """Return the weight, [outputs, inputs], of the layer's own parts, or `of` some that it had before."""
        from comfy_kitchen.tensor import QuantizedTensor, get_layout_class

        stored_parts = self.parts() if of is None else of
        parts = {
            part: numbers.view(form.dtype).view(form.shape)
            for (part, form), numbers in zip(self.forms.items(), stored_parts, strict=True)
        }
        stored = parts.pop("stored")
        shape = self.out_features, self.in_features
        params = get_layout_class(self.layout).Params(**parts, orig_dtype=dtype, orig_shape=shape)
        weight: Tensor = QuantizedTensor(stored, self.layout, params).dequantize()
        return weight[: shape[0], : shape[1]]

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] → [..., outputs]."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        bias = self.bias
        y: Tensor = _Product.apply(x, self, *self.parts())  # type: ignore[no-untyped-call]
        return y if bias is None else y + bias.to(y.dtype)


class _Product(torch.autograd.Function):
    """x times a weight that is dequantised for it, and again for its gradient, so that it is stored in neither.

    The parts of the weight are saved as autograd saves a weight: by the backward pass the layer may have other ones.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear, *parts: Tensor) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(*parts)
        return F.linear(x, layer.dequantised(x.dtype, parts))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.saved_tensors
        return gradient @ ctx.layer.dequantised(gradient.dtype, parts), None, *(None for _ in parts)


def freeze(model: OviModel, sd: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace the quantised layers of a model, in place; return the tensors that are left to load.

    Raises ValueError for a format that cannot be trained on, and for a layer that needs more than its weight.
    """
    left = dict(sd)
    for layer, name in quantised.formats(sd).items():
        mark = json.loads(left.pop(f"{layer}{quantised.MARK}").numpy().tobytes())
        params = mark.get("params")
        rotated = mark.get("convrot") or (isinstance(params, dict) and params.get("convrot"))
        if name not in LAYOUTS or rotated or f"{layer}.pre_quant_scale" in sd:
            raise ValueError(
                f"{layer} is quantised as {name}{' with a rotation or a scale of its input' if name in LAYOUTS else ''}"
                f", which cannot be trained on; use {', '.join(LAYOUTS)} without those, or a file in bf16."
            )
        like = model.get_submodule(layer)
        if not isinstance(like, nn.Linear):
            raise ValueError(f"{layer} is quantised, but only linear layers can be trained on so; use a file in bf16.")
        weight, scale = left.pop(f"{layer}.weight"), left.pop(f"{layer}.weight_scale")
        scale = scale.view(BLOCK_SCALES[name]) if scale.dtype == torch.uint8 else scale
        scales = {"scale": scale}
        if name == "nvfp4":
            scales = {"scale": left.pop(f"{layer}.weight_scale_2"), "block_scale": scale}
        left.pop(f"{layer}.input_scale", None)  # of inputs in 8 bits, which training has in 16 or 32
        frozen = FrozenLinear(name, weight, scales, like)
        left |= {f"{layer}.{part}": numbers for part, numbers in zip(frozen.forms, frozen.parts(), strict=True)}
        model.set_submodule(layer, frozen)
    return left
