"""What comfy-cli sends to ComfyUI's registry, and the workflows that publish and test the pack."""

from __future__ import annotations

import re
import shutil
import zipfile

import pytest

from support import ROOT
from support.checkout import SHIPPED, relative
from support.cli import comfy_cli

FOR_USERS = re.compile(
    r"(__init__\.py|(nodes|ovi|web|locales|workflows|subgraphs)/.+|docs/.+\.md"
    r"|pyproject\.toml|README\.md|CHANGELOG\.md|LICENSE)"
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the files of this checkout, and of nothing else."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in SHIPPED:
        copy = folder / relative(path)
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
    assert names == {name for path in SHIPPED if FOR_USERS.fullmatch(name := relative(path))}


def test_what_github_runs_is_pinned():
    actions = "".join(path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml"))
    used = set(re.findall(r"uses: (.+)", actions)) - {"./.github/workflows/ci.yml"}
    assert used
    assert [name for name in used if not re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", name)] == []
    assert len({name.partition("@")[0] for name in used}) == len(used), "an action in two versions"
    (version,) = re.findall(r"install (comfy-cli==[\d.]+)", actions)
    assert f'"{version}"' in (ROOT / "pyproject.toml").read_text()


def test_a_version_is_published_after_its_tests():
    ci, publish = ((ROOT / ".github" / "workflows" / f"{name}.yml").read_text() for name in ("ci", "publish"))
    assert "\n  workflow_call:\n" in ci
    assert "\n  tests:\n    uses: ./.github/workflows/ci.yml\n" in publish
    assert "\n  publish:\n    needs: tests\n" in publish
