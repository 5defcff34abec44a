"""Files that are complete or absent, whatever happens while they are written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def temporary(path: Path) -> Path:
    """Return the name under which a file is written until it is complete."""
    return path.with_name(f"{path.name}.part")


@contextmanager
def complete(*paths: Path) -> Iterator[list[Path]]:
    """Write files so that they are complete or absent: yield temporary paths, and rename all of them at the end.

    Where the writing fails, the temporary files are deleted and existing files stay as they were. Their
    permissions are those of any new file; those that safetensors gives let only the owner read.
    """
    parts = [temporary(path) for path in paths]
    try:
        yield parts
        for part, path in zip(parts, paths, strict=True):
            part.chmod(_mode_of_new_files(part))
            with part.open("rb+") as file:
                os.fsync(file.fileno())  # or a power cut could leave the new name on an empty file
            if path.is_dir():  # before any of them is renamed
                raise IsADirectoryError(f"{path} is a folder; give the name of a file to write.")
    except BaseException:
        for part in parts:
            part.unlink(missing_ok=True)
        raise
    for part, path in zip(parts, paths, strict=True):
        part.replace(path)
    for folder in {path.parent for path in paths}:
        _sync_folder(folder)


def _mode_of_new_files(path: Path) -> int:
    """Return the permissions of a new file beside another: that of none can be asked for, but by making one."""
    probe = path.with_name(f"{path.name}.new")
    try:
        probe.touch()
        return probe.stat().st_mode & 0o777
    finally:
        probe.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Write the names of a folder's files to the disk, where the system can (Windows does not open folders)."""
    if os.name == "posix":
        with suppress(OSError):  # folders that cannot be read, and some network file systems
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Write a file, complete or not at all. What PyTorch and safetensors raise on a full disk becomes an OSError."""
    from safetensors import SafetensorError  # which command lines without tensors do not need

    with complete(path) as (part,):
        try:
            yield part
        except (RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise OSError(f"{path} could not be written ({reason}); is the disk full?") from error
