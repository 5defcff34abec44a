"""ComfyUI's command line, comfy-cli."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def comfy_cli(folder: Path, *arguments: str) -> str:
    """Run comfy-cli in a folder, untracked and with a home of its own; return its output, and fail where it does."""
    environment = os.environ | {"DO_NOT_TRACK": "1", "HOME": str(folder)}
    command = [sys.executable, "-m", "comfy_cli", "--no-json", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
