"""A folder of clips to train on, one safetensors file each: checked at the start, read on request."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from ..config import OviConfig
from ..files import read_safetensors, require_safetensors
from ..flow import Sample

FLOAT_DTYPES = ("F16", "BF16", "F32", "F64")  # by safetensors' names


class Folder:
    """Samples as safetensors files of "video", "audio" and "context" (see `Sample`), for a model of `config`.

    All headers are checked at once: a wrong clip is refused before training, not in the middle of it. Raises ValueError
    naming the file.
    """

    def __init__(self, path: Path, config: OviConfig) -> None:
        self.paths = sorted(path.glob("*.safetensors"))
        if not self.paths:
            raise ValueError(f"There are no .safetensors files in {path}; each clip needs one.")
        for clip in self.paths:
            _check(clip, config)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Sample:
        """Read a sample. Raises ValueError for NaN and infinity."""
        path = self.paths[index]
        tensors, _ = read_safetensors(path)
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{path} has NaN or infinity in {name}; encode the clip again, or leave it out.")
        return Sample(tensors["video"], tensors["audio"], tensors["context"])

    def names(self) -> list[str]:
        """Return what tells one set of clips from another: names and sizes in bytes."""
        return [f"{path.name}, {path.stat().st_size} bytes" for path in self.paths]


def _check(path: Path, config: OviConfig) -> None:
    """Check the header of a clip: its tensors, their shapes and their dtypes."""
    require_safetensors(path)
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - the file is no dict
        shapes = {name: list(part.get_shape()) for name, part in slices.items()}
        dtypes = {name: str(part.get_dtype()) for name, part in slices.items()}
    expected = {
        "video": [config.video_channels, 0, 0, 0],
        "audio": [config.audio_channels, 0],
        "context": [0, config.text_dim],
    }
    fits = shapes.keys() == expected.keys() and all(
        len(shapes[name]) == len(sizes)
        and all(got > 0 and size in (0, got) for got, size in zip(shapes[name], sizes, strict=True))
        for name, sizes in expected.items()
    )
    if not fits:
        raise ValueError(
            f"{path} has {shapes}; a clip needs video [{config.video_channels}, F, H, W], "
            f"audio [{config.audio_channels}, L] and context [T, {config.text_dim}], none of them empty."
        )
    if shapes["context"][0] > config.text_len:
        raise ValueError(f"{path} has {shapes['context'][0]} text tokens, but Ovi reads at most {config.text_len}.")
    if wrong := [name for name, dtype in dtypes.items() if dtype not in FLOAT_DTYPES]:
        raise ValueError(
            f"{path} has {wrong[0]} as {dtypes[wrong[0]]}, but a clip needs one of {', '.join(FLOAT_DTYPES)}."
        )
