"""LoRAs on quantised models, as `ovi.tools.convert` writes them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ovi import flow
from ovi.lora import Lora, add_lora
from ovi.model import OviModel
from ovi.tools import convert
from ovi.tools import train as tool
from ovi.tools.frozen import FrozenLinear, freeze
from ovi.tools.offload import recompute_blocks
from support import golden_model
from support.training import EMPTY, LAYERS, SETTINGS, clips, tensors

FORMATS = ["fp8", "int8", "nvfp4", "mxfp8"]


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """A function that returns the golden model's file in a format."""
    folder = tmp_path_factory.mktemp("quantised")

    def written(form):
        path = folder / f"{form}.safetensors"
        if not path.exists():
            model = folder / "model.safetensors"
            golden_model.write(model, LAYERS)
            assert convert.main(["quantize", str(model), str(path), "--format", form]) == 0
        return path

    return written


def dequantised(model):
    """Replace the quantised layers of a model by exact ones of the same weights, in place."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, FrozenLinear):
            exact = torch.nn.Linear(layer.in_features, layer.out_features)
            exact.weight, exact.bias = torch.nn.Parameter(layer.dequantised(torch.float32)), layer.bias
            model.set_submodule(name, exact)
    return model


def losses_and_gradients(model, **options):
    torch.manual_seed(0)
    add_lora(model, Lora(4))
    for name, weights in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weights, std=0.05)
    batch = flow.noised(clips(2), EMPTY, SETTINGS, torch.Generator().manual_seed(0))
    found = flow.losses(lambda *args, **more: model(*args, **more, **options), batch)
    sum(found).backward()
    return found, {name: weights.grad for name, weights in model.named_parameters() if weights.requires_grad}


@pytest.mark.parametrize("form", FORMATS)
def test_gradients_are_those_on_the_dequantised_model(quantised, form):
    """With and without recomputed blocks. The weights stay in 8 or 4 bits."""
    model, _ = tool.load([quantised(form)])
    frozen = [layer for layer in model.modules() if isinstance(layer, FrozenLinear)]
    assert len(frozen) == sum(key.endswith(".comfy_quant") for key in load_file(quantised(form))) > 2 * LAYERS * 10
    sizes = {layer.stored.numel() / (layer.in_features * layer.out_features) for layer in frozen}
    assert sizes == {0.5 if form == "nvfp4" else 1.0}
    expected, gradients = losses_and_gradients(dequantised(tool.load([quantised(form)])[0].float()).float())
    for options in ({}, {"transformer_options": recompute_blocks(LAYERS)}):
        model, _ = tool.load([quantised(form)])
        got, found = losses_and_gradients(model.float(), **options)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        assert found.keys() == gradients.keys()
        for name, gradient in found.items():
            error = (gradient - gradients[name]).norm() / gradients[name].norm()
            assert error < 1e-5, name


@pytest.mark.parametrize("form", ["fp8", "nvfp4"])
def test_the_command_line_trains_on_a_quantised_file(quantised, tmp_path, capsys, form):
    (tmp_path / "clips").mkdir()
    save_file(tensors(clips(1)[0]), tmp_path / "clips" / "0.safetensors")
    paths = [str(quantised(form)), "--clips", str(tmp_path / "clips"), "--out", str(tmp_path / "out.safetensors")]
    options = ["--device", "cpu", "--steps", "2"]
    assert tool.main([*paths, *options, "--rank", "0"]) == 2
    assert "is quantised, so only LoRAs can be trained on it; set --rank above 0" in capsys.readouterr().err
    assert tool.main([*paths, *options, "--rank", "2"]) == 0
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "out.safetensors").values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "int8_tensorwise", "convrot": True}, "with a rotation or a scale of its input"),
        ({"format": "convrot_w4a4"}, "which cannot be trained on; use float8_e4m3fn"),
    ],
)
def test_formats_that_cannot_be_trained_on(change, message):
    mark = torch.frombuffer(bytearray(json.dumps(change).encode()), dtype=torch.uint8)
    model = OviModel(golden_model.load().config, device="meta")
    with pytest.raises(ValueError, match=message):
        freeze(model, {"video_model.blocks.0.ffn.0.comfy_quant": mark})
