"""What the registry of ComfyUI gets, by comfy-cli, and the workflows that publish and test the pack."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from test_docs import ROOT, SHIPPED

WORKFLOWS = sorted([*(ROOT / "workflows").glob("*.json"), *(ROOT / "workflows" / "api").glob("*.json")])
FOR_USERS = re.compile(
    r"(__init__\.py|(nodes|ovi|web|locales|workflows|subgraphs)/.+|docs/.+\.md"
    r"|pyproject\.toml|README\.md|CHANGELOG\.md|LICENSE)"
)


def comfy_cli(folder, *arguments):
    """Run comfy-cli in a folder, untracked and with a home of its own; return its output, and fail where it does."""
    environment = os.environ | {"DO_NOT_TRACK": "1", "HOME": str(folder)}
    command = [sys.executable, "-m", "comfy_cli", "--no-json", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the files of this checkout, and of nothing else."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in SHIPPED:
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return folder


def test_the_registry_accepts_the_pack(checkout):
    said = comfy_cli(checkout, "node", "validate")
    assert "All validation checks passed successfully" in said
    assert "warning" not in said.lower()


def test_the_archive_has_what_users_need_and_nothing_else(checkout):
    comfy_cli(checkout, "node", "pack")
    names = set(zipfile.ZipFile(checkout / "node.zip").namelist())
    assert names == {name for path in SHIPPED if FOR_USERS.fullmatch(name := path.relative_to(ROOT).as_posix())}


@pytest.fixture(scope="module")
def object_info(server, tmp_path_factory):
    """The schemas of the server's nodes in a file, as if it had the one model that the tests have no stand-in for."""
    schemas = server.get("/object_info")
    schemas["CLIPLoader"]["input"]["required"]["clip_name"][0].append("umt5_xxl_fp8_e4m3fn_scaled.safetensors")
    path = tmp_path_factory.mktemp("schemas") / "object_info.json"
    path.write_text(json.dumps(schemas))
    return path


@pytest.mark.server
@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_comfy_cli_finds_no_fault_in_a_workflow(object_info, tmp_path, workflow):
    comfy_cli(tmp_path, "workflow", "validate", "--workflow", str(workflow), "--input", str(object_info))


@pytest.mark.server
def test_comfy_cli_finds_a_fault(object_info, tmp_path):
    wrong = tmp_path / "wrong.json"
    wrong.write_text(WORKFLOWS[0].read_text().replace("model_960x960.safetensors", "model_of_another_name.safetensors"))
    with pytest.raises(AssertionError, match="model_of_another_name"):
        comfy_cli(tmp_path, "workflow", "validate", "--workflow", str(wrong), "--input", str(object_info))


def test_what_github_runs_is_pinned():
    actions = "".join(path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml"))
    used = re.findall(r"uses: (.+)", actions)
    assert used
    assert [name for name in used if not re.fullmatch(r"actions/[\w-]+@v\d+\.\d+\.\d+", name)] == []
    (version,) = re.findall(r"install (comfy-cli==[\d.]+)", actions)
    assert f'"{version}"' in (ROOT / "pyproject.toml").read_text()
