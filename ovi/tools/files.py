"""What the command lines share: outputs that are complete or absent, and errors in one line."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

INTERRUPTED = 130  # the exit code


def temporary(path: Path) -> Path:
    """Return the name under which a file is written until it is complete."""
    return path.with_name(f"{path.name}.part")


@contextmanager
def complete(*paths: Path) -> Iterator[list[Path]]:
    """Write files so that they are complete or absent: yield temporary paths, and rename all of them at the end.

    Where the writing fails, the temporary files are deleted and existing files stay as they were.
    """
    parts = [temporary(path) for path in paths]
    try:
        yield parts
        for part, path in zip(parts, paths, strict=True):
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


def _sync_folder(folder: Path) -> None:
    """Write the names of a folder's files to the disk, where the system can (Windows does not open folders)."""
    if os.name == "posix":
        with suppress(OSError):  # folders that cannot be read, and some network file systems
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def check_paths(inputs: Sequence[Path], outputs: Sequence[Path], *, force: bool = False) -> None:
    """Raise ValueError for inputs that are not files, and for outputs that exist, cannot be files, or are given twice.

    `force` allows outputs that exist.
    """
    for path in inputs:
        if not path.is_file():
            raise ValueError(f"There is no file {path}.")
    given = [path.resolve() for path in (*inputs, *outputs)]
    for path in outputs:
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give the name of a file to write.")
        if not path.parent.is_dir():
            raise ValueError(f"There is no folder {path.parent} to write {path.name} to; create it first.")
        if not os.access(path.parent, os.W_OK):
            raise ValueError(f"The folder {path.parent} cannot be written to; choose another for {path.name}.")
        if given.count(path.resolve()) > 1:
            raise ValueError(f"{path} is given twice; each output needs a name of its own.")
        for existing in (path, temporary(path)):
            if existing.exists() and not force:
                raise ValueError(f"{existing} exists; choose another name, or overwrite it with --force.")


def exit_code(work: Callable[[], int], interrupted: str) -> int:
    """Do the work of a command line and return its exit code.

    Bad input and files that cannot be read or written are one line on stderr and exit code 2; an interruption is the
    line `interrupted` and exit code 130.
    """
    try:
        return work()
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        problem = f"The Python package {package} is missing; run this with ComfyUI's Python, or install the package."
    except OSError as error:
        named = error.filename is not None and error.strerror is not None
        problem = f"{error.filename}: {error.strerror}." if named else str(error)
    except ValueError as error:
        problem = str(error)
    except KeyboardInterrupt:
        sys.stderr.write(f"{interrupted}\n")
        return INTERRUPTED
    sys.stderr.write(f"{problem}\n")
    return 2


def program(main: Callable[[], int]) -> NoReturn:
    """Run a command line as the whole process.

    SIGTERM ends it like Ctrl-C, so that nothing half-written stays behind, and every name can be printed.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(main())
