"""Shared set-up of the tests: where things are, and ComfyUI first on the path.

ComfyUI's `nodes.py` and this pack's `nodes/` share a name, so ComfyUI's is imported first wherever it is used.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from comfy_host import Host

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
COMFYUI = os.environ.get("COMFYUI_PATH")

if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference numbers."""
    return GOLDEN


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """Real ComfyUI in this process, with the pack loaded."""
    if COMFYUI is None:
        pytest.skip("COMFYUI_PATH is not set; 'nox -s tests' sets it")
    return Host(Path(COMFYUI), tmp_path_factory.mktemp("comfyui"))
