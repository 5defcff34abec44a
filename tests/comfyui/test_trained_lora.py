"""LoRAs of training and of distillation, through the loader node."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ovi import turbo
from ovi.lora import lora_file
from ovi.tools import train
from support import golden_model
from support.distilling import distiller
from support.training import clips, tensors

pytestmark = pytest.mark.comfyui


@pytest.mark.parametrize(("options", "scale"), [([], 1.0), (["--alpha", "2"], 0.5)])
def test_lora_loads_back(comfy, tmp_path, options, scale):
    """The command line writes a LoRA that changes, through the node, every layer that it trained by its product.

    The product counts alpha / rank.
    """
    (tmp_path / "clips").mkdir()
    for i, clip in enumerate(clips()):
        save_file(tensors(clip), tmp_path / "clips" / f"{i}.safetensors")
    out = comfy.models / "loras" / f"trained_{scale}.safetensors"
    paths = [str(golden_model.MODEL), "--clips", str(tmp_path / "clips"), "--out", str(out)]
    assert train.main([*paths, "--device", "cpu", "--lr", "0.01", "--steps", "3", "--rank", "4", *options]) == 0
    lora = load_file(out)
    shutil.copy(golden_model.MODEL, comfy.models / "diffusion_models" / "trained_on.safetensors")
    names = {"model_name": "trained_on.safetensors", "second_model_name": "none", "weight_dtype": "default"}
    with torch.inference_mode():
        (model,) = comfy.run("OviModelLoader", **names)
        output = comfy.node["OviLoraLoader"].execute(model, out.name, 1.0, 1.0)
        layers = {key.removesuffix(".lora_A.weight") for key in lora if ".lora_A." in key}
        assert len(layers) == 2 * 3 * (4 + 6 + 2)
        assert f"Patched: {len(layers) // 2} video weights at" in output.ui.as_dict()["text"][0]
        assert "Not loaded" not in output.ui.as_dict()["text"][0]
        patched, weights = output.args[0], golden_model.load().state_dict()
        for layer in layers:
            change = scale * lora[f"{layer}.lora_B.weight"].float() @ lora[f"{layer}.lora_A.weight"].float()
            assert change.abs().max() > 0, layer
            key = f"{layer}.weight"
            got = patched.patch_weight_to_device(key, return_weight=True).cpu()
            torch.testing.assert_close(got, weights[key.removeprefix("diffusion_model.")] + change, atol=1e-6, rtol=0)


def test_a_lora_for_few_steps_and_another_add_up(comfy):
    """Each with its own strength: every weight is changed by the sum of their products, to 1e-5."""
    shutil.copy(golden_model.MODEL, comfy.models / "diffusion_models" / "trained_on.safetensors")
    names = {"model_name": "trained_on.safetensors", "second_model_name": "none", "weight_dtype": "default"}
    expected = golden_model.load().state_dict()
    made = turbo.Sampling(2, 5.0, 1.0, 1.0, "euler")
    with torch.inference_mode():
        (model,) = comfy.run("OviModelLoader", **names)
        for strength, metadata in ((1.0, made.metadata()), (0.5, None)):
            run = distiller()
            weights = {name: torch.randn_like(weight) / 10 for name, weight in run.trained.items()}
            path = comfy.models / "loras" / f"at_{strength}.safetensors"
            save_file(lora_file(weights, 1.5), path, metadata)
            output = comfy.node["OviLoraLoader"].execute(model, path.name, strength, strength)
            model = output.args[0]
            assert str(made) in output.ui.as_dict()["text"][0] or metadata is None
            for name, down in weights.items():
                if name.endswith(".lora_A.weight"):
                    up = weights[name.replace("lora_A", "lora_B")]
                    expected[name.replace(".lora_A", "")] += strength * 1.5 * up @ down
        for layer in {name.rpartition(".lora_")[0] for name in run.trained}:
            got = model.patch_weight_to_device(f"diffusion_model.{layer}.weight", return_weight=True).cpu()
            torch.testing.assert_close(got, expected[f"{layer}.weight"], atol=1e-5, rtol=0)
