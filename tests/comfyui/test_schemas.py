"""The nodes' schemas fit their help pages, their code, the other pages and the English of locales/."""

from __future__ import annotations

import asyncio
import inspect
import json
import re

import pytest

from authoring.locales import LOCALES, english
from support import ROOT
from support.checkout import SHIPPED, relative

pytestmark = pytest.mark.comfyui

HELP = ROOT / "web" / "docs"
PAGES = [path for path in SHIPPED if path.suffix == ".md"]


@pytest.fixture(scope="module")
def nodes(comfy):
    """The node classes by id."""
    classes = asyncio.run(comfy.module("nodes").OviExtension().get_node_list())
    return {cls.GET_SCHEMA().node_id: cls for cls in classes}


def test_every_node_has_a_help_page_of_its_inputs_and_outputs(nodes):
    assert {path.stem for path in HELP.glob("*.md")} == set(nodes)
    for node_id, cls in nodes.items():
        sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", (HELP / f"{node_id}.md").read_text(), re.M | re.S))
        schema = cls.GET_SCHEMA()
        outputs = [output.display_name or output.io_type for output in schema.outputs]
        for title, names in (("Inputs", [given.id for given in schema.inputs]), ("Outputs", outputs)):
            assert re.findall(r"^- \*\*(.+?)\*\*: ", sections[title], re.M) == names, f"{node_id}: {title}"


def test_every_node_explains_itself(nodes):
    for node_id, cls in nodes.items():
        schema = cls.GET_SCHEMA()
        assert schema.display_name, node_id
        assert schema.description, node_id
        assert schema.search_aliases, node_id
        assert not [given.id for given in schema.inputs if not given.tooltip], f"{node_id}: inputs without a tooltip"


def test_schemas_name_the_parameters_of_execute(nodes):
    for node_id, cls in nodes.items():
        optional = {given.id: given.optional for given in cls.GET_SCHEMA().inputs}
        parameters = inspect.signature(cls.execute).parameters.values()
        assert {one.name: one.default is not one.empty for one in parameters} == optional, node_id


def test_pages_mention_registered_nodes_only(nodes):
    titles = {cls.GET_SCHEMA().display_name for cls in nodes.values()}
    for page in PAGES:
        text = page.read_text()
        ids = set(re.findall(r"\b(?:Empty)?Ovi[A-Z]\w+", text))
        assert ids <= set(nodes) or page.name == "migration.md", relative(page)  # that one names other packs' nodes
        assert set(re.findall(r"\*\*((?:Load |Empty )?Ovi [A-Z][^*]*)\*\*", text)) <= titles, relative(page)


def test_english_is_what_the_schemas_say(comfy):
    assert json.loads((LOCALES / "en" / "nodeDefs.json").read_text()) == english(comfy)
