"""A folder of clips to train on, one safetensors file each: checked at the start, read on request."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from ..config import OviConfig
from ..files import read_safetensors, require_safetensors
from ..flow import Sample

FLOAT_DTYPES = ("F16", "BF16", "F32", "F64")  # by safetensors' names


PERSON = re.compile(r"(image|voice)_([1-9])")  # of person 1 to 9


class Folder:
    """Samples as safetensors files, for a model of `config`: "video", "audio" and "context" (see `Sample`).

    A file may lack "video" or "audio", and may have references of persons: "image_1", "voice_1", "image_2" and so on.
    All headers are checked at once: a wrong clip is refused before training, not in the middle of it. Raises ValueError
    naming the file.
    """

    def __init__(self, path: Path, config: OviConfig) -> None:
        self.paths = sorted(path.glob("*.safetensors"))
        if not self.paths:
            raise ValueError(f"There are no .safetensors files in {path}; each clip needs one.")
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

    def buckets(self) -> list[list[int]]:
        """Return the indices of the clips that fit into one batch: their latents have the same shapes."""
        found: dict[tuple[tuple[str, tuple[int, ...]], ...], list[int]] = {}
        for index, shapes in enumerate(self.shapes):
            key = tuple(sorted((name, tuple(shape)) for name, shape in shapes.items() if name != "context"))
            found.setdefault(key, []).append(index)
        return list(found.values())


def _check(path: Path, config: OviConfig) -> dict[str, list[int]]:
    """Check the header of a clip: its tensors, their shapes and their dtypes. Return the shapes by name."""
    require_safetensors(path)
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - the file is no dict
        shapes = {name: list(part.get_shape()) for name, part in slices.items()}
        dtypes = {name: str(part.get_dtype()) for name, part in slices.items()}
    video, audio = shapes.get("video"), shapes.get("audio")
    expected = {
        "video": [config.video_channels, 0, 0, 0],
        "audio": [config.audio_channels, 0],
        "context": [0, config.text_dim],
    }
    expected |= _persons(path, shapes, expected["audio"])
    fits = (
        shapes.keys() <= expected.keys()
        and "context" in shapes
        and (video is not None or audio is not None)
        and all(
            len(shape) == len(expected[name])
            and all(got > 0 and size in (0, got) for got, size in zip(shape, expected[name], strict=True))
            for name, shape in shapes.items()
        )
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
            f"{path} has {wrong[0]} as {dtypes[wrong[0]]}, but a clip needs one of {', '.join(FLOAT_DTYPES)}."
        )
    return shapes


def _persons(path: Path, shapes: Mapping[str, Sequence[int]], voice: list[int]) -> dict[str, list[int]]:
    """Return the shapes that the references of a clip's persons need, 0 for any length.

    Raises ValueError where persons are not counted from 1, or lack the modality that their reference is for.
    """
    found = [(name, match) for name in shapes if (match := PERSON.fullmatch(name))]
    for kind, modality in (("image", "video"), ("voice", "audio")):
        numbers = sorted(int(match[2]) for _, match in found if match[1] == kind)
        if numbers != list(range(1, len(numbers) + 1)):
            raise ValueError(f"{path} has the {kind}s of the persons {numbers}, which must be counted from 1.")
        if numbers and modality not in shapes:
            raise ValueError(f"{path} has {kind}s of persons, but no {modality}; leave them out.")
    channels, _, height, width = [*shapes.get("video", ()), 0, 0, 0, 0][:4]
    return {name: [channels, 1, height, width] if match[1] == "image" else voice for name, match in found}
