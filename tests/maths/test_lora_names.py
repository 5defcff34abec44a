"""Names of layers in LoRA files, on the keys of the whole model."""

from __future__ import annotations

import contextlib
import json
import re
import runpy

import pytest
import torch
from safetensors.torch import load_file, save_file

from ovi.lora import Names
from support import GOLDEN, ROOT

WEIGHTS = list(json.loads((GOLDEN / "full_model_keys.json").read_text())["keys"])
NAMES = Names(WEIGHTS)
END = ".lora_A.weight"


@pytest.mark.parametrize(
    "naming",
    [
        "diffusion_model.{}".format,
        "base_model.model.{}".format,
        "transformer.base_model.model.{}".format,
        "model.diffusion_model.{}".format,
        "_orig_mod.module.{}".format,
        lambda layer: f"lora_unet_{layer.replace('.', '_')}",
        lambda layer: f"lora_unet__{layer.replace('.', '_')}",
        lambda layer: f"lora_transformer_{layer.replace('.', '_')}",
        lambda layer: f"lycoris_{layer.replace('.', '_')}",
        lambda layer: f"lora_unet_{layer.replace('.', '_', 3)}",
        lambda layer: layer.replace("_model.", "_model.base_model.model."),
    ],
)
def test_every_layer_in_every_naming(naming):
    """Each weight is found, with its own tower; without a tower, it is the video tower's."""
    for weight in WEIGHTS:
        layer = weight.removesuffix(".weight")
        assert NAMES.place(naming(layer) + END) == (weight, END)
        if layer.startswith("video_model."):
            assert NAMES.place(naming(layer.removeprefix("video_model.")) + END) == (weight, END)


@pytest.mark.parametrize(
    ("name", "layer"),
    {
        "attn1.to_q": "self_attn.q",
        "attn2.to_v": "cross_attn.v",
        "attn1.to_out.0": "self_attn.o",
        "attn2.to_out": "cross_attn.o",
        "attn1.norm_k": "self_attn.norm_k",
        "attn1.processor.to_k": "self_attn.k",
        "ffn.net.0.proj": "ffn.0",
        "ffn.net.2": "ffn.2",
        "norm2": "norm3",
        "_orig_mod.ffn.2": "ffn.2",
    }.items(),
)
@pytest.mark.parametrize("tower", ["video", "audio"])
def test_diffusers_names(name, layer, tower):
    weight = f"{tower}_model.blocks.12.{layer}.weight"
    assert NAMES.place(f"transformer.{tower}_model.blocks.12.{name}{END}") == (weight, END)
    if "_orig_mod" not in name and "processor" not in name:
        assert NAMES.place(f"lora_unet_{tower}_model_blocks_12_{name.replace('.', '_')}{END}") == (weight, END)


@pytest.mark.parametrize(
    ("key", "weight"),
    {
        "blocks.0.modulation": "blocks.0.modulation.modulation",
        "blocks.0.modulation.modulation": "blocks.0.modulation.modulation",
        "blocks.0.scale_shift_table": "blocks.0.modulation.modulation",
        "blocks.0.self_attn.q.bias": "blocks.0.self_attn.q.bias",
        "condition_embedder.text_embedder.linear_1": "text_embedding.0.weight",
        "condition_embedder.time_embedder.linear_2": "time_embedding.2.weight",
        "condition_embedder.time_proj": "time_projection.1.weight",
        "proj_out": "head.head.weight",
    }.items(),
)
def test_other_layers(key, weight):
    assert NAMES.place(f"transformer.{key}.diff") == (f"video_model.{weight}", ".diff")


@pytest.mark.parametrize(
    ("end", "read"),
    [
        ("_lora.up.weight", "_lora.up.weight"),
        (".lora_A.default.weight", ".lora_A.weight"),
        (".lora_B.default_0.bias", ".lora_B.bias"),
        (".lora_B", ".lora_B"),
        (".alpha", ".alpha"),
        (".lora_linear_layer.up.weight", ".lora_linear_layer.up.weight"),
    ],
)
def test_ends(end, read):
    assert NAMES.place(f"blocks.0.cross_attn.k{end}").end == read


@pytest.mark.parametrize(
    "layer",
    [
        "vace_blocks.0.self_attn.q",
        "transformer_blocks.0.attn1.to_q",
        "transformer.transformer_blocks.0.attn1.to_q",
        "lora_unet_transformer_blocks_0_attn1_to_q",
        "lora_transformer_transformer_blocks_0_attn1_to_q",
        "lora_te_blocks_0_self_attn_q",
        "lora_te1_blocks_0_self_attn_q",
        "text_encoder.blocks.0.self_attn.q",
        "controlnet.blocks.0.self_attn.q",
        "image_encoder.blocks.0.self_attn.q",
        "audio.blocks.0.self_attn.q",
        "audio_model.video_model.blocks.0.self_attn.q",
        "single_transformer_blocks.0.proj_out",
    ],
)
def test_layers_of_other_networks_are_not_taken(layer):
    with pytest.raises(ValueError, match=r"^unknown prefix ") as error:
        NAMES.place(layer + END)
    assert layer.startswith(str(error.value).rpartition(" ")[2])


@pytest.mark.parametrize(
    "layer",
    [
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "blocks.30.self_attn.q",
        "blocks.0.self_attn.q_proj",
        "blocks.0.cross_attn.k_img",
        "lora_unet_blocks_0_cross_attn_k_img",
        "img_emb.proj.0",
        "xblocks.0.self_attn.q",
        "",
    ],
)
def test_layers_that_ovi_lacks(layer):
    with pytest.raises(ValueError, match="Ovi has no such layer"):
        NAMES.place(layer + END)


PARTS = ["blocks_0_", "._", "video_model.", "blocks.0.self_attn.", "unet_", "_", "coder", "_a"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("layer", ["blocks.0.self_attn.q", "xblocks_0_self_attn_q"])
def test_long_names_take_linear_time(part, layer):
    """A name of a million characters; time that grew with its square would be hours."""
    with contextlib.suppress(ValueError):
        NAMES.place(part * (1_000_000 // len(part)) + layer + END)


@pytest.mark.parametrize("page", ["docs/lora.md", "web/docs/OviLoraLoader.md"])
def test_the_recipe_for_renaming(page, tmp_path, monkeypatch):
    """The code on a page of the documentation makes an unknown prefix a known one."""
    monkeypatch.chdir(tmp_path)
    save_file({f"our_blocks.{i}.self_attn.q{END}": torch.ones(1) for i in range(2)}, "lora.safetensors")
    code = re.search(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)[1]
    (tmp_path / "recipe.py").write_text(code.replace('"X"', '"our_"'))
    runpy.run_path(str(tmp_path / "recipe.py"))
    for i, key in enumerate(sorted(load_file("lora_renamed.safetensors"))):
        assert NAMES.place(key) == (f"video_model.blocks.{i}.self_attn.q.weight", END)
