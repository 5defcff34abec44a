"""Every `weight_dtype` of Load Ovi Model: what is stored how, and what it does to a step of sampling."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from bench.files import write_float32
from ovi.config import OviConfig
from support import golden_model
from support.sampling import assert_equal, error, guide, ksampler, prompts

pytestmark = [pytest.mark.comfyui, pytest.mark.usefixtures("inference")]

BLOCK_LAYERS = re.compile(r"(video|audio)_model\.blocks\.\d\.(self_attn|cross_attn|ffn)\.(\w|k_fusion|v_fusion)\.\w+")


class Expected(NamedTuple):
    """What a `weight_dtype` makes of the golden model, whose file is float32."""

    blocks: torch.dtype  # of the linear layers in the blocks
    others: torch.dtype  # of norms, modulation, embeddings and heads
    fast: bool  # whether fp8 matrices are multiplied as such, where a GPU can
    least: float  # the relative error of a step
    most: float


DTYPES = {
    "default": Expected(torch.float32, torch.float32, False, 0.0, 0.0),
    "fp8_e4m3fn": Expected(torch.float8_e4m3fn, torch.bfloat16, False, 0.02, 0.09),
    "fp8_e4m3fn_fast": Expected(torch.float8_e4m3fn, torch.bfloat16, True, 0.02, 0.09),
    "fp8_e5m2": Expected(torch.float8_e5m2, torch.bfloat16, False, 0.05, 0.15),
}


def test_every_option_is_tested(comfy):
    (offered,) = [one.options for one in comfy.node["OviModelLoader"].GET_SCHEMA().inputs if one.id == "weight_dtype"]
    assert offered == list(DTYPES)


@pytest.mark.parametrize("name", DTYPES)
def test_weight_dtype(comfy, load, golden_file, model, loop, name):
    expected, loaded = DTYPES[name], load(golden_file, name)
    weights = loaded.model.diffusion_model.state_dict()
    blocks = {key: weights.pop(key).dtype for key in list(weights) if BLOCK_LAYERS.fullmatch(key)}
    assert len(blocks) == 2 * 3 * 12 * 2  # towers, blocks, layers, weight and bias
    assert set(blocks.values()) == {expected.blocks}
    assert {tensor.dtype for tensor in weights.values()} == {expected.others}
    assert len(weights) == 93
    assert bool(loaded.model.model_config.optimizations.get("fp8")) == expected.fast
    assert loaded.model.get_dtype_inference() == torch.float32  # on a CPU; a GPU computes in bfloat16
    video, audio = ksampler(comfy, guide(comfy, loaded), prompts(loop), steps=1)
    plain = ksampler(comfy, guide(comfy, model), prompts(loop), steps=1)
    assert video.isfinite().all()
    assert audio.isfinite().all()
    for got, wanted in zip((video, audio), plain, strict=True):
        assert expected.least <= error([got], [wanted]) <= expected.most
    if name == "default":
        assert_equal((video, audio), plain, 0.0)


def test_bfloat16_of_a_float32_file(comfy):
    """As a GPU loads it by default."""
    loaded = comfy.module("ovi.native").load([str(golden_model.MODEL)], {"dtype": torch.bfloat16})
    weights, exact = loaded.model.diffusion_model.state_dict(), golden_model.load().state_dict()
    assert weights.keys() == exact.keys()
    assert all(torch.equal(weights[key], exact[key].bfloat16()) for key in exact)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can measure a peak anew")
def test_a_float32_file_is_never_whole_in_memory(comfy, tmp_path):
    """The largest tensor is of 17 MB; 0.9 GB are mapped."""

    def resident(what):
        return 1024 * int(re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

    config = OviConfig(dim=1024, num_layers=2, num_heads=8, video_ffn_dim=4096, audio_ffn_dim=4096, text_dim=64)
    write_float32(tmp_path / "float32.safetensors", config)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    loaded = comfy.module("ovi.native").load([str(tmp_path / "float32.safetensors")], {"dtype": torch.bfloat16})
    weights = loaded.model.diffusion_model.state_dict().values()
    result = sum(weight.nbytes for weight in weights)
    assert {weight.dtype for weight in weights} == {torch.bfloat16}
    assert result > 4e8
    assert resident("VmHWM") - before < result + 1e8
