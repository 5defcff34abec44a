"""`ovi/native/host.py`: every name of ComfyUI beyond its public node API, and what becomes of a pack that lacks one."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import re
import sys

import pytest

from support import ROOT
from support.host_names import ROOMS, TABLE, derived, used

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def host(comfy):
    """The table."""
    return comfy.module("ovi.native.host")


@pytest.fixture(scope="module")
def version(comfy):
    """The version of this ComfyUI."""
    import comfyui_version

    return comfyui_version.__version__


def test_this_comfyui_has_every_name(host, version):
    """Each with the parameters that the pack passes."""
    assert [name.path + name.call for name in host.missing((*host.NAMES, *host.HOOKS), version)] == []


def test_newer_names_are_as_new_as_they_say(host, version):
    newer = [name for name in (*host.NAMES, *host.HOOKS) if host.numbers(name.since) > host.numbers(version)]
    assert [name.path for name in newer if host.is_there(name)] == []


def test_each_name_is_listed_once(host):
    for names in (host.NAMES, host.HOOKS):
        assert sorted({name.path for name in names}) == sorted(name.path for name in names)


def test_this_comfyui_has_every_key(host, version):
    for module, keys in host.KEYS.items():
        source = inspect.getsource(importlib.import_module(module))
        keys = [key for key in keys if host.numbers(host.SINCE.get(key, "")) <= host.numbers(version)]
        absent = [key for key in keys if not re.search(rf"""(["']){key}\1|\b{key}=""", source)]
        assert absent == [], module


def test_the_table_lists_every_name(host):
    listed = {name.path for name in (*host.NAMES, *host.HOOKS)}
    names, keys = used(ROOT)
    add = [
        f'{TABLE} needs Name("{name}", WHAT FOR, CALL) in NAMES: {files} use it'
        for name, files in names.items()
        if name not in listed
    ]
    known = {key for of_module in host.KEYS.values() for key in of_module}
    add += [
        f'{TABLE} needs "{key}": WHAT FOR in KEYS: {files} use it' for key, files in keys.items() if key not in known
    ]
    assert add == []


def test_the_table_lists_every_hook(host):
    """What a class of ours defines and ComfyUI's has: ComfyUI calls ours, with what it passes to its own."""
    listed = {name.path for name in host.HOOKS}
    for cls in derived(ROOT):
        base = host._find(cls.base)
        module = cls.file.removesuffix(".py").replace("/", ".")
        ours = getattr(importlib.import_module(f"{host.__name__.removesuffix('.ovi.native.host')}.{module}"), cls.name)
        for name in cls.names - {"__init__"}:
            try:
                theirs = host._attribute(base, "", name)
            except AttributeError:
                continue
            assert f"{cls.base}.{name}" in listed, f'{TABLE} needs Name("{cls.base}.{name}", WHAT FOR) in HOOKS'
            if inspect.isfunction(theirs):
                passed = inspect.signature(theirs).parameters.values()
                own = inspect.signature(getattr(ours, name)).parameters
                takes_any = any(each.kind is each.VAR_KEYWORD for each in own.values())
                named = {each.name for each in passed if each.kind is each.POSITIONAL_OR_KEYWORD}
                assert takes_any or named <= own.keys(), f"{cls.base}.{name}"


def test_the_table_lists_nothing_else(host):
    files = (path for room in ROOMS for path in (ROOT / room).glob("*.py") if path != ROOT / TABLE)
    words = set(re.findall(r"\w+", "\n".join(path.read_text(encoding="utf-8") for path in files)))
    names = {name.path.rpartition(".")[2] for name in (*host.NAMES, *host.HOOKS)}
    assert names | {key for keys in host.KEYS.values() for key in keys} <= words


@pytest.fixture
def loading(comfy, monkeypatch):
    """Load the pack again, as ComfyUI does at its start; return whether it would."""
    import nodes  # ComfyUI's nodes.py

    name = str(ROOT).replace(".", "_x_")

    def load():
        for module in [module for module in sys.modules if module.startswith(name)]:
            monkeypatch.delitem(sys.modules, module)
        return asyncio.run(nodes.load_custom_node(str(ROOT), module_parent="custom_nodes"))

    monkeypatch.setattr(nodes, "NODE_CLASS_MAPPINGS", dict(nodes.NODE_CLASS_MAPPINGS))
    return load


def other_parameters(model):
    """Stand in for a function of ComfyUI's whose parameters have changed."""


@pytest.mark.parametrize(
    ("module", "name", "instead"),
    [
        ("comfy.samplers", "calc_cond_batch", None),
        ("comfy.samplers", "calc_cond_batch", other_parameters),
        ("comfy.nested_tensor", "NestedTensor", None),
        ("comfy_execution.validation", "validate_node_input", None),
    ],
)
def test_a_missing_name_is_one_sentence_at_the_start(loading, monkeypatch, caplog, version, module, name, instead):
    of = importlib.import_module(module)
    if instead is None:
        monkeypatch.delattr(of, name)
    else:
        monkeypatch.setattr(of, name, instead)
    assert not loading()
    (logged,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    sentence = (
        rf"Ovi needs {module}\.{name}.* \(.+\).*, which ComfyUI {re.escape(version)} does not have: update this pack\."
    )
    assert re.search(f"{sentence}$", logged)


def test_a_hook_without_use_is_one_sentence_and_the_pack_loads(loading, monkeypatch, caplog):
    from comfy.model_base import BaseModel

    monkeypatch.delattr(BaseModel, "scale_latent_inpaint")
    assert loading()
    (logged,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "no comfy.model_base.BaseModel.scale_latent_inpaint (what a mask preserves stays clean)" in logged
