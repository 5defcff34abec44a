"""Every layout of an Ovi file, written from the golden model, loads on real ComfyUI and gives the original's output."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from safetensors.torch import load_file, save_file

from ovi.model import OviModel
from support import golden_model, tiny
from support.sampling import error, forward

pytestmark = [pytest.mark.comfyui, pytest.mark.usefixtures("inference")]

SD = load_file(golden_model.MODEL)
VIDEO = {key: tensor for key, tensor in SD.items() if key.startswith("video_model.")}
AUDIO = {key: tensor for key, tensor in SD.items() if key.startswith("audio_model.")}
HOST = "model.diffusion_model."


def bare(sd):
    return {key.split("_model.", 1)[1]: tensor for key, tensor in sd.items()}


def under(prefix, sd):
    return {prefix + key: tensor for key, tensor in sd.items()}


def flat(sd):
    return {key.replace("modulation.modulation", "modulation"): tensor for key, tensor in sd.items()}


# By name: what each file of the layout holds. All are float32.
LAYOUTS = {
    "combined": [SD],
    "under model.diffusion_model.": [under(HOST, SD)],
    "under diffusion_model.": [under("diffusion_model.", SD)],
    "in a checkpoint with other models": [under(HOST, SD) | {"first_stage_model.conv1.weight": torch.zeros(1)}],
    "bare video tower beside audio_model.": [bare(VIDEO) | AUDIO],
    "flat modulation": [flat(SD)],
    "flat modulation, bare, under a prefix": [under(HOST, flat(bare(VIDEO) | AUDIO))],
    "two files": [VIDEO, AUDIO],
    "two files, audio first": [AUDIO, VIDEO],
    "two files, bare video tower": [flat(bare(VIDEO)), AUDIO],
    "two files, both bare": [flat(bare(VIDEO)), flat(bare(AUDIO))],
    "two files, both bare, audio first": [flat(bare(AUDIO)), flat(bare(VIDEO))],
    "two files under prefixes": [under(HOST, bare(VIDEO)), under("diffusion_model.", AUDIO)],
}


@pytest.fixture
def load(comfy):
    """Write files as (tensors, metadata) and load them as a MODEL."""

    def load(*files, weight_dtype="default"):
        names = [f"layout_{i}.safetensors" for i in range(len(files))]
        for name, (sd, metadata) in zip(names, files, strict=True):
            save_file({k: t.contiguous() for k, t in sd.items()}, comfy.models / "diffusion_models" / name, metadata)
        inputs = {"model_name": names[0], "second_model_name": names[1] if len(names) > 1 else "none"}
        return comfy.run("OviModelLoader", **inputs, weight_dtype=weight_dtype)[0]

    return load


def with_metadata(parts):
    return [(sd, golden_model.metadata()) for sd in parts]


def plain(sd):
    """The golden model in plain PyTorch, in float32 and with other weights."""
    model = OviModel(golden_model.load().config)
    model.load_state_dict(sd)
    return model


def assert_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@pytest.fixture(scope="module")
def original(x):
    with torch.inference_mode():
        return plain(SD)(*x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(load, x, layout):
    expected = forward(load(*with_metadata([SD])), *x)
    assert_same(forward(load(*with_metadata(LAYOUTS[layout])), *x), expected)


def test_the_original_is_the_plain_model(load, x, original):
    assert error(forward(load(*with_metadata([SD])), *x), original) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files(load, x, dtype):
    halves = {key: tensor.to(dtype) for key, tensor in SD.items()}
    expected = plain({key: tensor.float() for key, tensor in halves.items()})(*x)
    assert error(forward(load(*with_metadata([halves])), *x), expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_without_scales(load, x, dtype):
    """As published: everything but norms and biases."""
    cast = {k: t.to(torch.bfloat16 if "norm" in k or k.endswith("bias") else dtype) for k, t in SD.items()}
    expected = plain({key: tensor.float() for key, tensor in cast.items()})(*x)
    assert error(forward(load(*with_metadata([cast])), *x), expected) < 1e-6


# By format: arguments of its quantisation.
FORMATS = {
    "float8_e4m3fn": {"scale": "recalculate"},
    "float8_e5m2": {"scale": "recalculate"},
    "nvfp4": {},
    "mxfp8": {},
    "int8_tensorwise": {},
    "int8_tensorwise, a scale for each row": {"per_channel": True},
}


def is_quantised(key):
    return ".blocks." in key and key.endswith(".weight") and "norm" not in key


@cache
def quantise(name):
    """The golden model in a format."""
    return quantised_blocks(SD, name)


def quantised_blocks(sd, name, chosen=is_quantised):
    """A model with its blocks' (or other) matrices in a format: (the file's tensors, the dequantised ones)."""
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    quant_format = name.split(",")[0]
    if quant_format not in QUANT_ALGOS:
        pytest.skip(f"this ComfyUI has no {quant_format}; 0.20.1 and later have mxfp8, 0.27 and later int8")
    layout = QUANT_ALGOS[quant_format]["comfy_tensor_layout"]
    stored, dequantised = dict(sd), dict(sd)
    for key in filter(chosen, sd):
        tensor = QuantizedTensor.from_float(sd[key], layout, **FORMATS[name])
        stored |= tensor.state_dict(key)
        stored[key.replace(".weight", ".comfy_quant")] = as_bytes({"format": quant_format})
        dequantised[key] = tensor.dequantize()
    return stored, dequantised


def as_bytes(value):
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def int8_rows(linear, args):
    """Core quantises what an int8 layer reads, too: row by row, symmetrically."""
    (x,) = args
    scale = x.abs().amax(-1, keepdim=True) / 127
    return ((x / scale).round().clamp(-128, 127) * scale,)


@pytest.mark.parametrize("name", FORMATS)
def test_quantised(load, x, original, name):
    """The output is that of the dequantised weights, with what core itself does to an int8 layer's input."""
    stored, dequantised = quantise(name)
    got = forward(load(*with_metadata([stored])), *x)
    model = plain(dequantised)
    lost = error(model(*x), original)
    if name.startswith("int8"):
        for key in filter(is_quantised, SD):
            model.get_submodule(key.removesuffix(".weight")).register_forward_pre_hook(int8_rows)
    assert error(got, model(*x)) < 1e-4
    # With a scale for each row the weights lose so little that the rounding of the input shows beside it.
    assert error(got, original) < (1.5 if "row" in name else 1.3) * lost


def test_quantised_embeddings(load, x):
    """Their width is that of the numbers that they read, of which nvfp4 holds two in a byte."""
    embeddings = ("text_embedding.0.weight", "time_embedding.0.weight")
    stored, dequantised = quantised_blocks(SD, "nvfp4", lambda key: key.endswith(embeddings))
    assert error(forward(load(*with_metadata([stored])), *x), plain(dequantised)(*x)) < 1e-4


def to_metadata(stored):
    """`.comfy_quant` tensors as metadata of the file instead: (tensors, metadata)."""
    formats = {k.removesuffix(".comfy_quant"): t for k, t in stored.items() if k.endswith(".comfy_quant")}
    layers = {layer: json.loads(bytes(tensor.tolist())) for layer, tensor in formats.items()}
    tensors = {key: tensor for key, tensor in stored.items() if not key.endswith(".comfy_quant")}
    return tensors, {"_quantization_metadata": json.dumps({"layers": layers})}


def to_scaled_fp8(stored, ending=".scale_weight", mark=1):
    """As it was before `.comfy_quant`: scales alone, and a mark on the file."""
    tensors = {k.replace(".weight_scale", ending): t for k, t in stored.items() if not k.endswith(".comfy_quant")}
    return tensors | ({"scaled_fp8": torch.zeros(mark, dtype=torch.float8_e4m3fn)} if mark else {})


def tower(stored, name):
    return {key: tensor for key, tensor in stored.items() if key.startswith(name)}


# By name: how else a quantised model is written; what each file holds, or (that, its metadata).
SPELLINGS = {
    "under a prefix": lambda q: [under(HOST, q)],
    "two files": lambda q: [tower(q, "audio"), bare(tower(q, "video"))],
    "metadata": lambda q: [to_metadata(q)],
    "metadata with a prefix": lambda q: [to_metadata(under(HOST, q))],
    "metadata without the tensors' prefix": lambda q: [(under(HOST, to_metadata(q)[0]), to_metadata(q)[1])],
    "metadata of two files": lambda q: [to_metadata(bare(tower(q, "audio"))), to_metadata(tower(q, "video"))],
}
FP8_SPELLINGS = {
    "scale_weight": lambda q: [to_scaled_fp8(q)],
    "weight_scale": lambda q: [to_scaled_fp8(q, ".weight_scale")],
    "scale_weight without a mark": lambda q: [to_scaled_fp8(q, mark=0)],
    "scale_weight under a prefix": lambda q: [under(HOST, to_scaled_fp8(q))],
    "scale_weight, bare and flat": lambda q: [to_scaled_fp8(flat(bare(tower(q, "video")) | tower(q, "audio")))],
    "scale_weight in two files": lambda q: [to_scaled_fp8(bare(tower(q, n))) for n in ("audio", "video")],
}
CASES = [(name, spelling) for name in ("float8_e4m3fn", "nvfp4", "mxfp8", "int8_tensorwise") for spelling in SPELLINGS]
CASES += [("float8_e4m3fn", spelling) for spelling in FP8_SPELLINGS] + [("float8_e5m2", "scale_weight")]


@pytest.fixture(scope="module")
def quantised():
    """Quantised models that were loaded from one file with `.comfy_quant`, by format."""
    return {}


@pytest.mark.parametrize(("name", "spelling"), CASES)
def test_spelling_of_a_quantised_model(load, x, quantised, name, spelling):
    """The same weights, bit for bit; outputs may differ by where a file's mapping puts a tensor in memory."""
    stored, _ = quantise(name)
    if name not in quantised:
        model = load(*with_metadata([stored]))
        quantised[name] = (state(model), forward(model, *x))
    files = [file if isinstance(file, tuple) else (file, {}) for file in (SPELLINGS | FP8_SPELLINGS)[spelling](stored)]
    model = load(*[(sd, golden_model.metadata() | metadata) for sd, metadata in files])
    assert state(model) == quantised[name][0]
    assert error(forward(model, *x), quantised[name][1]) < 1e-6


def state(model):
    """What a MODEL holds: by key, dtype and bytes."""
    sd = model.model.diffusion_model.state_dict()
    return {key: (t.dtype, t.cpu().reshape(-1).view(torch.uint8).numpy().tobytes()) for key, t in sd.items()}


@pytest.mark.parametrize("name", [None, "float8_e4m3fn", "nvfp4"])
def test_what_core_saves(comfy, load, x, tmp_path, name):
    """ModelSave writes a prefix and drops the metadata: heads and text length must be those of the release's models."""
    tiny.ovi_model(tmp_path / "tiny.safetensors", dtype=torch.float32)
    sd = load_file(tmp_path / "tiny.safetensors")
    model = load((quantised_blocks(sd, name)[0] if name else sd, None))
    comfy.core("nodes_model_merging")
    comfy.run("ModelSave", model=model, filename_prefix="saved")
    (saved,) = (comfy.base / "output").glob("saved*.safetensors")
    again = load((load_file(saved), None))
    saved.unlink()
    assert state(again) == state(model)
    assert error(forward(again, *x), forward(model, *x)) < 1e-6


def test_a_format_that_this_comfyui_does_not_know(load):
    """As an older one with a newer file."""
    layer = "video_model.blocks.0.ffn.0"
    with pytest.raises(ValueError, match="is quantised as int3, which this version of ComfyUI does not know"):
        load(*with_metadata([SD | {f"{layer}.comfy_quant": as_bytes({"format": "int3"})}]))
