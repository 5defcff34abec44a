"""The folder of a batch: what counts as a clip, which rows are done, where the others are queued, and whose it is.

Row 1 becomes 0001.mp4 and its settings, 0001.json. Before a row is queued, its id is written to 0001.queued.json, which
is renamed to 0001.json last. So a run that was stopped resumes without generating a row twice.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..writing import complete
from .server import Prompt, Ticket
from .table import Row

LOCK = ".batch.lock"
SHARE = 0.1  # of a clip's duration by which its streams may differ from what was asked ...
SLACK = 0.25  # ... and seconds, for a clip of one frame


def check_clip(content: bytes, prompt: Prompt) -> None:
    """Raise ValueError unless `content` is a whole mp4 with the streams and the duration that a prompt asks for."""
    import av

    try:
        # Another format could make FFmpeg open other files. With its edit list applied, a clip lacks frames of audio.
        options = {"format": "mp4", "options": {"ignore_editlist": "1"}, "metadata_errors": "replace"}
        with av.open(io.BytesIO(content), **options) as container:
            if not container.streams.video:
                raise ValueError("it has no video")
            if _has_audio(prompt) and not container.streams.audio:
                raise ValueError("it has no audio")
            next(container.decode(container.streams.video[0]))
            container.seek(0)
            # A cut or zeroed file has its index, and maybe its first frame, but not all that the index tells of.
            read = [packet.stream_index for packet in container.demux() if not packet.is_corrupt and any(bytes(packet))]
            for stream in (*container.streams.video[:1], *container.streams.audio[:1]):
                if read.count(stream.index) < max(1, stream.frames):
                    raise ValueError(f"its {stream.type} is cut off")
                seconds, lasts = _seconds(prompt), float((stream.duration or 0) * stream.time_base)
                if seconds and abs(lasts - seconds) > SHARE * seconds + SLACK:
                    raise ValueError(f"its {stream.type} lasts {lasts:.2f} seconds, not {seconds:.2f}")
    except (av.FFmpegError, StopIteration, ArithmeticError) as error:
        raise ValueError("it is no mp4 that can be played") from error


def _has_audio(prompt: Prompt) -> bool:
    """Return whether a prompt surely saves audio: another video's, taken apart, may be silent."""
    savers = [node["inputs"] for node in prompt.values() if "images" in node["inputs"]]
    sources = [_source(prompt, saver.get("audio")) for saver in savers]
    return any(source and source["class_type"] != "GetVideoComponents" for source in sources)


def _seconds(prompt: Prompt) -> float | None:
    """Return how long the clip of a prompt lasts; None unless one latent is sampled, decoded and saved as it is."""
    savers = [node for node in prompt.values() if node["class_type"] == "CreateVideo"]
    node = savers[0] if len(savers) == 1 else None
    fps = node["inputs"].get("fps") if node else None
    for wire in ("images", "samples", "latent_image"):
        node = _source(prompt, node["inputs"].get(wire)) if node else None
    length = node["inputs"].get("length") if node else None
    return length / fps if isinstance(length, int) and isinstance(fps, (int, float)) and fps > 0 else None


def _source(prompt: Prompt, link: object) -> dict[str, Any] | None:
    """Return the node at the other end of a wire; None where there is no wire."""
    return prompt.get(str(link[0])) if isinstance(link, list) and link else None


def say(message: str) -> None:
    """Write a line to stderr, above the progress bar."""
    tqdm.write(message, file=sys.stderr)


def is_done(row: Row, out: Path) -> bool:
    """Return whether a row has its clip and settings, and say why not where one of them is broken.

    Raises ValueError for settings of another row, and for a clip that is nobody's.
    """
    clip, settings, queued = (out / f"{row.name}{end}" for end in (".mp4", ".json", ".queued.json"))
    if not settings.exists():
        if clip.exists() and not queued.exists():
            raise ValueError(
                f"{clip} exists without its settings, {settings.name}: use another folder, or delete it to generate "
                "the row again."
            )
        return False
    if (found := _settings(settings, "prompt")) is None:
        say(f"{settings} is damaged, so the row is generated again.")
        return False
    if found["prompt"] != row.prompt:
        raise ValueError(
            f"{settings} belongs to a row with other settings: use another folder, or delete it and {clip.name} to "
            "generate the row again."
        )
    if not clip.exists():
        return False
    try:
        check_clip(clip.read_bytes(), row.prompt)
    except ValueError as problem:
        say(f"{clip} is no clip ({problem}), so the row is generated again.")
        return False
    return True


def queued(row: Row, out: Path) -> Ticket | None:
    """Return where an earlier run queued a row; None where it did not, or queued it with other settings."""
    path = out / f"{row.name}.queued.json"
    if not path.exists():
        return None
    if (found := _settings(path, "prompt", "server", "prompt_id")) is None:
        say(f"{path} is damaged, so it is not known whether the row was queued: it is queued again.")
        return None
    return Ticket(found["server"], found["prompt_id"]) if found["prompt"] == row.prompt else None


def _settings(path: Path, *needed: str) -> dict[str, Any] | None:
    """Read settings; None where a power cut or a hand left something else in their file."""
    kinds = {"prompt": dict, "server": str, "prompt_id": str}
    try:
        settings = json.loads(path.read_bytes())
        return settings if all(isinstance(settings[name], kinds[name]) for name in needed) else None
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def queue(row: Row, out: Path, ticket: Ticket) -> None:
    """Write down where a row goes to."""
    settings = {**ticket._asdict(), "row": row.cells, "prompt": row.prompt}
    _write(out / f"{row.name}.queued.json", json.dumps(settings, indent=2, ensure_ascii=False).encode())


def finish(row: Row, out: Path, clip: bytes) -> None:
    """Write the clip of a row; its settings, last, say that it is done. Raises ValueError unless it is a clip."""
    check_clip(clip, row.prompt)
    _write(out / f"{row.name}.mp4", clip)
    (out / f"{row.name}.queued.json").replace(out / f"{row.name}.json")


def fail(row: Row, out: Path, problem: object) -> None:
    """Report a row that failed; the next run queues it again."""
    (out / f"{row.name}.queued.json").unlink(missing_ok=True)
    say(f"Row {row.name} failed: {problem}")


def _write(path: Path, data: bytes) -> None:
    with complete(path) as (part,):
        part.write_bytes(data)


def check_outputs(rows: Sequence[Row], out: Path, inputs: Collection[Path]) -> None:
    """Raise ValueError where a row would be written over an input, or over a folder."""
    read = {path.resolve() for path in inputs}
    for row in rows:
        for path in (out / f"{row.name}.mp4", out / f"{row.name}.json", out / f"{row.name}.queued.json"):
            if path.resolve() in read:
                raise ValueError(f"{path} is read by this run, and would be written by it: use another folder.")
            if path.is_dir():
                raise ValueError(f"{path} is a folder, but a file of that name is to be written: use another folder.")


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keep other runs away from a folder, until the end or a kill. Raises ValueError where another one is there."""
    path = out / LOCK
    taken = ValueError(f"Another run is working in {out}: wait for it, or use another folder.")
    if sys.platform == "win32":
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_TEMPORARY)  # Windows deletes it with its last handle
        except (FileExistsError, PermissionError):
            raise taken from None
        try:
            yield
        finally:
            os.close(file)
    else:
        import fcntl

        with path.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise taken from None
            if not path.exists() or not os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                raise taken  # its run has just ended and taken the file away
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
