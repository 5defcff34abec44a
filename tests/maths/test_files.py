"""What is a file of tensors, what is said of all else, and that no file makes the check take memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile

import pytest
import torch
from safetensors.torch import save, save_file

from ovi import files
from support import golden_model
from support.damage import damaged, write

WHOLE = golden_model.MODEL.read_bytes()
ONE = {"a": torch.ones(3)}


class Hostile:
    """Opened without care, its pickle makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("hacked",)


def pytorch(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def zipped(name, content, method):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


# By file: what is said of it.
REFUSED = {
    "is empty": b"",
    "is nothing but zeros": b"\0" * 5000,
    "is a web page": b"\n<!DOCTYPE html><html>Log in</html>",
    "is a git-lfs pointer": b"version https:" + b"//git-lfs.github.com/spec/v1\noid sha256:0\n",
    "is a GGUF file": b"GGUF\3\0\0\0" + b"\1" * 100,
    "is a text file": b"Not found",
    "is a gzip archive": gzip.compress(WHOLE[:1000]),
    "is a PNG image": b"\x89PNG\r\n\x1a\n" + b"\1" * 100,
    "is an MP4 or MOV video": b"\0\0\0\x20ftypisom" + b"\1" * 100,
    "is a TensorFlow Lite file": b"\x1c\0\0\0TFL3" + b"\1" * 100,
    "is of no known format": b"\x08\x07\x12\x07pytorch\x1a\x051.12:" + b"\0" * 100,  # ONNX has no mark of its own
    "is a zip archive": zipped("readme.txt", "hello", zipfile.ZIP_STORED),
    "is a compressed zip archive": zipped("x/data.pkl", b"\x80\x02" + b"]" * 10**7, zipfile.ZIP_DEFLATED),
    "is not a complete safetensors file": WHOLE[:-100],
    "is not a complete safetensors file ": WHOLE[:100],
    "is no model: its header has 20000000 bytes": (2 * 10**7).to_bytes(8, "little") + b"{" + b" " * (2 * 10**7),
    "holds code or objects (posix.mkdir) beside tensors, and is not opened": pytorch({"a": Hostile()}),
    "is not a complete PyTorch file": pickle.dumps({"a": Hostile()}),
    "is not a complete PyTorch file ": pytorch({"a": torch.ones(3000)})[:-500],
    "is not a complete PyTorch file  ": pytorch(ONE, _use_new_zipfile_serialization=False)[:-20],
    "is not a complete PyTorch file   ": zipped("x/data.pkl", b"\x80\x02}.", zipfile.ZIP_STORED).replace(b"}.", b"]."),
    "holds a value of type list": pytorch([1, 2]),
    "holds a value of type int": pytorch(3),
    "holds a value of type Tensor": pytorch(torch.ones(2)),
    "holds a value of type dict as 'network'": pytorch({"network": ONE, "optimizer": {"lr": 1}}),
    "holds a value of type float as 'alpha'": pytorch({"a": torch.ones(2), "alpha": 3.0}),
    "holds no tensors": pytorch({}),
    "names a tensor '1'": pytorch({1: torch.ones(2)}),
    r"names a tensor '?x'": pytorch({"\ud800x": torch.ones(2)}),
    "has a tensor a of type torch.complex64": pytorch({"a": torch.ones(2, dtype=torch.complex64)}),
    "has a tensor a of type U32": save({"a": torch.ones(2, dtype=torch.uint32)}),
    "holds no plain numbers as 'a'": pytorch({"a": torch.eye(3).to_sparse()}),
    "repeats stored numbers to a size": pytorch({"a": torch.ones(1).expand(10**9, 10**9)}),
}


@pytest.mark.parametrize("problem", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_other_files_are_named(tmp_path, monkeypatch, problem):
    """In one line, with the file's name and where to get it; no code in them runs."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.safetensors"
    path.write_bytes(REFUSED[problem])
    with pytest.raises(ValueError, match="x") as refused:
        files.check(path, "the shop")
    message = str(refused.value)
    assert f"x.safetensors {problem.strip()}" in message
    assert message.endswith(": the shop.")
    assert message.isprintable()
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "value", [ONE, {"state_dict": ONE, "epoch": 3}, {"generator": ONE, "steps": 5}, {"model": ONE}]
)
def test_pytorch_files(tmp_path, value):
    """Of both kinds, with their tensors where ComfyUI and vocoders look for them."""
    for zipped in (True, False):
        torch.save(value, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        assert files.check(tmp_path / "x.pt") == files.PYTORCH
        assert files.read_tensors(tmp_path / "x.pt")["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("length", [128, 23117, 35615, 3359817])
def test_a_header_s_length_may_look_like_another_format(tmp_path, length):
    """As pickle's, Windows programs', gzip's and MP3's first bytes do."""
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    assert files.check(write(tmp_path / "x", {"a": entry}, b"\0" * 4, pad=length)) == files.SAFETENSORS


def test_what_is_no_file(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="is a folder; choose a file"):
        files.check(tmp_path)
    with pytest.raises(ValueError, match="nowhere is not there"):
        files.check(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="fifo is not there"):  # and not waited for
        files.check(tmp_path / "fifo")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "link").symlink_to("text")
    with pytest.raises(ValueError, match="link is a text file"):
        files.check(tmp_path / "link")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(ValueError, match=r"text cannot be read \(Permission denied\); check its permissions"):
        files.check(tmp_path / "text")


def test_names_are_shown_in_one_short_line(tmp_path):
    path = tmp_path / ("a\nb" + "c" * 200)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"a.bccc") as refused:
        files.check(path)
    assert str(refused.value).isprintable()
    assert files.shown("\ud800" * 1000) == "?" * 300 + "…"


HUGE = 10**9
DECLARED = [
    (99_000_000).to_bytes(8, "little") + b"{" + b" " * 1000,
    (2**63).to_bytes(8, "little") + b"{" + b" " * 1000,
    save({"x" * 600: torch.ones(1)}),
    pytorch({"a": torch.ones(1).expand(HUGE, HUGE)}),
    zipped("x/data.pkl", b"\x80\x02" + b"]" * 10**7, zipfile.ZIP_DEFLATED),
]


@pytest.mark.parametrize("content", DECLARED)
def test_what_a_file_claims_takes_no_memory(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match="x "):
        files.check(tmp_path / "x")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6


@pytest.mark.parametrize("shape", [[2**62, 0], [1] * 70, [2**40, 2**40, 0]])
def test_absurd_shapes(tmp_path, shape):
    size = 0 if 0 in shape else 4
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
    with pytest.raises(ValueError, match=r"tensor a of shape|not a complete safetensors file"):
        files.read_tensors(write(tmp_path / "x", {"a": entry}, b"\0" * size))


def refusal(read, path):
    """What is said of a file; nothing where it is read."""
    try:
        read(path)
    except ValueError as error:
        return str(error)
    return None


def test_300_damaged_files(tmp_path):
    """Each is refused in one line, or read."""
    tensors = {"video_model.blocks.0.cross_attn.k_fusion.weight": torch.ones(4, 4), "b.weight": torch.ones(300)}
    whole = save(tensors | {"b.bias": torch.ones(9)}, {"ovi_config": "{}"})
    path, refused = tmp_path / "x.safetensors", 0
    tracemalloc.start()
    for seed in range(300):
        path.write_bytes(damaged(whole, seed))
        for read in (files.check, files.read_safetensors, files.read_tensors):
            if message := refusal(read, path):
                assert "x.safetensors " in message
                assert message.isprintable()
                refused += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 300 < refused < 900
    assert peak < 5e6


def shard(folder, number, total, tensors):
    path = folder / f"model-{number:05}-of-{total:05}.safetensors"
    save_file(tensors, path, {"format": "pt"})
    return path


def test_shards(tmp_path):
    paths = [shard(tmp_path, number, 3, {str(number): torch.ones(1)}) for number in (1, 2, 3)]
    assert files.shards(paths[0]) == paths
    assert files.shards(tmp_path / "model.safetensors") == [tmp_path / "model.safetensors"]
    tensors, metadata = files.joined(files.read_safetensors(path) for path in paths)
    assert (sorted(tensors), metadata) == (["1", "2", "3"], {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"00002-of-00003.safetensors is one shard .*; choose the first, model-00001-of"
    ):
        files.shards(paths[1])
    with pytest.raises(ValueError, match="Two shards hold the tensor 1"):
        files.joined(files.read_safetensors(path) for path in [paths[0], paths[0]])
    paths[1].unlink()
    with pytest.raises(ValueError, match=r"is the first of 3 shards, and model-00002-of-00003.safetensors is missing"):
        files.shards(paths[0])
    absurd = shard(tmp_path, 1, 999_999, ONE)
    with pytest.raises(ValueError, match="is missing"):
        files.shards(absurd)


def test_json_of_a_file():
    assert files.read_json('{"a": 1}', 10) == {"a": 1}
    for text, problem in (
        ("{", "Expecting"),
        ("[" * 5000, "nested too deeply"),
        (json.dumps("x" * 9999), "10001 char"),
    ):
        with pytest.raises(ValueError, match=problem):
            files.read_json(text, 6000)


def nested_in_itself():
    whole = {}
    whole["state_dict"] = whole
    return whole


def bytes_of_a_size(size):
    """The pickle of `bytearray(size)`, 30 bytes long: torch's safe unpickler allocates what it names."""
    return b"\x80\x02cbuiltins\nbytearray\n\x8a\x08" + struct.pack("<q", size) + b"\x85R."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pytorch(nested_in_itself()), "as 'state_dict', where only tensors belong"),
        (pytorch({"a": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])}), "holds no plain numbers as 'a'"),
        (pytorch({f"a{i}": torch.zeros(1).expand(2**24) for i in range(32)}), "repeats stored numbers to a size"),
        (bytes_of_a_size(3 * 10**9), "holds bytes in place of tensors"),
    ],
)
def test_pickles_that_claim_more_than_they_hold(tmp_path, content, message):
    """Refused in one sentence, without the memory that they ask for."""
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as refusal:
        files.check(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(refusal.value)
    assert peak < 2**26


@pytest.mark.parametrize("part", ["model", "module", "state_dict"])
def test_the_part_of_a_training_checkpoint_that_holds_the_model_is_read(tmp_path, part):
    path = tmp_path / "model.pt"
    torch.save({part: ONE, "epoch": 3}, path)
    assert files.read_tensors(path).keys() == ONE.keys()
