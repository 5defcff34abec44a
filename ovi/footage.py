"""Videos as clips to train on: sizes and lengths in buckets, where a video is cut, and what a clip's file is called.

Clips have 4n + 1 frames at 24 per second. Only clips of one size and length make a batch, so there are few of each: a
size for each shape of an image, and lengths of whole seconds plus one frame. Frames of a source are counted at its own
rate, those of a clip at 24 per second.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import geometry, media

SCENES, PIECES, BEGINNING = "scenes", "pieces", "beginning"  # where a video is cut
CUTS = (SCENES, PIECES, BEGINNING)
SKIP, SILENCE = "skip", "silence"  # what becomes of clips without audio
WITHOUT_AUDIO = (SKIP, SILENCE)

SHAPES = ((21, 9), (16, 9), (3, 2), (4, 3), (1, 1), (3, 4), (2, 3), (9, 16), (9, 21))
SECOND = round(geometry.FPS)  # frames
SILENT = 1e-3  # peak of a waveform, -60 dB
NOTICED = 0.1  # share of an image that is cropped, or of a clip's time that has no audio, from which on it is said
TILE, COLUMNS, MARGIN = 240, 6, 4  # of a contact sheet, in pixels and tiles
MOST_TILES = 60
_UNSAFE = re.compile(r"[^\w.-]+")


class Piece(NamedTuple):
    """A part of a video: its first frame, counted in the video, and its length at 24 frames per second."""

    begin: int
    frames: int


def bucket(width: int, height: int, area: int) -> tuple[int, int]:
    """Return the size (width, height) of about `area` pixels whose shape is nearest to that of an image.

    Raises ValueError for a size that is not positive.
    """
    if width <= 0 or height <= 0:
        raise ValueError(f"The video is {width}x{height}; check the file.")
    across, down = min(SHAPES, key=lambda shape: abs(math.log(width * shape[1] / (height * shape[0]))))
    return geometry.nearest_size(across, down, area)


def cropped(width: int, height: int, size: tuple[int, int]) -> float:
    """Return the share of an image that is cut off where it is cropped to the shape of `size`."""
    scale = min(width / size[0], height / size[1])
    return 1 - scale * scale * size[0] * size[1] / (width * height)


def lengths(longest: int, shortest: int) -> list[int]:
    """Return the lengths that clips may have, the longest first. Raises ValueError for two that do not go together."""
    geometry.check_length(longest)
    geometry.check_length(shortest)
    if shortest > longest:
        raise ValueError(f"The shortest clip has {shortest} frames, the longest {longest}: lower shortest.")
    between = range(SECOND + 1, longest, SECOND)
    return sorted({longest, shortest, *(frames for frames in between if frames > shortest)}, reverse=True)


def longest_within(frames: int, allowed: Sequence[int]) -> int | None:
    """Return the longest of the allowed lengths that `frames` at 24 per second hold, or None."""
    return max((length for length in allowed if length <= frames), default=None)


def cut(first: int, after: int, fps: float, allowed: Sequence[int], *, once: bool = False) -> Iterator[Piece]:
    """Cut the frames from `first` to before `after` of a video into pieces of allowed lengths, one after another.

    Each begins at a frame of the video, so that frames and audio begin together. What is left at the end is no piece if
    it is shorter than all lengths. `once` cuts the first piece only.
    """
    while frames := longest_within(len(media.retimed(after - first, fps)), allowed):
        yield Piece(first, frames)
        if once:
            return
        first += math.ceil(frames * fps / geometry.FPS)


def wave(audio: Mapping[str, Any] | None, frames: int, rate: int) -> tuple[Tensor, list[str]]:
    """Return the audio of a clip, [S] at `rate`, long enough for all its latents, and what is odd about it.

    It is mixed down, and silence fills what is missing at the end. Raises ValueError where `media.recording` does.
    """
    samples = math.ceil((geometry.audio_latents(frames) + 1) / geometry.AUDIO_LATENT_RATE * rate)
    if audio is None or not media.fills_a_latent(audio):
        return torch.zeros(samples), []
    got = media.mono(audio, rate)[:samples]
    peak = got.abs().max().item()
    missing = geometry.seconds(frames) - len(got) / rate
    notes = [f"its audio peaks at {peak:.2f}: everything beyond 1 is clipped"] if peak > 1 else []
    if missing > NOTICED * geometry.seconds(frames):
        notes.append(f"its last {missing:.2f} s have no audio")
    return F.pad(got.clamp(-1, 1), (0, samples - len(got))), notes


def is_silent(wave: Tensor) -> bool:
    """Return whether nothing of a waveform can be heard."""
    return wave.abs().max().item() < SILENT


def names(paths: Sequence[Path | None]) -> list[str]:
    """Return a name for each video that no other has: that of its file, which says nothing of the folder."""
    given: dict[str, Path | None] = {}
    result = []
    for number, path in enumerate(paths, 1):
        plain = _UNSAFE.sub("_", path.stem if path else f"video{number}") or f"video{number}"
        count, name = 2, plain
        while name in given:
            name, count = f"{plain}-{count}", count + 1
        given[name] = path
        result.append(name)
    return result


def fingerprint(**of: Any) -> str:
    """Return what tells whether the file of a clip is still what its video, caption and settings would give."""
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()


def some(count: int, most: int = MOST_TILES) -> list[int]:
    """Return the indices of at most `most` things out of `count`, evenly spread."""
    return [index * count // min(count, most) for index in range(min(count, most))]


def contact_sheet(tiles: Iterable[Tensor], labels: Sequence[str]) -> Tensor:
    """Return images [H, W, 3 or 4] of any sizes, one for each label, as one image [1, height, width, 3].

    Without any it is a single black tile.
    """
    from PIL import Image, ImageDraw

    columns = max(1, min(COLUMNS, len(labels)))
    rows = max(1, math.ceil(len(labels) / columns))
    step = TILE + MARGIN
    sheet = Image.new("RGB", (columns * step + MARGIN, rows * step + MARGIN))
    draw = ImageDraw.Draw(sheet)
    for index, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
        pixels = (tile[..., :3].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        image = Image.fromarray(pixels)
        image.thumbnail((TILE, TILE))
        left, top = (MARGIN + index % columns * step, MARGIN + index // columns * step)
        sheet.paste(image, (left + (TILE - image.width) // 2, top + (TILE - image.height) // 2))
        draw.text((left + 5, top + 4), label, fill="white", stroke_width=2, stroke_fill="black")
    data = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8)
    return data.view(1, sheet.height, sheet.width, 3) / 255
