"""What the command lines share: the checks of their files, and errors in one line."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from ..writing import temporary

INTERRUPTED = 130  # the exit code


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
    line `interrupted` and exit code 130. Of several processes of a training, which torchrun numbers, the first on each
    machine says what all of them come upon.
    """
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        return work()
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        problem = f"The Python package {package} is missing; run this with ComfyUI's Python, or install the package."
    except OSError as error:
        named = error.filename is not None and error.strerror is not None
        problem = f"{error.filename}: {error.strerror}." if named else str(error)
    except ValueError as error:
        problem = str(error) if first else ""
    except KeyboardInterrupt:
        sys.stderr.write(f"{interrupted}\n" if first else "")
        return INTERRUPTED
    sys.stderr.write(f"{problem}\n" if problem else "")
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
