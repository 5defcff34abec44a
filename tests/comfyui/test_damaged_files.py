"""Files that are damaged, foreign or absurd, through the loader nodes and the command lines: one sentence, or a model."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from ovi.tools import convert, train
from support import golden_model
from support.damage import damaged
from support.training import clips

pytestmark = [pytest.mark.comfyui, pytest.mark.usefixtures("inference")]

WHOLE = golden_model.MODEL.read_bytes()
FILES = {  # by what is said: content
    "is empty": b"",
    "is a web page": b"<html>Log in</html>",
    "is a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1",
    "is a GGUF file": b"GGUF\3\0\0\0",
    "is a text file": b"Not found",
    "is not a complete safetensors file": WHOLE[:-1000],
}
LOADERS = {  # by node: folder, inputs with the file's name as None, and where to get the right file
    "OviModelLoader": (
        "diffusion_models",
        {"model_name": None, "second_model_name": "none", "weight_dtype": "default"},
        "huggingface.co/chetwinlow1/Ovi",
    ),
    "OviAudioVAELoader": ("vae", {"vae_name": None, "vocoder_name": "in the VAE file"}, "hkchengrex/MMAudio"),
    "OviLoraLoader": ("loras", {"model": None, "lora_name": None, "video_strength": 1.0, "audio_strength": 1.0}, ""),
}


@pytest.mark.parametrize("node", LOADERS)
@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_loaders_name_what_is_no_model(comfy, node, ending):
    folder, inputs, source = LOADERS[node]
    path = comfy.models / folder / f"wrong{ending}"
    named = {key: path.name if value is None and key != "model" else value for key, value in inputs.items()}
    for problem, content in FILES.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"wrong{ending} {problem}.*{source}") as refused:
            comfy.run(node, **named)
        assert str(refused.value).isprintable()
    for value, problem in (([1, 2], "holds a value of type list"), ({"a": 3}, "holds a value of type int as 'a'")):
        torch.save(value, path)
        with pytest.raises(ValueError, match=rf"wrong{ending} {problem}"):
            comfy.run(node, **named)
    path.unlink()


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_a_name_that_ends_like_the_other_kind(comfy, ending):
    """By which ComfyUI reads."""
    path = comfy.models / "diffusion_models" / f"named{ending}"
    sd = load_file(golden_model.MODEL)
    (torch.save if ending == ".safetensors" else save_file)(sd, path)
    other = {".safetensors": ".pt", ".pt": ".safetensors"}[ending]
    with pytest.raises(ValueError, match=rf"named{ending} is a \w+ file; rename it so that it ends in {other}"):
        comfy.run("OviModelLoader", **LOADERS["OviModelLoader"][1] | {"model_name": path.name})
    path.unlink()


def test_30_damaged_files(comfy, tmp_path, capsys):
    """The same file through the node, convert and training: all refuse it in one line, or none."""
    (tmp_path / "clips").mkdir()
    clip = clips(1)[0]
    save_file({name: getattr(clip, name) for name in ("video", "audio", "context")}, tmp_path / "clips/0.safetensors")
    path = comfy.models / "diffusion_models" / "damaged.safetensors"
    inputs = LOADERS["OviModelLoader"][1] | {"model_name": path.name}
    refused = 0
    for seed in range(1000, 1030):
        path.write_bytes(damaged(WHOLE, seed))
        message = refusal(lambda: comfy.run("OviModelLoader", **inputs))
        code = convert.main(["split", str(path), str(tmp_path / "v"), str(tmp_path / "a"), "--dry-run"])
        lines = capsys.readouterr().err.splitlines()
        assert (code, len(lines)) == ((2, 1) if message else (0, 0)), (seed, message, lines)
        refused += code == 2
        if message:
            assert message.isprintable()
            assert "damaged.safetensors" in message
            with torch.inference_mode(mode=False):
                argv = [
                    str(path),
                    "--clips",
                    str(tmp_path / "clips"),
                    "--out",
                    str(tmp_path / "out"),
                    "--device",
                    "cpu",
                ]
                assert train.main(argv) == 2
            assert len(capsys.readouterr().err.splitlines()) == 1
    path.unlink()
    assert 15 < refused < 30


def refusal(work):
    """What is said; nothing where it works."""
    try:
        work()
    except ValueError as error:
        return str(error)
    return None


def test_a_model_in_shards(comfy):
    sd = load_file(golden_model.MODEL)
    names = [f"m-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name, keys in zip(names, (list(sd)[::2], list(sd)[1::2]), strict=True):
        save_file({key: sd[key] for key in keys}, comfy.models / "diffusion_models" / name, golden_model.metadata())
    inputs = LOADERS["OviModelLoader"][1]
    (model,) = comfy.run("OviModelLoader", **inputs | {"model_name": names[0]})
    loaded = model.model.diffusion_model.state_dict()
    assert all(torch.equal(loaded[key], sd[key]) for key in sd)
    with pytest.raises(ValueError, match=re.escape(f"choose the first, {names[0]}")):
        comfy.run("OviModelLoader", **inputs | {"model_name": names[1]})


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "transformer.module."])
def test_prefixes_of_trainers(comfy, prefix):
    sd = load_file(golden_model.MODEL)
    path = comfy.models / "diffusion_models" / "wrapped.safetensors"
    save_file({prefix + key: tensor for key, tensor in sd.items()}, path, golden_model.metadata())
    (model,) = comfy.run("OviModelLoader", **LOADERS["OviModelLoader"][1] | {"model_name": path.name})
    loaded = model.model.diffusion_model.state_dict()
    assert all(torch.equal(loaded[key], sd[key]) for key in sd)
