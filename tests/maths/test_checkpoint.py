"""Which files are Ovi, and what is said about those that are not, or not wholly."""

from __future__ import annotations

import json
import tracemalloc

import pytest
import torch
from safetensors.torch import load_file

from ovi import checkpoint, quantised
from ovi.config import OviConfig
from support import golden_model

SD = load_file(golden_model.MODEL)
VIDEO = {key: tensor for key, tensor in SD.items() if key.startswith("video_model.")}
AUDIO = {key: tensor for key, tensor in SD.items() if key.startswith("audio_model.")}
CONFIG = OviConfig.from_state_dict(SD, metadata=golden_model.metadata())
LAYER = "video_model.blocks.0.ffn.0"


def one(*keys):
    return {key: torch.zeros(1) for key in keys}


def test_published_keys_stay():
    published = checkpoint.to_published(SD)
    assert published.keys() == SD.keys()
    assert all(published[key] is SD[key] for key in SD)
    checkpoint.check(checkpoint.merge(published), CONFIG)


@pytest.mark.parametrize(
    ("sd", "what"),
    [
        (one("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x"), "a Stable Diffusion checkpoint"),
        (one("patch_embedding.weight", "blocks.0.self_attn.norm_q.weight"), "a Wan video model without Ovi's audio"),
        (one("model.diffusion_model.blocks.0.self_attn.norm_q.weight"), "a Wan video model without Ovi's audio"),
        (one("encoder.conv1.weight", "decoder.conv1.weight"), "a Wan video VAE"),
        (one("shared.weight"), "a UMT5 text encoder"),
        (one("something.else"), r"an unknown model \(its first tensor is something.else\)"),
        ({}, "an unknown model"),
    ],
)
def test_not_ovi(sd, what):
    with pytest.raises(ValueError, match=f"This file is {what}.*, but an Ovi checkpoint is needed: get model"):
        checkpoint.to_published(sd)


@pytest.mark.parametrize(("sd", "missing"), [(VIDEO, "audio"), (AUDIO, "video")])
def test_one_tower(sd, missing):
    with pytest.raises(
        ValueError,
        match=f"There is no {missing} tower of Ovi here, only the other one; choose",
    ):
        checkpoint.merge(sd)


@pytest.mark.parametrize(
    ("first", "second", "tower"),
    [(VIDEO, VIDEO, "video"), (AUDIO, AUDIO, "audio"), (AUDIO, SD, "audio"), (SD, SD, "video")],
)
def test_a_tower_twice(first, second, tower):
    with pytest.raises(ValueError, match=f"Both files hold an Ovi {tower} tower"):
        checkpoint.merge(first, second)


def fp8(*shape):
    return torch.zeros(shape).to(torch.float8_e4m3fn)


NAN, INF = torch.full((96,), torch.nan), torch.full((96,), torch.inf)
QUANTISED = {
    f"{LAYER}.weight": fp8(192, 96),
    f"{LAYER}.weight_scale": torch.ones(()),
    f"{LAYER}.comfy_quant": torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8),
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"audio_model.head.modulation": None}, "has no tensor audio_model.head.modulation; get a complete file"),
        ({f"{LAYER}.weight": None, f"{LAYER}.bias": None}, f"has no tensor {LAYER}.weight .nor 1 more."),
        ({f"{LAYER}.weight": torch.zeros(96, 192)}, rf"{LAYER}.weight has shape \[96, 192\], but \[192, 96\] is"),
        (QUANTISED | {f"{LAYER}.weight": fp8(192, 48)}, rf"{LAYER}.weight has shape \[192, 48\]"),
        ({"video_model.blocks.0.img_attn.weight": NAN}, "unknown tensor video_model.blocks.0.img_attn.weight"),
        ({"control.weight": NAN}, "unknown tensor control.weight"),
        ({f"{LAYER}.weight_scale": torch.ones(())}, f"unknown tensor {LAYER}.weight_scale"),
        ({"video_model.blocks.1.norm3.weight": NAN}, "video_model.blocks.1.norm3.weight holds NaN"),
        ({"video_model.blocks.1.norm3.bias": -NAN}, "video_model.blocks.1.norm3.bias holds NaN"),
        (
            {"video_model.blocks.2.self_attn.q.bias": torch.full((96,), torch.inf)},
            "video_model.blocks.2.self_attn.q.bias holds NaN",
        ),
        ({"audio_model.head.modulation": NAN.expand(1, 2, 96)}, "audio_model.head.modulation holds NaN"),
    ],
)
def test_unsound(changed, message):
    sd = {key: tensor for key, tensor in (SD | changed).items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        checkpoint.check(sd, CONFIG)


def test_a_quantised_layer_is_sound():
    checkpoint.check(SD | QUANTISED, CONFIG)


@pytest.mark.parametrize(("mark", "extra"), [(1, {}), (2, {"full_precision_matrix_mult": True})])
def test_scaled_fp8(mark, extra):
    """A mark of two elements asks for multiplication in full precision."""
    scaled = {f"{LAYER}.weight": fp8(192, 96), f"{LAYER}.scale_weight": torch.ones(1), "scaled_fp8": torch.ones(mark)}
    published = checkpoint.to_published(SD | scaled)
    assert json.loads(bytes(published[f"{LAYER}.comfy_quant"].tolist())) == {"format": "float8_e4m3fn"} | extra
    checkpoint.check(published, CONFIG)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"layers": 3}'])
def test_damaged_quantization_metadata(text):
    with pytest.raises(ValueError, match="_quantization_metadata does not list its layers; the file is damaged"):
        checkpoint.to_published(SD, {quantised.METADATA_KEY: text})


@pytest.mark.parametrize("text", [b"\xff", b"{}", b"3"])
def test_damaged_mark_of_a_quantised_layer(text):
    damaged = QUANTISED | {f"{LAYER}.comfy_quant": torch.tensor(list(text), dtype=torch.uint8)}
    with pytest.raises(ValueError, match=f"{LAYER}.comfy_quant names no format; the file is damaged"):
        checkpoint.check(SD | damaged, CONFIG)


def test_width_without_heads():
    with pytest.raises(ValueError, match=r"96 wide, which heads of 128 channels do not divide; .* needs num_heads"):
        OviConfig.from_state_dict(SD)


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "model.",
        "transformer.",
        "model.diffusion_model._orig_mod.",
        "a.b.",
    ],
)
def test_prefixes_of_trainers_and_hosts(prefix):
    for sd in (SD, VIDEO, AUDIO):
        published = checkpoint.to_published({prefix + key: tensor for key, tensor in sd.items()})
        assert published.keys() == sd.keys()


def test_wrapped_parts():
    """As torch.compile leaves them of a tower, or of a block."""
    names = {key: key.replace("_model.", "_model._orig_mod.").replace("blocks.1.", "blocks.1.module.") for key in SD}
    assert checkpoint.to_published({names[key]: SD[key] for key in SD}).keys() == SD.keys()


@pytest.mark.parametrize(
    ("twice", "message"),
    [
        ({f"model_ema.{key}": tensor for key, tensor in SD.items()}, r"Ovi more than once: .* \['', 'model_ema.'\]"),
        ({f"module.{key}": tensor for key, tensor in SD.items()}, "tensors twice, with and without a wrapper's name"),
    ],
)
def test_a_model_twice(twice, message):
    with pytest.raises(ValueError, match=message):
        checkpoint.to_published(SD | twice)


SCALES = "audio_rope_scale", "reference_rope_scale"
ABSURD = {
    "not JSON": ["{", "", "[" * 5000, "\0", "x" * 20_000],
    "a JSON object is needed": ["3", "[]", "null", '"x"'],
    "known are": ['{"layers": 3}'],
    "a whole number is needed": [
        f'{{"num_heads": {v}}}' for v in ("[]", '"x"', "null", "Infinity", "1.5", "true", "{}")
    ],
    "a number is needed": [f'{{"{name}": {v}}}' for name in SCALES for v in ("true", '"1"', "[1]")],
    "num_heads": [f'{{"num_heads": {value}}}' for value in (0, -1, 5, 96, 10**30)],
    "text_len": [f'{{"num_heads": 3, "text_len": {value}}}' for value in (0, -5, 10**9, "1e3")],
    **{name: [f'{{"num_heads": 3, "{name}": {v}}}' for v in ("NaN", "Infinity", 0, -1, 1e9)] for name in SCALES},
}


@pytest.mark.parametrize(("message", "text"), [(message, text) for message, texts in ABSURD.items() for text in texts])
def test_absurd_metadata(message, text):
    with pytest.raises(ValueError, match=message) as refused:
        OviConfig.from_state_dict(SD, metadata={"ovi_config": text})
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("number", ["999999999", "9" * 5000, "7"])
def test_numbers_in_names_size_nothing(number):
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"but no video_model.blocks.3|unknown tensor"):
        checkpoint.assemble([(SD | {f"video_model.blocks.{number}.norm3.weight": NAN}, golden_model.metadata())])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10e6


def test_more_layers_than_any_model():
    many = {f"video_model.blocks.{number}.norm3.weight": NAN for number in range(100_000)}
    with pytest.raises(ValueError, match="has num_layers 100000; more than 0, up to 128, is needed"):
        OviConfig.from_state_dict(SD | many, metadata=golden_model.metadata())


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("video_model.patch_embedding.weight", (2**40, 48, 1, 2, 0), "has dim 1099511627776"),
        ("video_model.patch_embedding.weight", (96, 0, 1, 2, 2), "has video_channels 0"),
        ("video_model.patch_embedding.weight", (96, 48, 1, 2, 0), "has patch_size 0"),
        ("video_model.time_embedding.0.weight", (96, 255), "has freq_dim 255; an even number"),
    ],
)
def test_absurd_shapes(key, shape, message):
    with pytest.raises(ValueError, match=message):
        OviConfig.from_state_dict(SD | {key: torch.empty(shape, device="meta")}, metadata=golden_model.metadata())


def mark(text):
    return {f"{LAYER}.comfy_quant": torch.tensor(list(text), dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (mark(b'{"format": ["a"]}'), "names no format"),
        (mark(b'{"format": "a b\\n"}'), "names no format"),
        (mark(b"[" * 9000), "names no format"),
        (mark(b'{"format": "int3", "x": "' + b"x" * 10_000 + b'"}'), "names no format"),
        ({f"{LAYER}.comfy_quant": torch.ones(3)}, "names no format"),
        (
            mark(b'{"format": "float8_e4m3fn", "full_precision_matrix_mult": 3}'),
            "gives full_precision_matrix_mult as 3",
        ),
        (mark(b'{"format": "int8_tensorwise", "convrot_groupsize": "x"}'), "gives convrot_groupsize as 'x'"),
        (mark(b'{"format": "int8_tensorwise", "params": {"convrot_groupsize": 0}}'), "gives convrot_groupsize as 0"),
        (mark(b'{"format": "int8_tensorwise"}'), "is of type torch.float8_e4m3fn, but int8_tensorwise has torch.int8"),
        (mark(b'{"format": "nvfp4"}'), r"has shape \[192, 96\], but \[192, 48\] is needed"),
        ({f"{LAYER}.weight": torch.ones(192, 96)}, "is of type torch.float32, but float8_e4m3fn has"),
        ({f"{LAYER}.weight_scale": None}, f"has no tensor {LAYER}.weight_scale"),
        *[
            ({f"{LAYER}.weight_scale": scale}, f"{LAYER}.weight_scale .* is no scale of float8_e4m3fn, or holds NaN")
            for scale in (
                *(torch.tensor(value) for value in (torch.nan, torch.inf, 0.0, -1.0, 1)),
                torch.ones(2),
                torch.full((192,), torch.nan),
                torch.ones(192, 1, 1),
                fp8(),
            )
        ],
        ({f"{LAYER}.input_scale": torch.tensor(torch.nan)}, f"{LAYER}.input_scale .* is no scale"),
    ],
)
def test_damaged_quantised_layers(changed, message):
    sd = {key: tensor for key, tensor in (SD | QUANTISED | changed).items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        checkpoint.check(sd, CONFIG)


@pytest.mark.parametrize(("name", "dtype"), [("nvfp4", torch.float8_e4m3fn), ("mxfp8", torch.uint8)])
def test_scales_of_blocks(name, dtype):
    """NaN is the byte 0x7F of fp8, 0xFF of mxfp8's exponents."""
    weight = {"nvfp4": torch.zeros(192, 48, dtype=torch.uint8), "mxfp8": fp8(192, 96)}[name]
    scales = torch.ones(256, {"nvfp4": 8, "mxfp8": 4}[name]).to(dtype)
    layer = {f"{LAYER}.weight": weight, f"{LAYER}.weight_scale": scales, f"{LAYER}.weight_scale_2": torch.ones(())}
    sd = SD | mark(json.dumps({"format": name}).encode()) | layer
    checkpoint.check(sd, CONFIG)
    scales.view(torch.uint8)[7, 1] = {"nvfp4": 0x7F, "mxfp8": 0xFF}[name]
    with pytest.raises(ValueError, match=f"is no scale of {name}"):
        checkpoint.check(sd, CONFIG)


@pytest.mark.parametrize("dtype", [torch.uint32, torch.int64, torch.bool, torch.complex64, torch.uint8])
@pytest.mark.parametrize("key", [f"{LAYER}.weight", "audio_model.blocks.1.norm3.bias"])
def test_wrong_dtypes(key, dtype):
    with pytest.raises(ValueError, match=rf"{key} is of type {dtype}, but floating-point numbers are needed"):
        checkpoint.check(SD | {key: torch.empty(SD[key].shape, dtype=dtype)}, CONFIG)
