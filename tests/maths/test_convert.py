"""The offline converter: `python -m ovi.tools.convert`."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.files import peak, write_float32
from ovi.checkpoint import AUDIO, VIDEO
from ovi.config import OviConfig
from ovi.files import MappedFile
from ovi.tools.convert import main
from support import ROOT, golden_model

SD = load_file(golden_model.MODEL)


def convert(*argv):
    """Run a command in this process; return its exit code."""
    return main([str(argument) for argument in argv])


def tower(prefix):
    return {key: tensor for key, tensor in SD.items() if key.startswith(prefix)}


@pytest.fixture
def files(tmp_path):
    """Write files of tensors with the golden model's metadata; return their paths."""

    def files(*state_dicts, metadata=None):
        paths = [tmp_path / f"in_{i}.safetensors" for i in range(len(state_dicts))]
        for path, sd in zip(paths, state_dicts, strict=True):
            save_file(sd, path, golden_model.metadata() | (metadata or {}))
        return paths

    return files


def test_split_and_merge_give_the_same_bytes_again(tmp_path):
    first, second = ([tmp_path / f"{name}{i}" for name in ("video", "audio", "both")] for i in (1, 2))
    source = golden_model.MODEL
    for video, audio, both in (first, second):
        assert convert("split", source, video, audio) == 0
        assert convert("merge", audio, video, both) == 0
        source = both
    assert set(load_file(first[0])) == set(tower(VIDEO))
    assert set(load_file(first[1])) == set(tower(AUDIO))
    assert first[2].read_bytes() == golden_model.MODEL.read_bytes()
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_tensors_of_no_elements(tmp_path):
    """As the mark of a scaled fp8 file may be."""
    save_file({"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn), "x": torch.ones(2)}, tmp_path / "file")
    tensors = MappedFile(tmp_path / "file").tensors
    assert (tensors["scaled_fp8"].shape, tensors["scaled_fp8"].dtype) == ((0,), torch.float8_e4m3fn)
    assert tensors["x"].tolist() == [1, 1]


def test_merge_takes_other_layouts(files, tmp_path):
    bare = {k.removeprefix(VIDEO).replace("modulation.modulation", "modulation"): t for k, t in tower(VIDEO).items()}
    hosted = {f"model.diffusion_model.{k.removeprefix(AUDIO)}": t for k, t in tower(AUDIO).items()}
    assert convert("merge", *files(hosted, bare), tmp_path / "out") == 0
    merged = load_file(tmp_path / "out")
    assert merged.keys() == SD.keys()
    assert all(torch.equal(merged[key], SD[key]) for key in SD)
    assert golden_model.metadata(tmp_path / "out") == golden_model.metadata()


def test_formats_in_metadata_go_with_their_layers(files, tmp_path):
    layer = "blocks.0.ffn.0"
    quantised = {key.removeprefix(VIDEO): tensor for key, tensor in tower(VIDEO).items()}
    quantised[f"{layer}.weight"] = quantised[f"{layer}.weight"].to(torch.float8_e4m3fn)
    quantised[f"{layer}.weight_scale"] = torch.ones(())
    quantization = {"_quantization_metadata": json.dumps({"layers": {layer: {"format": "float8_e4m3fn"}}})}
    (video,) = files(quantised, metadata=quantization | {"modelspec.title": "Ovi"})
    assert convert("split", golden_model.MODEL, tmp_path / "video", tmp_path / "audio") == 0
    assert convert("merge", video, tmp_path / "audio", tmp_path / "out") == 0
    mark = load_file(tmp_path / "out")[f"{VIDEO}{layer}.comfy_quant"]
    assert json.loads(mark.numpy().tobytes()) == {"format": "float8_e4m3fn"}
    assert golden_model.metadata(tmp_path / "out") == golden_model.metadata() | {"modelspec.title": "Ovi"}


def test_merge_joins_shards(files, tmp_path, capsys):
    """Of the whole model, or of each tower; given by the first."""

    def shards(name, sd):
        halves = [dict(list(sd.items())[:100]), dict(list(sd.items())[100:])]
        paths = [tmp_path / f"{name}-0000{number}-of-00002.safetensors" for number in (1, 2)]
        for path, written in zip(paths, files(*halves), strict=True):
            written.rename(path)
        return paths

    both, video, audio = (shards(*case) for case in (("m", SD), ("v", tower(VIDEO)), ("a", tower(AUDIO))))
    assert convert("merge", both[0], tmp_path / "1") == 0
    assert convert("merge", audio[0], video[0], tmp_path / "2") == 0
    for out in (tmp_path / "1", tmp_path / "2"):
        merged = load_file(out)
        assert merged.keys() == SD.keys()
        assert all(torch.equal(merged[key], SD[key]) for key in SD)
        assert golden_model.metadata(out) == golden_model.metadata()
    capsys.readouterr()
    assert convert("merge", both[0], both[1], "--force") == 2
    assert "m-00002-of-00002.safetensors is given twice" in capsys.readouterr().err
    assert convert("split", both[1], tmp_path / "3", tmp_path / "4") == 2
    assert "choose the first, m-00001-of-00002.safetensors" in capsys.readouterr().err
    both[1].unlink()
    assert convert("merge", both[0], tmp_path / "3") == 2
    assert "m-00002-of-00002.safetensors is missing" in capsys.readouterr().err


def test_dry_run_lists_and_writes_nothing(tmp_path, capsys):
    assert convert("quantize", golden_model.MODEL, tmp_path / "out", "--format", "nvfp4", "--dry-run") == 0
    *lines, total = capsys.readouterr().out.splitlines()
    assert "video_model.blocks.0.ffn.0.weight  U8 [192, 48]" in lines
    assert "video_model.blocks.0.cross_attn.k_fusion.weight  BF16 [96, 96]" in lines
    assert total == f"{tmp_path / 'out'}: {len(lines)} tensors, 0.00206 GB, not written"
    assert not any(tmp_path.iterdir())


class Hostile:
    """Opened without care, its pickle makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def bad(tmp_path, files):
    """Files that are wrong, by what is wrong with them."""
    whole = golden_model.MODEL.read_bytes()
    contents = {
        "empty": b"",
        "truncated": whole[:-100],
        "cut in its header": whole[:100],
        "text": b"This is no file of tensors.",
        "hostile": pickle.dumps({"data_mean": Hostile(tmp_path / "hacked")}),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    nan = {key: tensor.clone() for key, tensor in SD.items()}
    nan["video_model.blocks.2.ffn.2.weight"][0, 0] = float("nan")
    other = {"decoder.conv1.weight": torch.zeros(1)}
    incomplete = {key: tensor for key, tensor in SD.items() if key != "audio_model.head.head.bias"}
    paths = files(nan, tower(VIDEO), other, incomplete)
    for name, path in zip(("nan", "video", "vae", "incomplete"), paths, strict=True):
        path.rename(tmp_path / name)
    (tmp_path / "model").write_bytes(whole)
    (tmp_path / "link").symlink_to("model")
    (tmp_path / "left.part").touch()
    (tmp_path / "folder").mkdir()
    torch.save([1, 2], tmp_path / "list")
    torch.save({"data_mean": Hostile(tmp_path / "hacked")}, tmp_path / "code")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("split missing a b", "There is no file .*missing"),
        ("split . a b", "There is no file"),
        ("split empty a b", "empty is empty, not a safetensors or PyTorch file"),
        ("split truncated a b", "truncated is not a complete safetensors file"),
        ("quantize text out --format fp8", "text is a text file"),
        ("merge hostile video out", "hostile is not a complete PyTorch file"),
        ("merge vae video out", "This file is a Wan video VAE, but an Ovi checkpoint is needed"),
        ("merge video video out", "Both files hold an Ovi video tower"),
        ("split video a b", "no audio tower"),
        ("split incomplete a b", "has no tensor audio_model.head.head.bias"),
        ("split model a folder", "folder is a folder; give the name of a file"),
        ("split model video folder --force", "folder is a folder; give the name of a file"),
        ("split model a video", "video exists; choose another name"),
        ("split model a left", "left.part exists; choose another name"),
        ("split model a a", "a is given twice"),
        ("quantize model model --format fp8 --force", "model is given twice"),
        ("quantize model link --format fp8 --force", "link is given twice"),
        ("quantize nan out --format fp8", "blocks.2.ffn.2.weight is all zero, or holds NaN"),
        ("audio-vae empty text out", "empty is empty, .*; download it again: hkchengrex/MMAudio ext_weights/v1-16.pth"),
        ("audio-vae code text out", "code holds code or objects .posix.mkdir. beside tensors, and is not opened for"),
        ("audio-vae truncated text out", "truncated is not a complete safetensors file"),
        ("audio-vae list text out", "list holds a value of type list, but tensors by name are needed"),
        ("audio-vae model vae out", "The VAE file is an Ovi model"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(bad, capsys, monkeypatch, command, message):
    monkeypatch.chdir(bad)
    before = {path: path.stat().st_size for path in bad.iterdir()}
    assert convert(*command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert {path: path.stat().st_size for path in bad.iterdir()} == before


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A float32 model of 6 GB whose largest tensors have the size of the release's."""
    widths = {"freq_dim": 90112, "text_dim": 172032, "video_channels": 43008, "audio_patch_dim": 24576}
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    write_float32(path, OviConfig(dim=1024, num_layers=1, num_heads=8, video_ffn_dim=43008, audio_ffn_dim=64, **widths))
    assert path.stat().st_size > 6e9
    yield path
    path.unlink()


def command(*argv):
    """The command as a user types it."""
    return [sys.executable, "-m", "ovi.tools.convert", *map(str, argv)]


def test_memory_stays_small(large, tmp_path):
    out = tmp_path / "out"
    most = peak("-m", "ovi.tools.convert", "quantize", large, out, "--format", "fp8")
    assert out.stat().st_size > 2.9e9
    out.unlink()
    assert most < 3e9


def test_bfloat16_is_no_quantisation(tmp_path):
    assert convert("quantize", golden_model.MODEL, tmp_path / "out", "--format", "bf16") == 0
    converted = load_file(tmp_path / "out")
    assert converted.keys() == SD.keys()
    assert all(torch.equal(converted[key], SD[key].bfloat16()) for key in SD)
    assert golden_model.metadata(tmp_path / "out") == golden_model.metadata()


def test_killed_run_leaves_nothing(large, tmp_path):
    argv = command("split", large, tmp_path / "video", tmp_path / "audio")
    with subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "video.part").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        assert process.communicate()[1] == "Interrupted; nothing was written.\n"
    assert process.returncode == 130
    assert not any(tmp_path.iterdir())


def test_it_runs_without_comfyui(tmp_path):
    """With torch, numpy, safetensors and einops alone, but for what quantises and the progress bars."""
    code = f"""
import sys
sys.modules |= dict.fromkeys(["comfy", "comfy_kitchen.tensor", "tqdm"])
from ovi.tools.convert import main
model, out = {str(golden_model.MODEL)!r}, {str(tmp_path / "out")!r}
sys.exit(main(["split", model, out, out + "2", "--dry-run"]) or main(["quantize", model, out, "--format", "fp8"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "The Python package comfy_kitchen is missing; run this with ComfyUI's Python, or install the package.\n"
    )
