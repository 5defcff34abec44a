"""What the command lines share: outputs that are complete or absent, paths, exit codes."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from ovi.tools.files import check_paths, exit_code
from ovi.writing import complete


def write(*paths, interrupted=False):
    """Write text to files that are complete or absent, or stop within the first."""
    with complete(*paths) as parts:
        for part in parts:
            part.write_text("after")
            if interrupted:
                raise KeyboardInterrupt


def test_all_outputs_or_none(tmp_path):
    """An interruption while the second is written leaves the first as it was, and no temporary file."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        write(first, second, interrupted=True)
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    assert first.read_text() == "before"
    write(first, second)
    assert first.read_text() == second.read_text() == "after"


def test_a_folder_in_the_place_of_one_output_spares_the_other(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("before")
    second.mkdir()
    with pytest.raises(OSError, match="second is a folder"):
        write(first, second)
    assert first.read_text() == "before"
    assert not list(tmp_path.glob("*.part"))


def test_others_may_read_what_they_may_read_of_any_new_file(tmp_path):
    """Which safetensors allows its owner alone."""
    (tmp_path / "any").touch()
    with complete(tmp_path / "tensors") as (part,):
        save_file({"x": torch.zeros(1)}, part)
    modes = [(tmp_path / name).stat().st_mode for name in ("any", "tensors")]
    assert modes[0] == modes[1]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (["missing"], ["out"], "There is no file .*missing"),
        (["folder"], ["out"], "There is no file .*folder"),
        (["input"], ["input"], "input is given twice"),
        (["input"], ["link"], "link is given twice"),
        (["input"], ["out", "out"], "out is given twice"),
        (["input"], ["folder"], "folder is a folder"),
        (["input"], ["nowhere/out"], "There is no folder .*nowhere"),
        (["input"], ["input.bak"], "input.bak exists"),
    ],
)
def test_paths_are_refused_before_work_begins(tmp_path, inputs, outputs, message):
    (tmp_path / "folder").mkdir()
    for name in ("input", "input.bak"):
        (tmp_path / name).write_text("here")
    (tmp_path / "link").symlink_to(tmp_path / "input")
    with pytest.raises(ValueError, match=message):
        check_paths(*([tmp_path / name for name in names] for names in (inputs, outputs)))


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("bad input"), 2, "bad input\n"),
        (OSError("no space left"), 2, "no space left\n"),
        (
            FileNotFoundError(2, "No such file or directory", "prompts.csv"),
            2,
            "prompts.csv: No such file or directory.\n",
        ),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (ModuleNotFoundError(name="ray.data"), 2, "The Python package ray is missing"),
    ],
)
def test_errors_are_one_line(capsys, error, code, line):
    def work():
        raise error

    assert exit_code(work, "stopped") == code
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [(ValueError("bad input"), ""), (KeyboardInterrupt(), ""), (OSError("no space left"), "no space left\n")],
)
def test_what_all_processes_of_a_machine_come_upon_is_said_once(capsys, monkeypatch, error, said):
    """By the first of them; what only this one may know it says itself."""

    def work():
        raise error

    codes = []
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        codes.append(exit_code(work, "stopped"))
        if rank == "0":
            assert capsys.readouterr().err
    assert codes[0] == codes[1]
    assert capsys.readouterr().err == said
