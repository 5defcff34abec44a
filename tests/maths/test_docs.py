"""What is written fits what is there: node help, README, links, and the rules that a scan can hold."""

from __future__ import annotations

import ast
import asyncio
import fnmatch
import inspect
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HELP = ROOT / "web" / "docs"
COMFYUI = {
    "comfy", "comfy_api", "comfy_extras", "comfy_execution", "execution", "folder_paths", "node_helpers", "nodes",
    "server",
}  # fmt: skip
PUBLIC_HOSTS = {
    "127.0.0.1", "arxiv.org", "github.com", "huggingface.co", "keepachangelog.com", "semver.org",
    "www.apache.org",
}  # fmt: skip


def shipped():
    """Every file of the checkout that git does not ignore, found without git."""
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()} | {".git"}

    def kept(names):
        return [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)]

    for folder, folders, files in os.walk(ROOT):
        folders[:] = kept(folders)
        yield from (Path(folder, name) for name in kept(files))


SHIPPED = sorted(shipped())
PAGES = [path for path in SHIPPED if path.suffix == ".md"]


def relative(path):
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def nodes(comfy):
    """The node classes by id."""
    classes = asyncio.run(comfy.module("nodes").OviExtension().get_node_list())
    return {cls.GET_SCHEMA().node_id: cls for cls in classes}


@pytest.mark.comfyui
def test_every_node_has_a_help_page_of_its_inputs_and_outputs(nodes):
    assert {path.stem for path in HELP.glob("*.md")} == set(nodes)
    for node_id, cls in nodes.items():
        sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", (HELP / f"{node_id}.md").read_text(), re.M | re.S))
        schema = cls.GET_SCHEMA()
        outputs = [output.display_name or output.io_type for output in schema.outputs]
        for title, names in (("Inputs", [given.id for given in schema.inputs]), ("Outputs", outputs)):
            assert re.findall(r"^\| `(.+?)` \|", sections[title], re.M) == names, f"{node_id}: {title}"


@pytest.mark.comfyui
def test_every_node_explains_itself(nodes):
    for node_id, cls in nodes.items():
        schema = cls.GET_SCHEMA()
        assert schema.display_name, node_id
        assert schema.description, node_id
        assert schema.search_aliases, node_id
        assert not [given.id for given in schema.inputs if not given.tooltip], f"{node_id}: inputs without a tooltip"


@pytest.mark.comfyui
def test_schemas_name_the_parameters_of_execute(nodes):
    for node_id, cls in nodes.items():
        optional = {given.id: given.optional for given in cls.GET_SCHEMA().inputs}
        parameters = inspect.signature(cls.execute).parameters.values()
        assert {one.name: one.default is not one.empty for one in parameters} == optional, node_id


@pytest.mark.comfyui
def test_pages_mention_registered_nodes_only(nodes):
    titles = {cls.GET_SCHEMA().display_name for cls in nodes.values()}
    for page in PAGES:
        text = page.read_text()
        ids = set(re.findall(r"\b(?:Empty)?Ovi[A-Z]\w+", text))
        assert ids <= set(nodes) or page.name == "migration.md", relative(page)  # that one names other packs' nodes
        assert set(re.findall(r"\*\*((?:Load |Empty )?Ovi [A-Z][^*]*)\*\*", text)) <= titles, relative(page)


@pytest.mark.parametrize("name", ["demo", "tests"])
def test_readme_s_commands_come_first_and_alone(name):
    """Each stands alone in a code block, ends in `nox -s NAME`, and names a session that noxfile.py defines."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
    (command,) = [block for block in blocks if block.endswith(f"nox -s {name}\n") and block.count("\n") == 1]
    assert text.index(f"nox -s {name}") == text.index(command) + command.index(f"nox -s {name}")
    sessions = re.findall(r"^@nox\.session\b.*\ndef (\w+)", (ROOT / "noxfile.py").read_text(), re.M)
    assert name in sessions


def test_ci_runs_the_readme_s_test_command():
    (command,) = re.findall(r"^.*nox -s tests$", (ROOT / "README.md").read_text(), re.M)
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def headings(page):
    """The anchors that GitHub gives to a page's headings."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", page, re.M)}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_and_pictures_are_there(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target in SHIPPED, link
        assert not anchor or anchor in headings(target.read_text()), link


def test_pictures_are_small():
    pictures = [path for path in SHIPPED if path.suffix in {".png", ".jpg"}]
    assert pictures
    assert not [relative(path) for path in pictures if path.stat().st_size >= 300_000]


def test_nothing_points_to_this_machine():
    """No path of a machine, no address but public ones, nothing beside the checkout."""
    private = re.compile(r"\.\./shared|/(?:home|root|work|Users)/|index[-_]url")
    for path in SHIPPED:
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        assert not private.findall(text), relative(path)
        assert set(re.findall(r"https?://([\w.-]+)", text)) <= PUBLIC_HOSTS, relative(path)


def test_only_native_and_nodes_import_comfyui():
    scanned = [path for path in (ROOT / "__init__.py", *(ROOT / "ovi").glob("*.py")) if path.name != "native.py"]
    assert len(scanned) > 10
    for path in scanned:
        imported = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.partition(".")[0])
        assert not imported & COMFYUI, relative(path)
