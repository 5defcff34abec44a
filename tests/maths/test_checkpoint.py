"""Which files are Ovi, and what is said about those that are not, or not wholly."""

from __future__ import annotations

import json

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
        (one("something.else"), r"no model that is known here \(its first tensor is something.else\)"),
        ({}, "no model that is known here"),
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
