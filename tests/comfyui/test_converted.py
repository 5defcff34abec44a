"""What `python -m ovi.tools.convert` writes, on real ComfyUI."""

from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import load_file

from ovi import audio_vae
from ovi.model import OviModel
from ovi.tools.convert import FORMATS, MATRIX, main
from support import golden_audio, golden_model
from support.sampling import error, forward

pytestmark = pytest.mark.comfyui

SD = load_file(golden_model.MODEL)


def convert(*argv):
    """Run a command in this process; return its exit code."""
    return main([str(argument) for argument in argv])


def rounded(layer, args):
    """What core does to the input of an int8 layer: each row in 127 steps either way."""
    scale = args[0].abs().amax(-1, keepdim=True) / 127
    return ((args[0] / scale).round() * scale,)


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form])
def test_quantize(comfy, tmp_path, x, capsys, name):
    """ComfyUI runs the file as the float32 model with the weights that its own quantisation gives back."""
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    out = tmp_path / "out.safetensors"
    assert convert("quantize", golden_model.MODEL, out, "--format", name) == 0
    stored = load_file(out)
    layers = {key.removesuffix(".weight") for key in SD if MATRIX.fullmatch(key)}
    assert len(layers) == 2 * 3 * 11  # towers, blocks, matrices
    assert {key.removesuffix(".comfy_quant") for key in stored if key.endswith(".comfy_quant")} == layers
    assert capsys.readouterr().out.count("relative error") == len(layers)

    form = FORMATS[name]
    layout = QUANT_ALGOS[form.name]["comfy_tensor_layout"]
    options = {"per_channel": True} if name == "int8" else {"scale": "recalculate"}
    dequantised = {key: tensor.bfloat16().float() for key, tensor in SD.items()}
    assert all(stored[key].dtype == torch.bfloat16 for key in SD if not MATRIX.fullmatch(key))
    for key in filter(MATRIX.fullmatch, SD):
        dequantised[key] = QuantizedTensor.from_float(SD[key], layout, **options).dequantize()

    plain, original = OviModel(golden_model.load().config), golden_model.load()
    plain.load_state_dict(dequantised)
    with torch.inference_mode():
        quantised = forward(comfy.module("ovi.native").load([str(out)]), *x)
        exact, expected = original(*x), plain(*x)
        got, usual = error(quantised, exact), error(expected, exact)
        with capsys.disabled():
            sys.stdout.write(f"\n{name}: error {got:.2%}, of the same weights in float32 {usual:.2%}\n")
        assert got < 1.3 * usual
        if name == "int8":
            for layer in layers:
                plain.get_submodule(layer).register_forward_pre_hook(rounded)
            expected = plain(*x)
        assert error(quantised, expected) < 1e-4


def test_audio_vae(comfy, tmp_path):
    """Core's 'Load VAE' opens the file and encodes with its mel basis, which core does not compute."""
    torch.save(golden_audio.published_vae(golden_audio.draw_row), tmp_path / "vae")
    torch.save({"generator": golden_audio.published_vocoder(golden_audio.draw_row)}, tmp_path / "vocoder")
    out = comfy.models / "vae" / "converted.safetensors"
    assert convert("audio-vae", tmp_path / "vae", tmp_path / "vocoder", out) == 0
    (vae,) = comfy.run("VAELoader", vae_name=out.name)
    out.unlink()  # 1.1 GB
    audio = {"waveform": torch.linspace(0, 6000, 44100).sin()[None, None], "sample_rate": 44100}
    (latent,) = comfy.run("VAEEncodeAudio", vae=vae, audio=audio)
    assert latent["samples"].shape == (1, 20, 31)
    assert latent["samples"].isfinite().all()
    assert torch.equal(vae.get_sd()["mel_converter.mel_basis"].cpu(), audio_vae.mel_basis())
