"""GGUF files through ComfyUI-GGUF, of which `support.gguf_pack` is a stand-in."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from support import gguf_pack, golden_model
from support.sampling import assert_equal, error, guide, ksampler, prompts

pytestmark = [pytest.mark.comfyui, pytest.mark.usefixtures("inference")]

KEY = "video_model.blocks.0.self_attn.q"


@pytest.fixture(scope="module")
def weights():
    return load_file(golden_model.MODEL)


@pytest.fixture(params=[False, True], ids=["older", "newer"])
def pack(comfy, request, monkeypatch):
    """The pack, whose newer versions return metadata beside the tensors."""
    install(comfy, monkeypatch, request.param)


def install(comfy, monkeypatch, newer=True):
    import folder_paths

    gguf_pack.install(monkeypatch, folder_paths, comfy.node, newer)


@pytest.fixture
def write(comfy):
    """Write a file into ComfyUI's folder of models; return its name."""
    written = []

    def write(name, tensors, kind, config=True):
        path = comfy.models / "diffusion_models" / name
        fields = {"comfy.gguf.ovi_config": golden_model.metadata()["ovi_config"]} if config else {}
        gguf_pack.write(path, tensors, kind, fields)
        written.append(path)
        return name

    yield write
    for path in written:
        path.unlink()


def sampled(comfy, model, loop):
    return ksampler(comfy, guide(comfy, model), prompts(loop), steps=2)


@pytest.mark.usefixtures("pack")
def test_f16_is_the_safetensors_file(comfy, load, loop, weights, write):
    halves = {key: tensor.half() for key, tensor in weights.items()}
    plain = comfy.models / "diffusion_models" / "halves.safetensors"
    save_file(halves, plain, golden_model.metadata())
    try:
        expected = sampled(comfy, load(plain.name), loop)
    finally:
        plain.unlink()
    assert_equal(sampled(comfy, load(write("f16.gguf", halves, gguf_pack.F16)), loop), expected, 0.0)


@pytest.mark.usefixtures("pack")
def test_q8_0_keeps_its_matrices(comfy, model, load, loop, weights, write):
    """The matrices stay as in the file, and all else is dequantised; the model that is meant is sampled."""
    quantised = load(write("q8.gguf", weights, gguf_pack.Q8_0))
    q = quantised.model.diffusion_model.video_model.blocks[0].self_attn.q
    assert (q.weight.dtype, q.bias.dtype) == (torch.uint8, torch.float32)
    assert 1e-4 < error(sampled(comfy, quantised, loop), sampled(comfy, model, loop)) < 0.05


@pytest.mark.usefixtures("pack")
def test_it_is_shared_out_among_gpus(comfy, shared_out, load, loop, weights, write):
    quantised = load(write("q8.gguf", weights, gguf_pack.Q8_0))
    expected = sampled(comfy, quantised, loop)
    assert_equal(sampled(comfy, shared_out(quantised, 3), loop), expected, 3e-5)


def test_a_tower_of_each_kind(comfy, monkeypatch, model, load, loop, weights, write):
    install(comfy, monkeypatch)
    video = {key: tensor for key, tensor in weights.items() if key.startswith("video_model.")}
    rest = comfy.models / "diffusion_models" / "audio_only.safetensors"
    save_file({key: weights[key] for key in weights.keys() - video.keys()}, rest, golden_model.metadata())
    try:
        both = load(write("video.gguf", video, gguf_pack.Q8_0), second=rest.name)
    finally:
        rest.unlink()
    assert error(sampled(comfy, both, loop), sampled(comfy, model, loop)) < 0.05


def test_a_lora_on_quantised_weights(comfy, monkeypatch, load, loop, model, weights, write):
    install(comfy, monkeypatch)
    draw, size = torch.Generator().manual_seed(0), weights[f"{KEY}.weight"].shape
    lora = {
        f"diffusion_model.{KEY}.lora_A.weight": torch.randn(4, size[1], generator=draw) / 5,
        f"diffusion_model.{KEY}.lora_B.weight": torch.randn(size[0], 4, generator=draw) / 5,
    }
    save_file(lora, comfy.models / "loras" / "of_gguf.safetensors")
    outs = []
    for plain in (model, load(write("q8.gguf", weights, gguf_pack.Q8_0))):
        without = sampled(comfy, plain, loop)
        (patched,) = comfy.run(
            "OviLoraLoader", model=plain, lora_name="of_gguf.safetensors", video_strength=1.0, audio_strength=1.0
        )
        outs.append(sampled(comfy, patched, loop))
        assert error(outs[-1], without) > 0.03
        assert_equal(sampled(comfy, plain, loop), without, 0.0)
    assert error(*outs) < 0.05


def test_files_are_listed_where_the_pack_is(comfy, monkeypatch, weights, write):
    name = write("listed.gguf", weights, gguf_pack.F16)

    def listed():
        names = {i.id: i.options for i in comfy.node["OviModelLoader"].define_schema().inputs if hasattr(i, "options")}
        return name in names["model_name"], name in names["second_model_name"]

    assert listed() == (False, False)
    install(comfy, monkeypatch)
    assert listed() == (True, True)


def test_without_the_pack(load, weights, write):
    with pytest.raises(ValueError, match=r"f16\.gguf is a GGUF file, which needs the pack ComfyUI-GGUF.*safetensors"):
        load(write("f16.gguf", weights, gguf_pack.F16))


def test_a_file_that_the_pack_cannot_read(comfy, monkeypatch, load):
    install(comfy, monkeypatch)
    path = comfy.models / "diffusion_models" / "damaged.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ValueError, match=r"damaged\.gguf cannot be read by ComfyUI-GGUF.*download it again"):
        load(path.name)
    path.unlink()


def test_another_format_beside_gguf_is_refused(comfy, monkeypatch, load, weights, write):
    """A dtype for the weights, and a second tower that is quantised in ComfyUI's own way."""
    install(comfy, monkeypatch)
    with pytest.raises(ValueError, match="GGUF file keep their format: set 'weight_dtype' to default"):
        load(write("q8.gguf", weights, gguf_pack.Q8_0), "fp8_e4m3fn")
    video = {key: tensor for key, tensor in weights.items() if key.startswith("video_model.")}
    audio = {key: weights[key] for key in weights.keys() - video.keys()}
    layer = "audio_model.blocks.0.self_attn.q"
    scaled = {
        f"{layer}.weight": audio[f"{layer}.weight"].to(torch.float8_e4m3fn),
        f"{layer}.weight_scale": torch.ones(()),
    }
    path = comfy.models / "diffusion_models" / "scaled.safetensors"
    save_file(audio | scaled, path, golden_model.metadata())
    with pytest.raises(ValueError, match=r"GGUF file keep their format.*one that is not quantised"):
        load(write("video.gguf", video, gguf_pack.Q8_0), second=path.name)
    path.unlink()
