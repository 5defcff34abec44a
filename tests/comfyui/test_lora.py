"""LoRAs of Wan 2.2 5B and of Ovi on the golden model, in every naming."""

from __future__ import annotations

import gc
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._subclasses import FakeTensor

from ovi.lora import key_map, strangers
from support import golden_model

pytestmark = [pytest.mark.comfyui, pytest.mark.usefixtures("inference")]

SD = load_file(golden_model.MODEL)
VIDEO = "video_model."
LAYERS = [  # of Wan's model, and so of Ovi's video tower
    f"blocks.{i}.{layer}"
    for i in range(3)
    for layer in [f"{attn}.{name}" for attn in ("self_attn", "cross_attn") for name in "qkvo"] + ["ffn.0", "ffn.2"]
]
DIFFUSERS = {
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.o": "attn2.to_out.0",
    "self_attn.": "attn1.to_",
    "cross_attn.": "attn2.to_",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}


def diffusers(layer):
    for wan, name in DIFFUSERS.items():
        layer = layer.replace(wan, name)
    return layer


def kohya(layer):
    return "lora_unet_" + layer.replace(".", "_")


# By naming: a layer's name, and the names of its pair of matrices.
PEFT, KOHYA = ("lora_B.weight", "lora_A.weight"), ("lora_up.weight", "lora_down.weight")
NAMINGS = {
    "diffusion_model.": ("diffusion_model.{}".format, PEFT),
    "lora_unet_": (kohya, KOHYA),
    "transformer.": ("transformer.{}".format, PEFT),
    "bare": (str, KOHYA),
    "diffusers": (lambda layer: f"transformer.{diffusers(layer)}", PEFT),
}


def pairs(layers, rank=4, seed=0):
    """For layers by published name: matrices (up, down) whose product has about the size of the weight."""
    draw = torch.Generator().manual_seed(seed)
    out = {}
    for layer in layers:
        rows, columns = SD[f"{layer}.weight"].flatten(1).shape
        up, down = torch.randn(rows, rank, generator=draw), torch.randn(rank, columns, generator=draw)
        out[layer] = 0.1 * up, 0.1 * down
    return out


WAN = pairs(VIDEO + layer for layer in LAYERS)
OVI = pairs(key.removesuffix(".weight") for key in SD if key.endswith(("ffn.0.weight", ".v_fusion.weight")))


def written(pairs, naming):
    """A LoRA file's tensors; Wan's layers have no tower in their names."""
    name, (up, down) = NAMINGS[naming]
    return {f"{name(layer)}.{end}": t for layer, pair in pairs.items() for end, t in zip((up, down), pair, strict=True)}


def wan(pairs):
    return {layer.removeprefix(VIDEO): pair for layer, pair in pairs.items()}


def load_model(comfy):
    shutil.copy(golden_model.MODEL, comfy.models / "diffusion_models" / "golden_lora.safetensors")
    name = "golden_lora.safetensors"
    return comfy.run("OviModelLoader", model_name=name, second_model_name="none", weight_dtype="default")[0]


@pytest.fixture(scope="module")
def model(comfy):
    with torch.inference_mode():
        return load_model(comfy)


def load_lora(comfy, model, sd, video=1.0, audio=1.0):
    """(The MODEL with the LoRA, the lines that the node shows)."""
    save_file({key: tensor.contiguous() for key, tensor in sd.items()}, comfy.models / "loras" / "lora.safetensors")
    output = comfy.node["OviLoraLoader"].execute(model, "lora.safetensors", video, audio)
    return output.args[0], output.ui.as_dict()["text"][0].split("\n")


def patched(model):
    """The weights of a MODEL with its patches, by published name."""
    from comfy.model_management import load_models_gpu, unload_all_models

    load_models_gpu([model])
    sd = {key: tensor.clone() for key, tensor in model.model.diffusion_model.state_dict().items()}
    unload_all_models()
    return sd


def with_pairs(pairs, video=1.0, audio=1.0):
    """The golden weights with a LoRA added in plain PyTorch."""
    out = dict(SD)
    for layer, (up, down) in pairs.items():
        strength = video if layer.startswith(VIDEO) else audio
        out[f"{layer}.weight"] = SD[f"{layer}.weight"] + strength * (up @ down).view_as(SD[f"{layer}.weight"])
    return out


def assert_weights(got, expected):
    """Changed weights to rounding; the others bit for bit."""
    assert got.keys() == expected.keys()
    for key, tensor in got.items():
        if expected[key] is SD[key]:
            assert torch.equal(tensor, SD[key]), key
        else:
            torch.testing.assert_close(tensor, expected[key], atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("naming", NAMINGS)
def test_wan_lora(comfy, model, naming):
    """It changes its layers of the video tower and nothing else."""
    with_lora, notes = load_lora(comfy, model, written(wan(WAN), naming))
    assert_weights(patched(with_lora), with_pairs(WAN))
    assert notes == ["Video tower: 30 weights, strength 1", "Audio tower: 0 weights, strength 1"]


@pytest.mark.parametrize("naming", ["diffusion_model.", "lora_unet_", "bare"])
@pytest.mark.parametrize(("video", "audio"), [(1.0, 1.0), (0.5, 0.0), (0.0, -2.0)])
def test_ovi_lora(comfy, model, naming, video, audio):
    with_lora, notes = load_lora(comfy, model, written(OVI, naming), video, audio)
    pairs = {layer: pair for layer, pair in OVI.items() if (video if layer.startswith(VIDEO) else audio)}
    assert_weights(patched(with_lora), with_pairs(pairs, video, audio))
    assert notes == [f"Video tower: 6 weights, strength {video:g}", f"Audio tower: 6 weights, strength {audio:g}"]


@pytest.mark.parametrize("name", ["blocks.1.modulation", "video_model.blocks.1.modulation.modulation"])
def test_differences_of_other_weights(comfy, model, name):
    """Modulation, norms and biases come as differences."""
    shape = (1, 6, 96)
    sd = {
        f"diffusion_model.{name}.diff": torch.ones(shape),
        "diffusion_model.blocks.0.norm3.diff": torch.ones(96),
        "diffusion_model.blocks.0.self_attn.q.diff_b": torch.ones(96),
    }
    changed = ("blocks.1.modulation.modulation", "blocks.0.norm3.weight", "blocks.0.self_attn.q.bias")
    with_lora, notes = load_lora(comfy, model, sd, video=0.5)
    assert_weights(patched(with_lora), SD | {VIDEO + key: SD[VIDEO + key] + 0.5 for key in changed})
    assert notes[0] == "Video tower: 3 weights, strength 0.5"


@pytest.mark.parametrize("dynamic", [False, True])
def test_weights_that_comfyui_does_not_change_are_named(comfy, model, monkeypatch, dynamic):
    """The heads' modulation is a parameter beside layers; dynamic VRAM changes layers alone."""
    names = ["video_model.blocks.0.norm3", "video_model.blocks.0.modulation.modulation", "video_model.head.modulation"]
    shapes = [(96,), (1, 6, 96), (1, 2, 96)]
    sd = {f"diffusion_model.{name}.diff": torch.ones(shape) for name, shape in zip(names, shapes, strict=True)}
    monkeypatch.setattr(type(model), "is_dynamic", lambda _: dynamic)
    _, notes = load_lora(comfy, model, sd)
    assert notes[0] == f"Video tower: {1 if dynamic else 2} weights, strength 1"
    assert notes[2] == f"Not loaded: {', '.join(names[1 if dynamic else 2 :])}"


def test_what_did_not_land_is_named(comfy, model):
    sd = written(wan(WAN), "diffusion_model.")
    sd |= {f"diffusion_model.img_emb.proj.{i}.lora_A.weight": torch.ones(4, 96) for i in range(11)}
    sd |= {"diffusion_model.blocks.0.ffn.0.lora_B.weight": torch.ones(5120, 4)}
    _, notes = load_lora(comfy, model, sd)
    assert notes[0] == "Video tower: 29 weights, strength 1"
    assert notes[2].startswith("Not loaded: diffusion_model.img_emb.proj.0.lora_A.weight, ")
    assert notes[2].endswith("and 2 more")


def test_nothing_lands(comfy, model):
    """A LoRA of Wan 14B has the same names in other sizes."""
    sd = {f"diffusion_model.{n}.lora_A.weight": torch.ones(4, 5120) for n in LAYERS}
    sd |= {f"diffusion_model.{n}.lora_B.weight": torch.ones(5120, 4) for n in LAYERS}
    with pytest.raises(ValueError, match=r"Nothing of this LoRA fits Ovi \(its first tensor is .*5120\]\); choose one"):
        load_lora(comfy, model, sd)
    with pytest.raises(ValueError, match="its first tensor is lora_te1_text_model"):
        load_lora(comfy, model, {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(4, 4)})


def test_core_s_loader(comfy, model):
    save_file(written(OVI, "diffusion_model."), comfy.models / "loras" / "core.safetensors")
    (with_lora,) = comfy.run("LoraLoaderModelOnly", model=model, lora_name="core.safetensors", strength_model=0.5)
    assert_weights(patched(with_lora), with_pairs(OVI, 0.5, 0.5))


def test_another_model_is_refused(comfy):
    class Patcher:
        model = object()

    with pytest.raises(ValueError, match="got object, but needs the MODEL of 'Load Ovi Model'"):
        comfy.module("ovi.native.lora").apply(Patcher(), {}, 1.0, 1.0)


def sample(comfy, model):
    """One step of KSampler."""
    from comfy.nested_tensor import NestedTensor

    draw = torch.Generator().manual_seed(0)
    positive, negative = ([[torch.randn(1, 20, 64, generator=draw), {}]] for _ in range(2))
    latent = {"samples": NestedTensor((torch.zeros(1, 48, 2, 4, 4), torch.zeros(1, 20, 9)))}
    settings = {"seed": 7, "steps": 1, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    conds = {"positive": positive, "negative": negative}
    (out,) = comfy.run("KSampler", model=model, latent_image=latent, **conds, **settings)
    return out["samples"].unbind()


def held():
    """Bytes of all tensors that are alive."""
    gc.collect()
    tensors = {
        t.data_ptr(): t.nbytes
        for t in gc.get_objects()
        if issubclass(type(t), torch.Tensor) and not issubclass(type(t), FakeTensor)  # torch.compile keeps some
    }
    return sum(tensors.values())


def test_changing_strengths(comfy, model):
    """Each sample is that of a freshly loaded model, whatever was sampled before it, and nothing is left behind."""
    from comfy.model_management import unload_all_models

    sd = written(OVI, "diffusion_model.")
    strengths = [(1.0, 1.0), (0.3, 0.0)]
    fresh = [sample(comfy, load_lora(comfy, load_model(comfy), sd, *pair)[0]) for pair in strengths]
    plain = sample(comfy, load_model(comfy))
    assert not any(torch.equal(one[0], plain[0]) for one in fresh)
    sizes = []
    for _ in range(3):
        for pair, expected in zip(strengths, fresh, strict=True):
            got = sample(comfy, load_lora(comfy, model, sd, *pair)[0])
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        unload_all_models()
        got = sample(comfy, model)
        assert all(torch.equal(a, b) for a, b in zip(got, plain, strict=True))
        del got
        sizes.append(held())
    assert max(sizes) <= 1.01 * sizes[0]


def test_names_are_of_one_layer_each():
    """Every naming of every weight of the published model, none of two."""
    names = key_map(SD)
    assert set(names.values()) == set(SD)
    assert names["lora_unet_blocks_0_self_attn_q"] == "video_model.blocks.0.self_attn.q.weight"
    other = "blocks.30.ffn.0.alpha"
    assert strangers(["diffusion_model.blocks.0.self_attn.q.alpha", other], names) == [other]
