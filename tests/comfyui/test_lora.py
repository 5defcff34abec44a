"""LoRAs of Wan 2.2 5B and of Ovi on the golden model, in every naming."""

from __future__ import annotations

import gc
import random
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._subclasses import FakeTensor

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


def load_lora(comfy, model, sd, video=1.0, audio=1.0, metadata=None):
    """(The MODEL with the LoRA, the lines that the node shows)."""
    path = comfy.models / "loras" / "lora.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in sd.items()}, path, metadata)
    output = comfy.node["OviLoraLoader"].execute(model, "lora.safetensors", video, audio)
    return output.args[0], output.ui.as_dict()["text"][0].split("\n")


def patched(model):
    """The weights of a MODEL with its patches, by published name."""
    from comfy.model_management import load_models_gpu, unload_all_models

    load_models_gpu([model])
    sd = {key: tensor.cpu().clone() for key, tensor in model.model.diffusion_model.state_dict().items()}
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
    assert notes == ["Patched: 30 video weights at 1, 0 audio weights at 1"]


RANK, ALPHA = 128, 64.0  # of a LoRA for few steps that was extracted from a whole model


def few_steps(seed):
    """Such a LoRA of Wan's model: (the file's tensors, the weights with it by published name, at strength 1)."""
    draw = torch.Generator().manual_seed(seed)
    sd, changed = {}, {}
    for layer, (up, down) in pairs((VIDEO + layer for layer in LAYERS), RANK, seed).items():
        key = f"diffusion_model.{layer.removeprefix(VIDEO)}"
        bias = 0.1 * torch.randn(len(up), generator=draw)
        alpha = torch.tensor(ALPHA)
        sd |= {f"{key}.lora_up.weight": 0.1 * up, f"{key}.lora_down.weight": 0.1 * down, f"{key}.alpha": alpha}
        sd[f"{key}.diff_b"] = bias
        changed[f"{layer}.weight"] = ALPHA / RANK * 0.01 * (up @ down)
        changed[f"{layer}.bias"] = bias
    norms = [key for key in SD if re.fullmatch(rf"{VIDEO}blocks\.\d\.(\w+\.norm_[qk]|norm3)\.weight", key)]
    whole = [f"{VIDEO}{name}.weight" for name in ("text_embedding.0", "time_projection.1", "head.head")]
    for name in [*norms, *whole]:
        changed[name] = 0.1 * torch.randn(SD[name].shape, generator=draw)
        sd[f"diffusion_model.{name.removeprefix(VIDEO).removesuffix('.weight')}.diff"] = changed[name]
    return sd, changed


def with_changes(*changes):
    """The golden weights with differences, each at a strength, added in plain PyTorch."""
    out = dict(SD)
    for strength, changed in changes:
        for key, difference in changed.items():
            out[key] = out[key] + strength * difference
    return out


def test_a_lora_for_few_steps(comfy, model):
    """Pairs of rank 128 with alpha, and differences of biases, norms and whole weights: all land, none on the audio."""
    sd, changed = few_steps(seed=1)
    with_lora, notes = load_lora(comfy, model, sd)
    assert notes == [f"Patched: {len(changed)} video weights at 1, 0 audio weights at 1"]
    assert len(changed) == 2 * len(LAYERS) + 3 * 5 + 3
    assert_weights(patched(with_lora), with_changes((1.0, changed)))


def test_two_loras_add_up(comfy, model):
    """One at half its strength, and a second one."""
    (first, of_first), (second, of_second) = few_steps(seed=1), few_steps(seed=2)
    with_one, _ = load_lora(comfy, model, first, video=0.5)
    with_both, _ = load_lora(comfy, with_one, second, audio=0.0)
    expected = with_changes((0.5, of_first), (1.0, of_second))
    got = patched(with_both)
    for key, tensor in got.items():
        torch.testing.assert_close(tensor, expected[key], atol=1e-5, rtol=0.0)
        assert torch.equal(tensor, SD[key]) == (key not in of_first), key


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '{"steps": 4, "shift": 5.0, "cfg": 1.0, "audio_cfg": 1.0, "sampler": "euler"}',
            "Made for 4 steps of euler, shift 5, cfg 1, audio cfg 1; solver dpm++",
        ),
        ("{", "How it is to be sampled (ovi_sampling) cannot be read: it is no JSON"),
    ],
)
def test_how_a_lora_is_to_be_sampled_is_shown(comfy, model, text, said):
    """In front; a text that cannot be read keeps no LoRA from loading."""
    _, notes = load_lora(comfy, model, written(OVI, "bare"), metadata={"ovi_sampling": text})
    assert notes == [said, "Patched: 6 video weights at 1, 6 audio weights at 1"]


@pytest.mark.parametrize("naming", ["diffusion_model.", "lora_unet_", "bare"])
@pytest.mark.parametrize(("video", "audio"), [(1.0, 1.0), (0.5, 0.0), (0.0, -2.0)])
def test_ovi_lora(comfy, model, naming, video, audio):
    with_lora, notes = load_lora(comfy, model, written(OVI, naming), video, audio)
    pairs = {layer: pair for layer, pair in OVI.items() if (video if layer.startswith(VIDEO) else audio)}
    assert_weights(patched(with_lora), with_pairs(pairs, video, audio))
    towers = {"video": video, "audio": audio}
    said = [f"6 {tower} weights at {at:g}" if at else f"{tower} unchanged" for tower, at in towers.items()]
    assert notes == [f"Patched: {', '.join(said)}"]


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
    assert notes[0].startswith("Patched: 3 video weights at 0.5, ")


@pytest.mark.parametrize("dynamic", [False, True])
def test_weights_that_comfyui_does_not_change_are_named(comfy, model, monkeypatch, dynamic):
    """The heads' modulation is a parameter beside layers; dynamic VRAM changes layers alone."""
    names = ["video_model.blocks.0.norm3", "video_model.blocks.0.modulation.modulation", "video_model.head.modulation"]
    shapes = [(96,), (1, 6, 96), (1, 2, 96)]
    sd = {f"diffusion_model.{name}.diff": torch.ones(shape) for name, shape in zip(names, shapes, strict=True)}
    monkeypatch.setattr(type(model), "is_dynamic", lambda _: dynamic)
    _, notes = load_lora(comfy, model, sd)
    assert notes[0].startswith(f"Patched: {1 if dynamic else 2} video weights at 1, ")
    keys = ", ".join(f"diffusion_model.{name}.diff" for name in names[1 if dynamic else 2 :])
    assert notes[1] == f"Not loaded: {keys} (ComfyUI lets no LoRA change this weight)"


def test_what_did_not_land_is_named(comfy, model):
    sd = written(wan(WAN), "diffusion_model.")
    sd |= {f"diffusion_model.img_emb.proj.{i}.lora_A.weight": torch.ones(4, 96) for i in range(11)}
    sd |= {"diffusion_model.blocks.0.ffn.0.lora_B.weight": torch.ones(5120, 4)}
    _, notes = load_lora(comfy, model, sd)
    assert notes[0].startswith("Patched: 29 video weights at 1, ")
    assert notes[1].startswith("Not loaded: diffusion_model.img_emb.proj.0.lora_A.weight, ")
    assert notes[1].endswith(" and 1 more (Ovi has no such layer)")
    layer = "diffusion_model.blocks.0.ffn.0"
    assert notes[2] == f"Not loaded: {layer}.lora_A.weight, {layer}.lora_B.weight (not the size of Ovi's layer)"


def test_nothing_lands(comfy, model):
    """A LoRA of Wan 14B has the same names in other sizes."""
    sd = {f"diffusion_model.{n}.lora_A.weight": torch.ones(4, 5120) for n in LAYERS}
    sd |= {f"diffusion_model.{n}.lora_B.weight": torch.ones(5120, 4) for n in LAYERS}
    with pytest.raises(ValueError, match=r"^Nothing of this LoRA changes Ovi: .*5120\].* and 59 more \(not the"):
        load_lora(comfy, model, sd)
    with pytest.raises(ValueError, match=r"lora_te1_text_model\S* \[4, 4\] \(Ovi has no such layer\); choose a LoRA"):
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
    sizes = {}
    for t in gc.get_objects():
        if issubclass(type(t), torch.Tensor) and not issubclass(type(t), FakeTensor):  # torch.compile keeps some
            sizes[t.data_ptr()] = max(t.nbytes, sizes.get(t.data_ptr(), 0))  # of views of one, the largest
    return sum(sizes.values())


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
    # What stays after the first round may be tensors that were there before, but not among those that are found.
    assert max(sizes[1:]) <= 1.01 * sizes[1]


Q = "diffusion_model.blocks.0.self_attn.q"
Q_WEIGHT = "video_model.blocks.0.self_attn.q.weight"
UP, DOWN = pairs([Q_WEIGHT.removesuffix(".weight")])[Q_WEIGHT.removesuffix(".weight")]
PAIR = {f"{Q}.lora_up.weight": UP, f"{Q}.lora_down.weight": DOWN}
OTHER = "video_model.blocks.1.ffn.0"
OTHER_PAIR = {f"diffusion_model.blocks.1.ffn.0.{end}": t for end, t in zip(KOHYA, WAN[OTHER], strict=True)}


def draw(*shape):
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def apply(comfy, model, sd):
    """(The MODEL with a LoRA that is in no file, the notes)."""
    return comfy.module("ovi.native.lora").apply(model, sd, 1.0, 1.0)


def weight(model, key):
    """One weight of a MODEL with its patches."""
    return model.patch_weight_to_device(f"diffusion_model.{key}", return_weight=True).cpu()


@pytest.mark.parametrize(
    "layer",
    [
        "base_model.model.blocks.0.self_attn.q",
        "lora_unet_blocks_0.self_attn.q",
        "lora_transformer_blocks_0_attn1_to_q",
        "transformer.base_model.model.blocks.0.self_attn.q",
        "model.diffusion_model.blocks.0.self_attn.q",
        "pipe.dit.blocks.0.attn1.to_q",
        "base_model.model.video_model.blocks.0.self_attn.q",
    ],
)
def test_a_layer_is_found_after_any_prefix(comfy, model, layer):
    with_lora, notes = apply(comfy, model, {f"{layer}.lora_B.weight": UP, f"{layer}.lora_A.weight": DOWN})
    assert notes == ["Patched: 1 video weights at 1, 0 audio weights at 1"]
    torch.testing.assert_close(weight(with_lora, Q_WEIGHT), SD[Q_WEIGHT] + UP @ DOWN)


A, B, C, D = draw(96, 4), draw(4, 96), draw(96, 5)[:, :4], draw(5, 96)[:4]
W = SD[Q_WEIGHT]
KINDS = {
    "LoKr": ({"lokr_w1": draw(8, 8), "lokr_w2": draw(12, 12)}, W + torch.kron(draw(8, 8), draw(12, 12))),
    "LoKr, factored": (
        {"lokr_w1": draw(8, 8), "lokr_w2_a": draw(12, 2), "lokr_w2_b": draw(2, 12), "alpha": torch.tensor(1.0)},
        W + torch.kron(draw(8, 8), draw(12, 2) @ draw(2, 12)) / 2,
    ),
    "LoHa": ({"hada_w1_a": A, "hada_w1_b": B, "hada_w2_a": C, "hada_w2_b": D}, W + (A @ B) * (C @ D)),
    "GLoRA": ({"a1.weight": A, "a2.weight": B, "b1.weight": C, "b2.weight": D}, W + W @ A @ B + C @ D),
    "DoRA": (
        {"lora_up.weight": UP, "lora_down.weight": DOWN, "dora_scale": draw(96, 1).abs()},
        (W + UP @ DOWN) * draw(96, 1).abs() / W.norm(dim=1, keepdim=True),
    ),
    "difference": ({"diff": draw(96, 96)}, W + draw(96, 96)),
    "alpha, a number": ({"lora_up.weight": UP, "lora_down.weight": DOWN, "alpha": 8}, W + 2 * UP @ DOWN),
    "adapter with a name": ({"lora_B.ovi.weight": UP, "lora_A.ovi.weight": DOWN}, W + UP @ DOWN),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(comfy, model, kind):
    """What ComfyUI's adapters apply is what the note counts."""
    parts, expected = KINDS[kind]
    with_lora, notes = apply(comfy, model, {f"{Q}.{end}": t for end, t in parts.items()})
    assert notes == ["Patched: 1 video weights at 1, 0 audio weights at 1"]
    torch.testing.assert_close(weight(with_lora, Q_WEIGHT), expected, atol=1e-5, rtol=1e-5)


def test_norms_and_biases(comfy, model):
    """Differences of norms; the bias of a PEFT pair is scaled as the pair is."""
    sd = {f"{Q}.lora_B.weight": UP, f"{Q}.lora_A.weight": DOWN, f"{Q}.alpha": torch.tensor(8.0)}
    sd |= {f"{Q}.lora_B.bias": draw(96), f"{Q[:-1]}norm_q.w_norm": draw(96)}
    sd |= {"diffusion_model.blocks.0.norm3.w_norm": draw(96), "diffusion_model.blocks.0.norm3.b_norm": draw(96)}
    with_lora, notes = apply(comfy, model, sd)
    assert notes == ["Patched: 5 video weights at 1, 0 audio weights at 1"]
    torch.testing.assert_close(weight(with_lora, Q_WEIGHT), W + 2 * UP @ DOWN)
    for name, factor in (
        ("self_attn.q.bias", 2),
        ("self_attn.norm_q.weight", 1),
        ("norm3.weight", 1),
        ("norm3.bias", 1),
    ):
        key = f"video_model.blocks.0.{name}"
        torch.testing.assert_close(weight(with_lora, key), SD[key] + factor * draw(96))


WIDE = draw(5120, 4)
LEFT = {  # parts beside whole pairs: which keys are named, why
    "LoKr of Wan 14B": ({"lokr_w1": draw(8, 8), "lokr_w2": draw(640, 640)}, "not the size of Ovi's layer"),
    "LoHa of Wan 14B": (
        {"hada_w1_a": WIDE, "hada_w1_b": WIDE.T, "hada_w2_a": WIDE, "hada_w2_b": WIDE.T},
        "not the size of Ovi's layer",
    ),
    "GLoRA of two ranks": (
        {"a1.weight": A, "a2.weight": B[:3], "b1.weight": C, "b2.weight": D[:2]},
        "not the size of Ovi's layer",
    ),
    "two ranks": ({"lora_up.weight": draw(96, 3), "lora_down.weight": DOWN}, "not the size of Ovi's layer"),
    "rank 0": ({"lora_up.weight": UP[:, :0], "lora_down.weight": DOWN[:0]}, "all zeros or empty"),
    "rank 0, alpha": (
        {"lora_up.weight": UP[:, :0], "lora_down.weight": DOWN[:0], "alpha": torch.ones(())},
        "not the size of Ovi's layer",
    ),
    "scalars": ({"lora_up.weight": torch.ones(()), "lora_down.weight": torch.ones(())}, "not the size of Ovi's layer"),
    "up alone": ({"lora_up.weight": UP}, "another part of this layer's LoRA is missing"),
    "B alone": ({"lora_B.weight": UP}, "another part of this layer's LoRA is missing"),
    "half a LoHa": ({"hada_w1_a": A}, "another part of this layer's LoRA is missing"),
    "half a LoKr": ({"lokr_w1_a": A}, "not the size of Ovi's layer"),
    "down alone": ({"lora_down.weight": DOWN}, "no part of a LoRA that ComfyUI reads"),
    "alpha alone": ({"alpha": torch.ones(())}, "no part of a LoRA that ComfyUI reads"),
    "a whole weight": ({"weight": W}, "no part of a LoRA that ComfyUI reads"),
    "zeros": ({"lora_up.weight": 0 * UP, "lora_down.weight": DOWN}, "all zeros or empty"),
    "alpha 0": ({"lora_up.weight": UP, "lora_down.weight": DOWN, "alpha": 0}, "all zeros or empty"),
    "nearly zeros": (
        {"lora_up.weight": torch.full((96, 4), 1e-10), "lora_down.weight": torch.full((4, 96), 1e-10)},
        "all zeros or empty",
    ),
    "product of zeros": (
        {"lora_up.weight": torch.full((96, 4), 1e-30), "lora_down.weight": torch.full((4, 96), 1e-30), "alpha": 1e38},
        "all zeros or empty",
    ),
    "alpha nearly 0": ({"lora_up.weight": UP, "lora_down.weight": DOWN, "alpha": 1e-45}, "all zeros or empty"),
    "an OFT held to nothing": ({"oft_blocks": draw(8, 12, 12), "alpha": 1e-45}, "all zeros or empty"),
    "an untrained OFT": ({"oft_blocks": 0 * draw(8, 12, 12), "rescale": torch.ones(96, 1)}, "all zeros or empty"),
    "a tiny difference": ({"diff": torch.full((96, 96), 1e-30)}, "all zeros or empty"),
    "an untrained GLoRA": (
        {"a1.weight": A, "a2.weight": 0 * B, "b1.weight": C, "b2.weight": 0 * D},
        "all zeros or empty",
    ),
    "difference of another size": ({"diff": draw(96, 95)}, "not the size of Ovi's layer"),
    "LoRA with as many elements": (
        {"lora_B.weight": draw(192, 4), "lora_A.weight": draw(4, 48)},
        "not the size of Ovi's layer",
    ),
    "LoHa with as many elements": (
        {"hada_w1_a": draw(192, 4), "hada_w1_b": draw(4, 48), "hada_w2_a": draw(192, 4), "hada_w2_b": draw(4, 48)},
        "not the size of Ovi's layer",
    ),
    "LoHa of a row and a column": (
        {"hada_w1_a": draw(96, 4), "hada_w1_b": draw(4, 1), "hada_w2_a": draw(1, 4), "hada_w2_b": draw(4, 96)},
        "not the size of Ovi's layer",
    ),
    "LoKr with as many elements": (
        {"lokr_w1": draw(4, 1), "lokr_w2": draw(48, 48)},
        "not the size of Ovi's layer",
    ),
    "GLoRA with as many elements": (
        {"a1.weight": A, "a2.weight": B, "b1.weight": draw(192, 4), "b2.weight": draw(4, 48)},
        "not the size of Ovi's layer",
    ),
    "a column of a weight": ({"set_weight": draw(96, 1)}, "not the size of Ovi's layer"),
    "integers": ({"diff": torch.ones(96, 96, dtype=torch.int64)}, "of torch.int64, but a floating-point dtype"),
    "a number": ({"diff": 3}, "not a tensor but int"),
    "two alphas": ({"alpha": torch.ones(2)}, "not a single number"),
}


@pytest.mark.parametrize("kind", LEFT)
def test_what_changes_nothing_is_named(comfy, model, kind):
    """Alone it is refused, in a sentence that names it; beside a pair that fits, its keys are named."""
    parts, reason = LEFT[kind]
    sd = {f"{Q}.{end}": t for end, t in parts.items()}
    with pytest.raises(ValueError, match=f"^Nothing of this LoRA changes Ovi: {Q}.*{reason}.*; choose a LoRA"):
        apply(comfy, model, sd)
    with_lora, notes = apply(comfy, model, sd | OTHER_PAIR)
    assert notes[0].startswith("Patched: 1 video weights at 1, ")
    assert notes[1].startswith(f"Not loaded: {', '.join(sd)} ({reason}")
    assert list(with_lora.patches) == ["diffusion_model.video_model.blocks.1.ffn.0.weight"]


@pytest.mark.parametrize(
    ("end", "tensor", "reason"),
    [
        ("lora_magnitude_vector", torch.ones(96), "PEFT's DoRA divides by another norm"),
        ("lora_magnitude_vector.default.weight", torch.ones(96), "PEFT's DoRA divides by another norm"),
        ("dora_scale", torch.ones(96), "not the size"),
        ("dora_scale", torch.ones(96, 96), "not the size"),
        ("dora_scale", torch.zeros(96, 1), "all zeros or empty"),
        ("lora_A.bias", torch.ones(4), "no part of a LoRA that ComfyUI reads"),
        ("lora_A.weight", DOWN, "no part of a LoRA that ComfyUI reads"),
        ("scale", torch.ones(1), "no part of a LoRA that ComfyUI reads"),
        ("diff_b", torch.ones(95), "not the size"),
    ],
)
def test_an_unused_part_of_a_pair_is_named(comfy, model, end, tensor, reason):
    with_lora, notes = apply(comfy, model, PAIR | {f"{Q}.{end}": tensor})
    assert notes[0].startswith("Patched: 1 video weights at 1, ")
    assert notes[1].startswith(f"Not loaded: {Q}.{end} ({reason}")
    torch.testing.assert_close(weight(with_lora, Q_WEIGHT), W + UP @ DOWN)


def test_swapped_layers_are_named(comfy, model):
    """The two layers of a feed-forward have as many elements."""
    ffn = {layer: pair for layer, pair in wan(WAN).items() if layer.startswith("blocks.0.ffn.")}
    first, second = ffn.values()
    sd = written(dict(zip(ffn, (second, first), strict=True)), "bare")
    with pytest.raises(ValueError, match=r"^Nothing of this LoRA changes Ovi: .* and 3 more \(not the size"):
        apply(comfy, model, sd)


def test_one_of_two_patches_of_a_weight_is_named(comfy, model):
    """ComfyUI keeps the last; so it is with two names of one layer."""
    _, notes = apply(comfy, model, PAIR | {f"{Q}.diff": draw(96, 96)})
    assert notes[0].startswith("Patched: 1 video weights at 1, ")
    assert notes[1].startswith(f"Not loaded: {', '.join(PAIR)} (")
    again = {key.replace("diffusion_model", "unet"): t for key, t in PAIR.items()}
    _, notes = apply(comfy, model, PAIR | again)
    assert notes[1] == f"Not loaded: {', '.join(again)} (the file has another tensor for the same)"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_damaged_lora_is_refused(comfy, model, value):
    damaged = UP.clone()
    damaged[3, 1] = value
    sentence = rf"^{Q}.lora_up.weight of this LoRA holds NaN or infinity; the file is damaged: download it again.$"
    with pytest.raises(ValueError, match=sentence):
        load_lora(comfy, model, OTHER_PAIR | PAIR | {f"{Q}.lora_up.weight": damaged})
    with pytest.raises(ValueError, match=rf"^{Q}.alpha of this LoRA holds NaN"):
        apply(comfy, model, PAIR | {f"{Q}.alpha": value})


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        (
            {"lora_up.weight": torch.full((96, 4), 3e38), "lora_down.weight": torch.full((4, 96), 3e38)},
            "lora_up.weight",
        ),
        ({"lora_up.weight": 1e20 * UP, "lora_down.weight": 1e20 * DOWN, "alpha": 1e-30}, "lora_"),
        ({"lora_up.weight": UP, "lora_down.weight": DOWN, "alpha": 3e38}, "alpha"),
        ({"lora_up.weight": UP, "lora_down.weight": DOWN, "dora_scale": torch.full((96, 1), 3e38)}, "dora_scale"),
        ({"oft_blocks": 1e32 * draw(8, 12, 12)}, "oft_blocks"),
        ({"diff": torch.full((96, 96), 3e38)}, "diff"),
        ({"set_weight": torch.full((96, 96), 3e38)}, "set_weight"),
    ],
)
def test_a_lora_that_gives_infinity_is_refused(comfy, model, parts, named):
    sentence = (
        rf"^{Q}.{named}\S* of this LoRA is so large that it gives infinity; the file is damaged: download it again.$"
    )
    with pytest.raises(ValueError, match=sentence):
        apply(comfy, model, OTHER_PAIR | {f"{Q}.{end}": value for end, value in parts.items()})


def test_alpha_of_a_whole_lokr_is_not_used(comfy, model):
    """ComfyUI divides alpha by a rank, which two whole factors do not have."""
    w1, w2 = draw(8, 8), draw(12, 12)
    sd = {f"{Q}.lokr_w1": w1, f"{Q}.lokr_w2": w2, f"{Q}.alpha": 0}
    with_lora, notes = apply(comfy, model, sd)
    assert notes[0].startswith("Patched: 1 video weights at 1, ")
    torch.testing.assert_close(weight(with_lora, Q_WEIGHT), W + torch.kron(w1, w2))


@pytest.mark.parametrize("sd", [{"step": 3, **PAIR}, {7: 3, **PAIR}])
def test_a_pickled_lora_that_begins_with_a_number(comfy, model, sd):
    """The loader takes tensors alone, and names what is none."""
    path = comfy.models / "loras" / "numbers.pt"
    torch.save(sd, path)
    sentence = f"{path} holds a value of type int as '{next(iter(sd))}', where only tensors belong; download it again."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        comfy.node["OviLoraLoader"].execute(model, "numbers.pt", 1.0, 1.0)
    with pytest.raises(ValueError, match=f"^Nothing of this LoRA changes Ovi: {next(iter(sd))} "):
        apply(comfy, model, {next(iter(sd)): 3})


@pytest.mark.parametrize("what", [[PAIR], 3, UP])
def test_what_is_no_dict_is_refused(comfy, model, what):
    with pytest.raises(ValueError, match="A LoRA is tensors by name, but this file holds one "):
        apply(comfy, model, what)
    with pytest.raises(ValueError, match="Nothing of this LoRA changes Ovi: the file is empty"):
        apply(comfy, model, {})


def test_names_are_printed_safely(comfy, model):
    """Half an emoji cannot be written to a log."""
    with pytest.raises(ValueError, match=r"Nothing of this LoRA changes Ovi: 'x\\ud83d' .* and 1 more") as error:
        apply(comfy, model, {"x\ud83d": UP, "y" * 100_000: UP})
    assert len(str(error.value).encode()) < 1000


def test_adapters_are_asked_without_arithmetic(comfy):
    """A weight that no machine could hold takes no memory."""
    from comfy.weight_adapter import LoHaAdapter, LoRAAdapter

    applies = comfy.module("ovi.native.lora")._applies
    size = 10**8
    tall, flat = torch.zeros(1).expand(size, 4), torch.zeros(1).expand(4, size)
    for adapter in (
        LoRAAdapter(set(), (tall, flat, 1.0, None, None, None)),
        LoHaAdapter(set(), (tall, flat, None, tall, flat, None, None, None)),
    ):
        assert applies(adapter, "x.weight", torch.Size([size, size]))
        assert not applies(adapter, "x.weight", torch.Size([size, size - 1]))


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_is_a_number(comfy, model, strength):
    with pytest.raises(ValueError, match="A strength has to be a number"):
        comfy.module("ovi.native.lora").apply(model, PAIR, 1.0, strength)


CASES = [parts for parts, _ in [*KINDS.values(), *LEFT.values()]]
SHAPES = [[], [0], [96], [96, 1], [96, 4], [4, 96], [12, 12], [8, 8], [96, 96], [1, 96], [24, 4, 4], [2, 48, 4, 4]]


def spoilt(rng, value):
    """A part of a LoRA, or one time in five another in its place."""
    if rng.random() < 0.8 or not isinstance(value, torch.Tensor):
        return value
    return rng.choice([draw(*rng.choice(SHAPES)), 0 * value, value.half(), value.to(torch.float8_e4m3fn)])


@pytest.mark.parametrize("seed", range(60))
def test_every_claim_is_true(comfy, model, seed):
    """Of spoilt LoRAs of every kind, what counts as patched is changed; anything else is refused or named."""
    rng = random.Random(seed)
    names = [
        Q,
        "blocks.1.cross_attn.o",
        "lora_unet_blocks_2_self_attn_k",
        "audio_model.blocks.1.ffn.2",
        "blocks.0.norm3",
    ]
    sd = {
        f"{name}.{end}": spoilt(rng, value)
        for name in rng.sample(names, 3)
        for end, value in (rng.choice(CASES) | rng.choice(CASES)).items()
    }
    refusal = None
    try:
        with_lora, notes = apply(comfy, model, sd)
    except ValueError as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal.startswith("Nothing of this LoRA changes Ovi: ")
        return
    keys = [key.removeprefix("diffusion_model.") for key in with_lora.patches]
    assert sum(map(int, re.findall(r"(\d+) (?:video|audio) weights", notes[0]))) == len(keys) > 0
    for key in keys:
        assert not torch.equal(weight(with_lora, key), SD[key]), key
