"""Training in several processes over gloo: the same as in one, and the same after a stop."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from ovi.tools import distill, distributed, options
from ovi.tools import train as tool
from support import golden_model, training_processes
from support.training import clips, gap, tensors

MODES = list(training_processes.MODES)
CLOSE = 1e-5


def command(folder, *options):
    model, clip_folder, out = (str(folder / name) for name in ("model.safetensors", "clips", "out.safetensors"))
    settings = "--device cpu --float32 --rank 2 --steps 2 --save-every 2 --keep 1 --lr 0.01"
    return [model, "--clips", clip_folder, "--out", out, *settings.split(), *options]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of clips, where the processes put their files."""
    folder = tmp_path_factory.mktemp("processes")
    golden_model.write(folder / "model.safetensors", training_processes.LAYERS)
    (folder / "clips").mkdir()
    for i, clip in enumerate(clips()):
        save_file(tensors(clip), folder / "clips" / f"{i}.safetensors")
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    """What each of two processes has found."""
    pytest.importorskip("accelerate")
    return training_processes.run(folder, command(folder, "--shard"))


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_are_one_with_twice_the_batch(ranks, mode):
    """And as one that accumulates: losses and gradients, and so the weights."""
    got = ranks[0][mode]
    assert got["history"] == ranks[1][mode]["history"]
    for batch, accumulate in ((2, 2), (4, 1)):
        run = training_processes.make(mode, batch, accumulate)
        history = [run.step() for _ in range(training_processes.STEPS)]
        expected = training_processes.found(run)
        torch.testing.assert_close(got["history"], history, rtol=CLOSE, atol=0)
        for kind in ("gradients", "trained", "averaged"):
            assert got[kind].keys() == expected[kind].keys()
            assert gap(got[kind], expected[kind]) < CLOSE, kind


def test_towers_without_a_loss_were_among_them(ranks):
    """The processes of DDP took a step of clips without audio."""
    assert {audio == 0 for _, audio in ranks[0]["ddp"]["history"]} == {True, False}


@pytest.mark.parametrize("mode", MODES)
def test_killed_and_resumed(ranks, mode):
    """Bit for bit, in each process."""
    for rank in ranks:
        assert rank[mode]["resumed"] == rank[mode]["history"]
        assert rank[mode]["changed"] == []


def test_a_model_that_is_shared_out(ranks):
    """With FSDP2 each process has a half of all weights, and with DDP all of them, some of them in RAM."""
    for mode, given in training_processes.MODES.items():
        for rank in ranks:
            assert rank[mode]["shared"] == {given["shard"]}
            own, whole = rank[mode]["numbers"]
            assert own == pytest.approx(whole / (1 + given["shard"]), rel=0.01)


def test_the_command_line(ranks, folder, capsys):
    """The first process writes all files, with the weights of one with twice the batch, and one alone cannot go on."""
    assert [rank["exit code"] for rank in ranks] == [0, 0]
    found = load_file(folder / "out.safetensors")
    history = torch.load(folder / "out.safetensors.state")["history"]
    assert (folder / "out_0000002.safetensors").exists()
    assert (folder / "out.safetensors.svg").exists()
    assert tool.main(command(folder)) == 2
    assert "was trained with another number of processes (2); use the same" in capsys.readouterr().err
    for left in folder.glob("out*"):
        left.unlink()
    assert tool.main(command(folder, "--batch", "2")) == 0
    expected = torch.load(folder / "out.safetensors.state")["history"]
    torch.testing.assert_close(history, expected, rtol=CLOSE, atol=0)
    for name, weights in load_file(folder / "out.safetensors").items():
        torch.testing.assert_close(found[name], weights, rtol=1e-2, atol=1e-4)  # in bfloat16


def test_distillation(ranks, folder):
    """In both stages, resumed between them: student and critic have the losses and gradients of one process.

    It has twice the batch, and the first frame of some clips is given.
    """
    states = [torch.load(folder / "turbo.safetensors.state")]
    for left in folder.glob("turbo*"):
        left.unlink()
    assert distill.main(training_processes.distilled(folder, "--batch", "2", "--dmd-iterations", "1")) == 0
    states.append(torch.load(folder / "turbo.safetensors.state"))
    for of_critic in (False, True):
        got, expected = (state["distillation"] if of_critic else state for state in states)
        torch.testing.assert_close(got["history"], expected["history"], rtol=CLOSE, atol=0)
        means = (
            {i: numbers["exp_avg"] for i, numbers in state["optimizer"]["state"].items()} for state in (got, expected)
        )
        assert gap(*means) < CLOSE
    for got, expected in zip(*(state["distillation"]["frames"] for state in states), strict=True):
        assert got[0] == expected[0]
        torch.testing.assert_close(got[1], expected[1], rtol=0, atol=1e-4)
    assert len(states[0]["distillation"]["frames"]) == 1  # of the first step's two clips; the other's was given


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("cuda:1", "adamw", False), "MULTI_GPU", "--device is cuda:1, but each of several processes has a device"),
        (("cpu", "adamw8bit", True), "MULTI_CPU", "is trained with adamw, not adamw8bit: leave out --shard"),
        (("cpu", "prodigy", False), "FSDP", "is trained with adamw, not prodigy"),
        (("cpu", "adamw", False), "DEEPSPEED", "accelerate is configured for DEEPSPEED, but this trains with"),
    ],
)
def test_processes_that_cannot_train(monkeypatch, arguments, kind, message):
    monkeypatch.setenv("WORLD_SIZE", "2")
    accelerator = SimpleNamespace(distributed_type=SimpleNamespace(value=kind))
    monkeypatch.setattr(distributed, "_accelerator", lambda **_: accelerator)
    device, optimizer, shard = arguments
    with pytest.raises(ValueError, match=message):
        distributed.started(device, optimizer, shard=shard)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ValueError, match="Several processes need the Python package accelerate: run pip install"):
        distributed.started("cpu", "adamw", shard=False)


def test_blocks_in_ram_are_not_shared_out():
    args = options.parse(["m", "--clips", "c", "--out", "o", "--offload-blocks", "1"])
    tool.check_memory(args)
    with pytest.raises(ValueError, match="--offload-blocks needs the whole model in each process; leave it out, or"):
        tool.check_memory(args, shard=True)
