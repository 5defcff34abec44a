"""Many prompts: what `python -m ovi.tools.batch` reads and keeps, without a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ovi.tools import batch, results
from support import ROOT
from support.batch import clip, index_first, still, write
from support.workflows import GRAPHS, id_of, ids, node_of, prompt

TEXT_TO_VIDEO, IMAGE_TO_VIDEO = prompt("ovi_text_to_video"), prompt("ovi_image_to_video")
FPS = f"{id_of(TEXT_TO_VIDEO, 'CreateVideo')}.fps"
LENGTH = f"{id_of(TEXT_TO_VIDEO, 'EmptyOviLatent')}.length"
STYLE = f"{id_of(TEXT_TO_VIDEO, 'OviTextEncode')}.prompt_style"
TEXTS = ids(prompt("ovi_three_clips"), "OviTextEncode")


def image(path, size=(8, 8)):
    """Write an image that does not compress; return its content."""
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
    return path.read_bytes()


def table(folder, content):
    """Write a CSV of text or bytes; return its path."""
    path = folder / "prompts.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_cells_set_the_inputs_of_the_workflow_that_fits(tmp_path):
    image(tmp_path / "start.png")
    path = write(
        tmp_path,
        {"text": "A fox, in snow", "image": "", "seed": "7", "frames": "241", "cfg": "3.5", FPS: "25"},
        {"text": "", "image": "start.png", "seed": "", "frames": "", "cfg": "", FPS: ""},
    )
    first, second = batch.read(path)
    changed = {"OviTextEncode": {"prompt": "A fox, in snow"}, "RandomNoise": {"noise_seed": 7}}
    changed |= {"CFGGuider": {"cfg": 3.5}, "EmptyOviLatent": {"length": 241}, "CreateVideo": {"fps": 25}}
    expected = prompt("ovi_text_to_video")
    for kind, inputs in changed.items():
        node_of(expected, kind)["inputs"] |= inputs
    assert first.prompt == expected
    assert first.images == {}
    expected = prompt("ovi_image_to_video")
    node_of(expected, "LoadImage")["inputs"]["image"] = "start.png"
    assert second.prompt == expected
    assert second.images == {id_of(expected, "LoadImage"): tmp_path / "start.png"}


@pytest.mark.parametrize(
    ("column", "alias"), [("prompt", "text"), ("length", "frames"), ("noise_seed", "seed"), ("shift", None)]
)
def test_columns_are_called_as_the_nodes_call_their_inputs(tmp_path, column, alias):
    """The names from before mean the same, and any input that one node has will do."""
    (row,) = batch.read(table(tmp_path, f"{column}\n5\n"))
    names = [name for node in row.prompt.values() for name, value in node["inputs"].items() if value in (5, "5")]
    assert column in names
    if alias:
        assert batch.read(table(tmp_path, f"{alias}\n5\n"))[0].prompt == row.prompt


def test_every_image_of_a_workflow_is_checked_and_uploaded(tmp_path):
    """A column NODE.image of one of several Load Image nodes as well."""
    first, last = image(tmp_path / "first.png"), image(tmp_path / "last.png", (16, 16))
    loaders = {node: {"class_type": "LoadImage", "inputs": {"image": "example.png"}} for node in ("16", "17")}
    workflow = TEXT_TO_VIDEO | loaders
    (row,) = batch.read(write(tmp_path, {"16.image": "first.png", "17.image": "last.png"}), workflow)
    assert row.uploads() == [("16", "first.png", first), ("17", "last.png", last)]
    with pytest.raises(ValueError, match=r"row 1 \(line 2\), column '16.image': there is no image .*lost\.png"):
        batch.read(write(tmp_path, {"16.image": "lost.png"}), workflow)


@pytest.mark.parametrize(
    "content",
    [b"root:x:0:0:root:/root:/bin/sh\n", b"", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", None],
    ids=["passwords", "empty", "program", "cut"],
)
def test_only_an_image_gets_to_a_server(tmp_path, content):
    """Neither when the table is read, nor where the file has changed since."""
    path = tmp_path / "start.png"
    whole = image(path, (64, 64))
    (row,) = batch.read(write(tmp_path, {"image": str(path)}))
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(batch.RowError, match="is no image that can be opened"):
        row.uploads()
    with pytest.raises(ValueError, match=r"column 'image': .*start\.png is no image that can be opened"):
        batch.read(write(tmp_path, {"image": str(path)}))


def test_ray_takes_one_address(tmp_path, capsys):
    """It would use the first and ignore the others."""
    path, servers = write(tmp_path, {"seed": "1"}), ["--server", "http://127.0.0.1:1", "--server", "http://127.0.0.1:2"]
    assert batch.main([str(path), str(tmp_path), "--ray", *servers]) == 2
    assert "--ray uses one address" in capsys.readouterr().err


TWO = "row 2 (line 3)"
NOT_NAMES = ("../x", "a/b", "a\\b", "c:x", "con", "NUL.txt", "x.", ".", "a?", "x" * 201, "a.queued", "é" * 101)


@pytest.mark.parametrize(
    ("rows", "workflow", "message"),
    [
        # The first line.
        ("txt\nx", None, "has a column 'txt', and there is no input for it: columns are name, prompt, video_negative"),
        ("99.fps\n24", None, "has a column '99.fps', and there is no input for it"),
        ("image\nx", "ovi_text_to_video", "has a column 'image', and there is no input for it"),
        ("text,seed,\nx,1,", None, "column 3 has no name in the first line"),
        ("seed,text,seed\n1,x,2", None, "has a column 'seed' twice"),
        ("text,prompt\nx,y", None, "has a column 'text' as 'prompt' twice"),
        ("text,seed;width\nx,1;32", None, "separates its columns by ',' and ';' in its first line"),
        # The lines.
        ("", None, "has no rows"),
        ("text\n", None, "has no rows"),
        ("text\nA fox, in snow", None, "row 1 (line 2) has more cells than there are columns: put quotes"),
        ("text,seed\nx,1\ny", None, f"{TWO} has 1 cells, but there are 2 columns"),
        ("text,seed\nx,1\n,\n", None, f"{TWO} has no cells, only what stands between them"),
        ('text\n"x\n\n\ny"\n" "\n', None, "row 2 (line 6) has no cells"),
        ('text,seed\nx,1\n"y,2\n', None, "line 3: a quote is opened and not closed"),
        ('text,seed\n"x"y,1\n', None, "line 2: ',' expected after '\"'"),
        ('seed,text\n1, "A fox"', None, "row 1 (line 2), column 'text': there is a space before the quote"),
        # The cells.
        ("seed\n1\n2.5", None, f"{TWO}, column 'seed': noise_seed is '2.5', but a whole number is needed"),
        ("seed\n1_000", None, "noise_seed is '1_000', but a whole number is needed"),
        ("seed\n-1", None, "noise_seed is -1, but a number from 0 to 18446744073709551615 is needed"),
        ("seed\n18446744073709551616", None, "noise_seed is 18446744073709551616, but a number from 0"),
        (f"seed\n{'9' * 5000}", None, "...', but a whole number is needed"),
        ("cfg\nhigh", None, "row 1 (line 2), column 'cfg': cfg is 'high', but a number such as 4.5 is needed"),
        ("cfg\nnan", None, "cfg is 'nan', but a number such as 4.5 is needed"),
        ("cfg\ninf", None, "cfg is 'inf', but a number"),
        ("cfg\n1e999", None, "cfg is '1e999', but a number"),
        ("cfg;seed\n3,5;1", None, "cfg is '3,5', but a number such as 4.5 is needed"),
        ("cfg\n101", None, "cfg is 101, but a number from 0 to 100 is needed"),
        (f"{FPS}\nmany", None, "fps is 'many', but a number such as 4.5 is needed"),
        (f"{FPS}\n{'[' * 100_000}", None, "...', but a number such as 4.5 is needed"),
        (f'{FPS}\n"[""1"", 0]"', None, """fps is '["1", 0]', but a number"""),
        (f"{FPS}\nnull", None, "fps is 'null', but a number"),
        (f'{FPS}\n"{{""a"": 1}}"', None, "fps is '{\"a\": 1}', but a number"),
        (f"{FPS}\ntrue", None, "fps is 'true', but a number"),
        ("frames\n120", None, "column 'frames': The length must be 4n + 1 frames, got 120: use 117 or 121"),
        (f"{LENGTH}\n120", None, f"column '{LENGTH}': The length must be 4n + 1 frames, got 120"),
        ("length\n-3", None, "length is -3, but a number from 1 to 16384"),
        ("width\n1000", None, "column 'width': Width and height must be multiples of 32, got 1000x704"),
        ("height\n0", None, "height is 0, but a number from 1 to 16384 is needed"),
        ("steps\n0", None, "steps is 0, but a number from 1 to 10000 is needed"),
        (f"frames,{LENGTH}\n121,241", None, f"columns 'frames' and '{LENGTH}': both set"),
        (f"text\n{'x' * 131_073}", None, "column 'text': the cell has 131,073 characters, more than 131,072"),
        ("image\nnone.png", None, "row 1 (line 2), column 'image': there is no image"),
        ("image,seed\na\0b.png,1", None, "line 2: there is a zero byte"),
        (
            "text\nx",
            "ovi_three_clips",
            f"'text': it matches several nodes of the workflow ({', '.join(TEXTS)}): choose one, such as {TEXTS[0]}.pr",
        ),
        ("sep=;\nprompt;seed\nx;1", None, "begins with 'sep=;', which only Excel reads: delete that line"),
        ("prompt|seed\nx|1", None, "has '|' in its first line: separate the columns by commas, semicolons or tabs"),
        # The names of files.
        *((f'name\n"{name}"', None, "column 'name': ") for name in NOT_NAMES),
        ("name\nfox\nFOX", None, f"{TWO}, column 'name': the files of row 1 (line 2) are called FOX already"),
        ("name\n0002\n \n", None, f"{TWO} has no cells"),
        ("name,seed\n0002,1\n,2", None, f"{TWO}, column 'name': the files of row 1 (line 2) are called 0002 already"),
        ("name\ncafe\u0301\ncaf\u00e9", None, "are called caf\u00e9 already"),
        # The file.
        ("text\nfür".encode("cp1252"), None, "line 2: the text is not UTF-8 (byte 0xfc): save it as 'CSV UTF-8' in Ex"),
        ("text\nx".encode("utf-16-le"), None, "line 1: there is a zero byte, as in UTF-16 without its mark: save it"),
        ("text\nx".encode("utf-16")[:-1], None, "the text is broken UTF-16: save it as 'CSV UTF-8'"),
        (b"PK\x03\x04" + bytes(99), None, "is a workbook or another zip file, not a CSV: save it as 'CSV UTF-8'"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_a_sentence(tmp_path, capsys, rows, workflow, message):
    """It names the file, and the row, line and column where there are some."""
    path = table(tmp_path, rows)
    options = ["--workflow", str(batch.PROMPTS / f"{workflow}.json")] if workflow else []
    assert batch.main([str(path), str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith(str(path))
    assert error.count("\n") == 1
    assert len(error) < 600
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_table_is_read_as_excel_writes_it(tmp_path, encoding, separator, end):
    lines = [["text", "seed"], [f'"für{separator} 雪"', "7"], [], ["x", "8"], []]
    path = table(tmp_path, end.join(separator.join(line) for line in lines).encode(encoding))
    rows = batch.read(path)
    assert [row.cells for row in rows] == [{"text": f"für{separator} 雪", "seed": "7"}, {"text": "x", "seed": "8"}]


def test_a_row_can_name_its_files(tmp_path):
    rows = batch.read(table(tmp_path, "name,seed\nfox,1\n,2\nraven.mp4,3\n"))
    assert [row.name for row in rows] == ["fox", "0002", "raven"]


def test_true_and_false_belong_to_switches(tmp_path):
    workflow = {"1": {"class_type": "X", "inputs": {"on": False}}}
    (row,) = batch.read(table(tmp_path, "1.on\nTRUE\n"), workflow)
    assert row.prompt["1"]["inputs"]["on"] is True
    with pytest.raises(ValueError, match="on is '1', but true or false is needed"):
        batch.read(table(tmp_path, "1.on\n1\n"), workflow)
    (row,) = batch.read(table(tmp_path, f"{STYLE}\n[1]\n"))
    assert node_of(row.prompt, "OviTextEncode")["inputs"]["prompt_style"] == "[1]"


def test_a_text_may_have_a_node_of_its_own(tmp_path):
    """As in the templates, where the negative prompts are red nodes."""
    workflow = prompt("ovi_text_to_video")
    encode = id_of(workflow, "OviTextEncode")
    workflow["5:99"] = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "blur"}}
    workflow[encode]["inputs"] |= {
        "video_negative": ["5:99", 0],
        "audio_negative": ["5:99", 0],
        "prompt": ["missing", 0],
    }
    (row,) = batch.read(table(tmp_path, "video_negative\nrain\n"), workflow)
    assert row.prompt["5:99"]["inputs"] == {"value": "rain"}
    with pytest.raises(ValueError, match=r"'video_negative' and '5:99.value': both set 5:99.value"):
        batch.read(table(tmp_path, "video_negative,5:99.value\nrain,snow\n"), workflow)
    with pytest.raises(ValueError, match="'prompt', and there is no input for it"):
        batch.read(table(tmp_path, "prompt\nA fox.\n"), workflow)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("workflow.json", GRAPHS[0].read_bytes()),
        ("empty.json", b"{}"),
        ("deep.json", b"[" * 100_000),
        ("nan.json", b'{"1": {"class_type": "X", "inputs": {"x": NaN}}}'),
        ("inputs.json", b'{"1": {"class_type": "X", "inputs": []}}'),
        ("bytes.json", b"\xff\xfe\xfd"),
        ("thumbnail.jpg", GRAPHS[0].with_suffix(".jpg").read_bytes()),
        ("clip.MP4", GRAPHS[0].with_suffix(".jpg").read_bytes()),
        ("empty.mp4", b""),
        ("silent.mp4", clip()),
    ],
)
def test_a_workflow_in_another_form_is_refused(tmp_path, capsys, name, content):
    other = tmp_path / name
    other.write_bytes(content)
    assert batch.main([str(write(tmp_path, {"seed": "1"})), str(tmp_path), "--workflow", str(other)]) == 2
    error = capsys.readouterr().err
    assert "has no workflow in API form: use a file from 'Export (API)'" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8188", "http://", "http://127.0.0.1:99999", "ftp://a", "http://[::1", "x y"]
)
def test_an_address_that_is_none_is_refused(tmp_path, capsys, address):
    with pytest.raises(SystemExit):
        batch.main([str(write(tmp_path, {"seed": "1"})), str(tmp_path), "--server", address])
    assert "is not the address of a ComfyUI" in capsys.readouterr().err


# Which files count as a clip.


def test_a_whole_clip_counts(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip(frames=121))
    for content in (path.read_bytes(), index_first(path)):
        results.check_clip(content, TEXT_TO_VIDEO)
    results.check_clip(clip(audio=False), {"1": {"class_type": "X", "inputs": {}}})


def damaged(folder):
    """Yield contents that are no clip, as bytes, and what the sentence says of each."""
    path = folder / "whole.mp4"
    path.write_bytes(clip(frames=121))
    whole, first = path.read_bytes(), index_first(path)
    start = first.index(b"mdat") + 4
    yield b"", "no mp4"
    yield b"<!DOCTYPE html><html><body>502 Bad Gateway</body></html>", "no mp4"
    yield np.random.default_rng(0).bytes(20_000), "no mp4"
    yield bytes(20_000), "no mp4"
    yield b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "no mp4"
    yield image(folder / "frame.png"), "no mp4"
    yield whole[: len(whole) // 2], "no mp4"
    yield first[: len(first) // 2], "cut off"
    yield first[:-10], "cut off"
    yield first[: len(first) // 2] + bytes(len(first) - len(first) // 2), "cut off"
    yield first[:start] + np.random.default_rng(0).bytes(len(first) - start), "no mp4"
    yield clip(frames=121, audio=False), "no audio"
    yield clip(frames=121, video=False), "no video"
    yield clip(frames=49), "lasts 2.04 seconds, not 5.04"


def test_what_is_no_clip_does_not_count(tmp_path):
    for content, problem in damaged(tmp_path):
        with pytest.raises(ValueError, match=problem):
            results.check_clip(content, TEXT_TO_VIDEO)


# Which rows are done.


@pytest.fixture
def row(tmp_path):
    """A row that is done in `tmp_path`."""
    (row,) = batch.read(write(tmp_path, {"1.color": "1"}), batch.load(still(tmp_path)))
    results.queue(row, tmp_path, batch.Ticket("http://127.0.0.1:1", "id"))
    results.finish(row, tmp_path, clip())
    assert results.is_done(row, tmp_path)
    return row


@pytest.mark.parametrize("content", [b"", bytes(500), b"[]", b'{"prompt": 1}', b"[" * 100_000, b"\xff\xfe"])
def test_settings_that_a_power_cut_left_are_generated_again(row, tmp_path, capsys, content):
    settings, queued = tmp_path / "0001.json", tmp_path / "0001.queued.json"
    settings.write_bytes(content)
    assert not results.is_done(row, tmp_path)
    assert f"{settings} is damaged, so the row is generated again" in capsys.readouterr().err
    settings.rename(queued)
    assert not results.is_done(row, tmp_path)
    assert results.queued(row, tmp_path) is None
    assert f"{queued} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"<html></html>", clip(audio=False)])
def test_a_clip_that_a_power_cut_left_is_generated_again(row, tmp_path, capsys, content):
    (tmp_path / "0001.mp4").write_bytes(content)
    assert not results.is_done(row, tmp_path)
    assert "0001.mp4 is no clip (it" in capsys.readouterr().err


def test_the_clips_of_other_settings_are_not_taken_for_done(row, tmp_path, capsys):
    again = [str(write(tmp_path, {"1.color": "2"})), str(tmp_path), "--workflow", str(still(tmp_path))]
    assert batch.main(again) == 2
    assert "0001.json belongs to a row with other settings" in capsys.readouterr().err
    (tmp_path / "0001.json").unlink()
    assert batch.main(again) == 2
    assert "0001.mp4 exists without its settings" in capsys.readouterr().err
    assert (tmp_path / "0001.mp4").read_bytes() == clip()


def test_nothing_is_written_over_what_is_read(tmp_path, capsys):
    path = tmp_path / "0001.json"
    still(tmp_path).rename(path)
    before = path.read_bytes()
    command = [str(write(tmp_path, {"1.color": "1"})), str(tmp_path), "--workflow", str(path)]
    assert batch.main(command) == 2
    assert "0001.json is read by this run, and would be written by it" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert batch.main([command[0], str(path), *command[2:]]) == 2
    assert "is a file, but a folder is needed" in capsys.readouterr().err
    (tmp_path / "out" / "0001.mp4").mkdir(parents=True)
    assert batch.main([command[0], str(tmp_path / "out"), *command[2:]]) == 2
    assert "0001.mp4 is a folder, but a file of that name is to be written" in capsys.readouterr().err


def test_one_run_works_in_a_folder_at_a_time(tmp_path, capsys):
    """A run that was killed keeps nobody away."""
    path = write(tmp_path, {"1.color": "1"})
    command = [str(path), str(tmp_path), "--workflow", str(still(tmp_path))]
    hold = f"import pathlib, time; from ovi.tools import results\nwith results.alone(pathlib.Path({str(tmp_path)!r})):"
    with subprocess.Popen(
        [sys.executable, "-c", f"{hold} print('here', flush=True); time.sleep(60)"], cwd=ROOT, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"here\n"
        assert batch.main(command) == 2
        assert f"Another run is working in {tmp_path}" in capsys.readouterr().err
        other.kill()
    assert results.LOCK in os.listdir(tmp_path)
    with results.alone(tmp_path):
        pass
    assert results.LOCK not in os.listdir(tmp_path)


def test_a_folder_of_finished_rows_needs_no_server(row, tmp_path, capsys):
    command = [str(tmp_path / "prompts.csv"), str(tmp_path), "--workflow", str(tmp_path / "still.json")]
    assert batch.main(command) == 0
    assert "0 clips generated, 1 existed already, 0 are missing" in capsys.readouterr().out
    assert json.loads((tmp_path / "0001.json").read_text())["row"] == {"1.color": "1"}
