"""Random weights, with which a model takes the time and the memory that it takes with trained ones."""

from __future__ import annotations

from torch import nn

from ovi.config import OviConfig
from ovi.model import OviModel
from ovi.tools.convert import FORMATS, MATRIX
from ovi.tools.frozen import FrozenLinear

# A third of the Ovi release's width, with its ratios.
CONFIG = OviConfig(dim=1024, num_layers=4, num_heads=8, video_ffn_dim=4784, audio_ffn_dim=4784, audio_patch_dim=2816)


def draw(model: nn.Module) -> None:
    """Draw a model's weights, in place, so that its numbers stay near unit size."""
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.02)


def quantise(model: OviModel, base: str) -> None:
    """Store a model's matrices as `base` (a key of `convert.FORMATS`), in place, as training has those of a file."""
    from comfy_kitchen.tensor import QuantizedTensor

    form = FORMATS[base]
    for name, weight in list(model.named_parameters()):
        if form and MATRIX.fullmatch(name):
            layer = name.removesuffix(".weight")
            stored = QuantizedTensor.from_float(weight.float(), form.layout, **form.options).state_dict("")
            scales = {"scale": stored["_scale"]}
            if "_scale_2" in stored:
                scales = {"scale": stored["_scale_2"], "block_scale": stored["_scale"]}
            linear = model.get_submodule(layer)
            assert isinstance(linear, nn.Linear)
            model.set_submodule(layer, FrozenLinear(form.name, stored[""], scales, linear))
