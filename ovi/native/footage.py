"""Videos of the graph read piece by piece, and the clips to train on that they give.

A video that cannot be read costs its own clips, and is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import InputImpl
from torch import Tensor

from .. import footage, geometry, media, prompt
from ..quote import quoted

READ_ERRORS = (ValueError, OSError, RuntimeError, IndexError, av.FFmpegError)  # of a damaged video
EXTRA_FRAMES = 3  # read beyond a piece, for the audio of its last latent
INSTALL = "install PySceneDetect into ComfyUI's Python (pip install scenedetect)"


@dataclass(frozen=True)
class Settings:
    """What clips are made of videos: pixels of an image, the longest and shortest length in frames, and choices."""

    area: int
    longest: int
    shortest: int
    cut: str  # one of footage.CUTS
    without_audio: str  # one of footage.WITHOUT_AUDIO
    style: str  # of the captions


class Source:
    """A VIDEO that is read piece by piece, with its caption.

    Raises one of READ_ERRORS for a video that cannot be read.
    """

    def __init__(self, video: Any, name: str, caption: str) -> None:
        self.video, self.name, self.caption = video, name, caption
        self.fps = media.frame_rate(video.get_frame_rate())
        self.path = path_of(video)
        height, width, _ = self.frame(0).shape  # turned as the camera was held, unlike the size that the file declares
        self.size = width, height
        counted = video.get_frame_count()
        # ComfyUI 0.30 counts one frame in a file that does not declare how many it has, such as Matroska's.
        self.frames = counted if counted > 1 else round(video.get_duration() * self.fps)

    def read(self, piece: footage.Piece) -> tuple[Tensor, dict[str, Any] | None]:
        """Return a piece's frames at 24 per second [T, H, W, C], which may be too few, and its audio."""
        frames, audio = self._read(piece.begin, piece.frames + EXTRA_FRAMES)
        return media.at_24(frames, self.fps, piece.frames), audio

    def frame(self, begin: int) -> Tensor:
        """Return a frame [H, W, C]."""
        return self._read(begin, 1)[0][0]

    def _read(self, begin: int, frames: int) -> tuple[Tensor, dict[str, Any] | None]:
        """Return frames [T, H, W, C] at the video's own rate, and audio, of so many frames at 24 per second."""
        start, seconds = begin / self.fps, geometry.seconds(frames) + 1 / self.fps
        if isinstance(self.video, InputImpl.VideoFromFile):
            parts = self.video.as_trimmed(start, seconds, strict_duration=False).get_components()
            images, audio = parts.images, parts.audio
        else:
            parts = self.video.get_components()
            images, audio = parts.images[begin : begin + round(seconds * self.fps)], parts.audio
            if audio is not None:
                first, after = (round(time * audio["sample_rate"]) for time in (start, start + seconds))
                audio = {**audio, "waveform": audio["waveform"][..., first:after]}
        if not len(images):
            raise ValueError(f"it has no frame at {start:.2f} s")
        return images, audio

    def scenes(self) -> list[tuple[int, int]]:
        """Return the first frame of each scene, and the one after its last.

        Raises ValueError for a video that PySceneDetect cannot open, and ModuleNotFoundError where it is not installed.
        """
        import scenedetect

        if self.path is None or any(self.video.get_active_trim_window()):
            raise ValueError("it is no whole file, so scenes are not looked for")
        found = scenedetect.detect(str(self.path), scenedetect.AdaptiveDetector())
        return [(start.frame_num, end.frame_num) for start, end in found] or [(0, self.frames)]


@dataclass(frozen=True)
class Clip:
    """A clip to learn: the piece of a video that it shows, its name, size and prompt, and what it is made from."""

    source: Source
    piece: footage.Piece
    name: str
    size: tuple[int, int]
    text: str
    made_from: str

    def __str__(self) -> str:
        start, seconds = self.piece.begin / self.source.fps, geometry.seconds(self.piece.frames)
        width, height = self.size
        span = f"{start:.2f} to {start + seconds:.2f} s, {self.piece.frames} frames"
        return f"{self.name}: {span}, {width}x{height}: {quoted(self.text, 100)}"


@dataclass
class Report:
    """What became of all clips: those to learn, and one line on whatever is odd."""

    clips: list[Clip] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    encoded: int = 0
    kept: int = 0
    left_out: int = 0

    def leave_out(self, what: str, why: object) -> None:
        """Note that a video or a clip is not learned."""
        self.left_out += 1
        if isinstance(why, av.FFmpegError):  # which names the whole path
            why = f"it cannot be read ({why.strerror})"
        lines = str(why).strip().splitlines() or [type(why).__name__]
        self.notes.append(f"{what} is left out: {lines[0]}")


def path_of(video: Any) -> Path | None:
    """Return the file of a VIDEO, or None for one that is in memory."""
    source = video.get_stream_source() if isinstance(video, InputImpl.VideoFromFile) else None
    return Path(source) if isinstance(source, str) else None


def plan(videos: Sequence[Any], captions: Sequence[str], settings: Settings) -> Report:
    """Return the clips that videos would give.

    Raises ValueError for a number of captions that is neither one nor that of the videos.
    """
    if len(captions) not in (1, len(videos)):
        raise ValueError(
            f"There are {len(videos)} videos and {len(captions)} texts: connect both outputs of 'Load Video-Text (from "
            "Folder)', or one text for all videos."
        )
    allowed = footage.lengths(settings.longest, settings.shortest)
    report, seen = Report(), set()
    progress = comfy.utils.ProgressBar(len(videos))
    named = footage.names([path_of(video) for video in videos])
    for number, (video, name) in enumerate(zip(videos, named, strict=True)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        path = path_of(video)
        if path in seen and path is not None:
            report.notes.append(f"{name} is a file that was given before: it is learned once")
        else:
            seen.add(path)
            _plan_video(video, name, captions[number % len(captions)], settings, allowed, report)
        progress.update(1)
    return report


def _plan_video(
    video: Any, name: str, caption: str, settings: Settings, allowed: Sequence[int], report: Report
) -> None:
    """Add the clips of a video to a report, or why there are none."""
    try:
        if not caption.strip():
            raise ValueError(f"it has no caption: write one into {name}.txt beside it")
        formatted = prompt.format_prompt(caption, settings.style)
        source = Source(video, name, formatted.text)
    except READ_ERRORS as error:
        report.leave_out(name, error)
        return
    size = footage.bucket(*source.size, settings.area)
    pieces = _pieces(source, settings, allowed, report)
    if not pieces:
        seconds = source.frames / source.fps
        report.leave_out(name, f"it lasts {seconds:.2f} s, the shortest clip {geometry.seconds(min(allowed)):.2f} s")
        return
    report.notes += [f"{name}: {note}" for note in _oddities(source, size, pieces)]
    report.notes += [f"{name}: {note}" for note in (*prompt.doubts(caption, settings.style), *formatted.notes)]
    for number, piece in enumerate(pieces, 1):
        made_from = footage.fingerprint(
            video=_identity(source.path), piece=piece, size=size, text=formatted.text, silence=settings.without_audio
        )
        report.clips.append(Clip(source, piece, f"{name}_{number:03}", size, formatted.text, made_from))


def _pieces(source: Source, settings: Settings, allowed: Sequence[int], report: Report) -> list[footage.Piece]:
    spans = [(0, source.frames)]
    if settings.cut == footage.SCENES:
        try:
            spans = source.scenes()
        except ModuleNotFoundError:
            note = f"Videos were cut one piece after another: to cut them at scene changes, {INSTALL}"
            report.notes += [] if note in report.notes else [note]
        except READ_ERRORS as error:
            report.notes.append(f"{source.name} was cut one piece after another: {error}")
    once = settings.cut == footage.BEGINNING
    return [piece for first, after in spans for piece in footage.cut(first, after, source.fps, allowed, once=once)]


def _oddities(source: Source, size: tuple[int, int], pieces: Sequence[footage.Piece]) -> list[str]:
    """Say what of a video is not learned as it is."""
    (width, height), (to_width, to_height) = source.size, size
    notes = []
    if (lost := footage.cropped(width, height, size)) > footage.NOTICED:
        notes.append(
            f"{lost:.0%} of each image is cropped: {width}x{height} has another shape than {to_width}x{to_height}"
        )
    if width * height < to_width * to_height:
        notes.append(f"it is enlarged from {width}x{height} to {to_width}x{to_height}")
    if source.fps != geometry.FPS:
        notes.append(f"{source.fps:g} frames per second become {geometry.FPS:g}: the nearest frames are used")
    if len(pieces) > 1:
        notes.append(f"its {len(pieces)} clips have the same caption")
    return notes


def _identity(path: Path | None) -> list[Any] | None:
    """Return what changes with the contents of a file, or None for a video in memory."""
    if path is None:
        return None
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


def preview(clips: Sequence[Clip]) -> Tensor:
    """Return the first frames of at most 60 clips as one image [1, H, W, 3], each with its number in the report."""
    shown = [(index, clips[index]) for index in footage.some(len(clips))]
    return footage.contact_sheet(map(_tile, (clip for _, clip in shown)), [str(index + 1) for index, _ in shown])


def _tile(clip: Clip) -> Tensor:
    """Return the first frame of a clip, or black for one that cannot be read."""
    try:
        return clip.source.frame(clip.piece.begin)
    except READ_ERRORS:
        return torch.zeros(1, 1, 3)


def summary(report: Report) -> Iterator[str]:
    """Say in lines what became of the clips, what is odd, and what is learned."""
    frames = sum(clip.piece.frames for clip in report.clips)
    if report.clips:
        sizes: dict[str, int] = {}
        for clip in report.clips:
            kind = f"{clip.size[0]}x{clip.size[1]}, {clip.piece.frames} frames"
            sizes[kind] = sizes.get(kind, 0) + 1
        yield f"{_clips(len(report.clips))}, {geometry.seconds(frames):.1f} s"
        yield from (f"{kind}: {_clips(count)}" for kind, count in sorted(sizes.items()))
    yield f"{report.encoded} encoded, {report.kept} already there, {report.left_out} left out"
    yield from report.notes
    yield from (f"{number}. {clip}" for number, clip in enumerate(report.clips, 1))


def _clips(count: int) -> str:
    return "1 clip" if count == 1 else f"{count} clips"
