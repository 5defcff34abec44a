"""The options of the training: in a TOML file, and what is written beside the result."""

from __future__ import annotations

import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from safetensors.torch import load_file, save_file

from ovi.tools import curves, options
from ovi.tools import train as tool
from ovi.tools.clips import Folder
from support import golden_model
from support.training import LAYERS, clips, tensors


@pytest.fixture
def folder(tmp_path):
    """A folder of clips of two sizes, and beside it the model."""
    (tmp_path / "clips").mkdir()
    for i, clip in enumerate([*clips(2), *clips(1, frames=3, latents=13)]):
        save_file(tensors(clip), tmp_path / "clips" / f"{i}.safetensors")
    golden_model.write(tmp_path / "model.safetensors", LAYERS)
    return tmp_path


def config(folder, text):
    """Write a TOML file with what is always needed, and more."""
    path = folder / "train.toml"
    needed = {name: f"{folder}/{name}" for name in ("clips",)} | {"out": f"{folder}/out.safetensors"}
    lines = [f"model = '{folder}/model.safetensors'", *(f"{name} = '{value}'" for name, value in needed.items())]
    path.write_text("\n".join([*lines, "device = 'cpu'", text]))
    return str(path)


def test_a_training_from_a_file(folder):
    """Its options, those of the command line first; the file beside the result trains the same."""
    path = config(folder, "steps = 3\nrank = 2\nlr = 1\nbatch = 2\ngiven-audio = 0.5\nlayers = ['ffn']\nfloat32 = true")
    assert tool.main(["--config", path, "--steps", "2", "--keep", "1", "--save-every", "1"]) == 0
    out = folder / "out.safetensors"
    first = load_file(out)
    assert all(".ffn." in key for key in first)
    kept = load_file(folder / "out_0000002.safetensors")
    assert all(torch.equal(tensor, first[key]) for key, tensor in kept.items())
    assert not (folder / "out_0000001.safetensors").exists()  # of the results on the way, the last one is kept
    state = torch.load(f"{out}.state")
    assert (state["settings"]["lr"], state["settings"]["given_audio"]) == (1.0, 0.5)
    again = shutil.move(folder / "out.safetensors.toml", folder / "again.toml")
    for left in folder.glob("out*"):
        left.unlink()
    assert tool.main(["--config", str(again)]) == 0
    assert all(torch.equal(tensor, first[key]) for key, tensor in load_file(out).items())
    assert (folder / "out.safetensors.toml").read_text() == again.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz = 3", "has an option 'stepz', which there is not; the options are "),
        ("steps = '3'", "has steps = '3', but a whole number is needed"),
        ("steps = 2.5", "has steps = 2.5, but a whole number is needed"),
        ("steps = true", "has steps = True, but a whole number is needed"),
        ("lr = 'fast'", "has lr = 'fast', but a number is needed"),
        ("float32 = 1", "has float32 = 1, but true or false is needed"),
        ("layers = []", "has layers = [], but a list of one or more is needed"),
        ("layers = ['norm']", "has layers = ['norm'], but one of self_attn, cross_attn, ffn is needed"),
        ("optimizer = 'sgd'", "has optimizer = 'sgd', but one of adamw, adamw8bit, prodigy is needed"),
        ("tower = 3", "has tower = 3, but a text is needed"),
        ("steps =", "is no TOML file ("),
    ],
)
def test_a_file_that_cannot_be_used(folder, capsys, text, message):
    assert tool.main(["--config", config(folder, text)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert "train.toml" in line


def test_a_file_that_is_not_there(folder, capsys):
    assert tool.main(["--config", str(folder / "none.toml")]) == 2
    assert "none.toml: No such file" in capsys.readouterr().err


def test_values_in_toml(folder):
    """Strings that need quoting, lists, and what is left out."""
    args = options.parse(["a'b.safetensors", 'c"d\\e', "--clips", "ü", "--out", "o", "--alpha", "2"])
    options.write(args, folder / "o.toml")
    read = options.parse(["--config", str(folder / "o.toml")])
    assert vars(read) | {"config": None} == vars(args)


def test_the_help_names_every_setting():
    names = set(options.Settings.__dataclass_fields__)
    assert names - set(options.ABOUT) == {"betas", "cut", "split", "split_steps"}  # for training from scratch


def test_the_plot_of_losses(tmp_path):
    """Two curves from the first step to the last, the highest mean at the top."""
    for count in (1, 1000):
        losses = [(1.0 + step, 0.5) for step in range(count)]
        curves.plot(losses, tmp_path / "plot.svg")
        lines = ElementTree.parse(tmp_path / "plot.svg").findall(".//{*}polyline")
        assert [line.get("stroke") for line in lines] == list(curves.COLOURS.values())
        points = [[tuple(map(float, point.split(","))) for point in line.get("points").split()] for line in lines]
        assert len(points[0]) == len(points[1]) == min(count, 334)
        assert min(y for _, y in points[0]) == curves.MARGIN
        assert points[0] == sorted(points[0])
        assert f"step {count}" in (tmp_path / "plot.svg").read_text()


def test_tensorboard(tmp_path):
    """Each step once, from the one that a run resumed at."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses = [(1.0, 2.0), (0.5, 1.0), (0.25, 0.5)]
    add = curves.tensorboard(tmp_path, 1)
    add(losses[:2])
    add(losses)
    found = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss/audio")] == [(2, 1.0), (3, 0.5)]


def test_tensorboard_that_is_missing_is_named(folder, capsys, monkeypatch):
    for module in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    path = config(folder, f"steps = 1\nrank = 2\ntensorboard = '{folder}/board'")
    assert tool.main(["--config", path]) == 2
    assert "--tensorboard needs the Python package tensorboard" in capsys.readouterr().err


def person_clip(folder, **more):
    """Write a clip with more tensors, or without some (None)."""
    found = tensors(clips(1)[0]) | more
    save_file({key: tensor for key, tensor in found.items() if tensor is not None}, folder / "clips" / "0.safetensors")


def test_clips_of_a_folder(folder):
    """Persons and missing modalities are read, and clips of one shape share a bucket."""
    image, voice = torch.randn(48, 1, 4, 4), torch.randn(20, 7)
    person_clip(folder, image_1=image, image_2=image + 1, voice_1=voice)
    save_file({k: v for k, v in tensors(clips(1)[0]).items() if k != "audio"}, folder / "clips" / "4.safetensors")
    found = Folder(folder / "clips", golden_model.load().config)
    assert found.buckets() == [[0], [1], [2], [3]]
    assert torch.equal(found[0].images[1], image + 1)
    assert torch.equal(found[0].voices[0], voice)
    assert found[3].audio is None
    assert found[1].images == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"image_2": torch.zeros(48, 1, 4, 4)}, r"has the images of the persons \[2\], which must be counted from 1"),
        ({"image_1": torch.zeros(48, 1, 4, 2)}, "a clip needs video"),
        ({"voice_1": torch.zeros(20, 0)}, "a clip needs video"),
        ({"voice_1": torch.zeros(20, 3), "audio": None}, "has voices of persons, but no audio; leave them out"),
        ({"video": None, "audio": None}, "a clip needs video"),
    ],
)
def test_wrong_clips(folder, more, message):
    person_clip(folder, **more)
    with pytest.raises(ValueError, match=re.compile(message)):
        Folder(folder / "clips", golden_model.load().config)
