"""A folder of clips to train on, one safetensors file each: checked at the start, read on request."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..config import OviConfig
from ..files import read_safetensors, require_safetensors
from ..flow import Sample

ANY_SIZE = 0, 0
FLOAT_DTYPES = ("F16", "BF16", "F32", "F64")  # by safetensors' names


PERSON = re.compile(r"(image|voice)_([1-9])")  # of person 1 to 9


class Folder:
    """Samples as safetensors files, for a model of `config`: "video", "audio" and "context" (see `Sample`).

    A file may lack "video" or "audio", and may have references of persons: "image_1", "voice_1", "image_2" and so on.
    All headers are checked at once: a wrong clip is refused before training, not in the middle of it. Raises ValueError
    naming the file.
    """

    def __init__(self, path: Path, config: OviConfig) -> None:
        self.paths = _files(path, "clip")
        self.shapes = [_check(clip, config) for clip in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Sample:
        """Read a sample. Raises ValueError for NaN and infinity."""
        path = self.paths[index]
        tensors, _ = read_safetensors(path)
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{path} has NaN or infinity in {name}; encode the clip again, or leave it out.")
        images, voices = (
            [tensors[name] for name in sorted(tensors) if name.startswith(kind)] for kind in ("image_", "voice_")
        )
        return Sample(tensors.get("video"), tensors.get("audio"), tensors["context"], images, voices)

    def names(self) -> list[str]:
        """Return what tells one set of clips from another: names and sizes in bytes."""
        return [f"{path.name}, {path.stat().st_size} bytes" for path in self.paths]

    def complete(self) -> bool:
        """Return whether all clips have both modalities."""
        return all({"video", "audio"} <= shapes.keys() for shapes in self.shapes)

    def buckets(self) -> list[list[int]]:
        """Return the indices of the clips that fit into one batch: their latents have the same shapes."""
        return _alike(self.shapes, ("context",))


class Prompts(Folder):
    """Prompts as safetensors files: "context", and the references of persons as a clip has them.

    Clips are prompts, too, and show how those of their prompt may begin. `size` is the height and width of the latents
    that are generated, which videos and images must fit. Raises ValueError naming the file.
    """

    def __init__(self, paths: Sequence[Path], config: OviConfig, size: tuple[int, int]) -> None:
        self.paths = [prompt for path in paths for prompt in _files(path, "prompt")]
        self.shapes = [_check(prompt, config, size) for prompt in self.paths]

    def buckets(self) -> list[list[int]]:
        """Return the indices of the prompts that fit into one batch: their references have the same shapes."""
        return _alike(self.shapes, ("context", "video", "audio"))


def read_context(path: Path, config: OviConfig) -> Tensor:
    """Read the text of a file as `Prompts` has them, [T, text_dim]."""
    _check(path, config, ANY_SIZE)
    tensors, _ = read_safetensors(path)
    if not torch.isfinite(tensors["context"]).all():
        raise ValueError(f"{path} has NaN or infinity in context; encode the text again.")
    return tensors["context"]


def _files(path: Path, what: str) -> list[Path]:
    """Return the files of a folder. Raises ValueError where there are none."""
    found = sorted(path.glob("*.safetensors"))
    if not found:
        raise ValueError(f"There are no .safetensors files in {path}; each {what} needs one.")
    return found


def _alike(each: Sequence[Mapping[str, Sequence[int]]], besides: Sequence[str]) -> list[list[int]]:
    """Return the indices of the files whose tensors have the same shapes, `besides` some."""
    found: dict[tuple[tuple[str, tuple[int, ...]], ...], list[int]] = {}
    for index, shapes in enumerate(each):
        key = tuple(sorted((name, tuple(shape)) for name, shape in shapes.items() if name not in besides))
        found.setdefault(key, []).append(index)
    return list(found.values())


def _check(path: Path, config: OviConfig, size: tuple[int, int] | None = None) -> dict[str, list[int]]:
    """Check the header of a file: its tensors, their shapes and their dtypes. Return the shapes by name.

    With a `size` it is a prompt for latents of that height and width, 0 being any; else a clip.
    """
    require_safetensors(path)
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - the file is no dict
        shapes = {name: list(part.get_shape()) for name, part in slices.items()}
        dtypes = {name: str(part.get_dtype()) for name, part in slices.items()}
    expected = {
        "video": [config.video_channels, 0, *(size or (0, 0))],
        "audio": [config.audio_channels, 0],
        "context": [0, config.text_dim],
    }
    there = shapes if size is None else expected  # a prompt's modalities are generated
    expected |= _persons(path, shapes, there, expected["audio"])
    fits = (
        shapes.keys() <= expected.keys()
        and "context" in shapes
        and (size is not None or "video" in shapes or "audio" in shapes)
        and all(
            len(shape) == len(expected[name])
            and all(got > 0 and size in (0, got) for got, size in zip(shape, expected[name], strict=True))
            for name, shape in shapes.items()
        )
    )
    if not fits and size is not None:
        height, width = (number or name for number, name in zip(size, "HW", strict=True))
        raise ValueError(
            f"{path} has {shapes}; a prompt needs context [T, {config.text_dim}], and may have what clips of "
            f"the generated size have: video [{config.video_channels}, F, {height}, {width}], audio "
            f"[{config.audio_channels}, L], and images and voices of persons."
        )
    if not fits:
        raise ValueError(
            f"{path} has {shapes}; a clip needs video [{config.video_channels}, F, H, W], "
            f"audio [{config.audio_channels}, L] and context [T, {config.text_dim}], none of them empty. Video or "
            "audio may be left out."
        )
    if shapes["context"][0] > config.text_len:
        raise ValueError(f"{path} has {shapes['context'][0]} text tokens, but Ovi reads at most {config.text_len}.")
    if wrong := [name for name, dtype in dtypes.items() if dtype not in FLOAT_DTYPES]:
        raise ValueError(
            f"{path} has {wrong[0]} as {dtypes[wrong[0]]}, but a {'clip' if size is None else 'prompt'} needs one of "
            f"{', '.join(FLOAT_DTYPES)}."
        )
    return shapes


def _persons(
    path: Path, shapes: Mapping[str, Sequence[int]], there: Mapping[str, Sequence[int]], voice: list[int]
) -> dict[str, list[int]]:
    """Return the shapes that the references of a clip's persons need, 0 for any length, beside the latents `there`.

    Raises ValueError where persons are not counted from 1, or lack the modality that their reference is for.
    """
    found = [(name, match) for name in shapes if (match := PERSON.fullmatch(name))]
    for kind, modality in (("image", "video"), ("voice", "audio")):
        numbers = sorted(int(match[2]) for _, match in found if match[1] == kind)
        if numbers != list(range(1, len(numbers) + 1)):
            raise ValueError(f"{path} has the {kind}s of the persons {numbers}, which must be counted from 1.")
        if numbers and modality not in there:
            raise ValueError(f"{path} has {kind}s of persons, but no {modality}; leave them out.")
    channels, _, height, width = [*there.get("video", ()), 0, 0, 0, 0][:4]
    return {name: [channels, 1, height, width] if match[1] == "image" else voice for name, match in found}
