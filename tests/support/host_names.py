"""The names of ComfyUI in the pack's source that are not of its public node API, found without running anything.

A name is dotted, from its module on: `comfy.samplers.calc_cond_batch`. An attribute of an object is one of its class,
wherever the source says which that is: an annotation (`model: ModelPatcher`), a call of the class, `self` in a class of
ours that is derived from one of ComfyUI's, a name that the pack gives to nothing else (`VARIABLES`), or an attribute
whose class is known (`CLASSES`). The keys of the dicts that ComfyUI and the pack hand each other are found by the names
of these dicts (`DICTS`).
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from .imports import COMFYUI, imported

ROOMS = ("ovi/native", "nodes")
TABLE = "ovi/native/host.py"
PUBLIC = "comfy_api.latest"
VARIABLES = {  # names that stand for an object of this class throughout the pack
    "vae": "comfy.sd.VAE",
    "video_vae": "comfy.sd.VAE",
    "audio_vae": "comfy.sd.VAE",
    "executor": "comfy.patcher_extension.WrapperExecutor",
    "patcher": "comfy.model_patcher.ModelPatcher",
    "window": "comfy.context_windows.IndexListContextWindow",
}
CLASSES = {  # an attribute, or a class that another one is derived from, and the class whose names its own are
    "comfy.model_patcher.CoreModelPatcher": "comfy.model_patcher.ModelPatcher",
    "comfy.model_patcher.ModelPatcher.model": "comfy.model_base.BaseModel",
    "comfy.model_base.BaseModel.model_sampling": "comfy.model_sampling.ModelSamplingDiscreteFlow",
    "comfy.patcher_extension.WrapperExecutor.class_obj": "comfy.samplers.CFGGuider",
    "comfy.samplers.CFGGuider.model_patcher": "comfy.model_patcher.ModelPatcher",
    "comfy.sd.VAE.patcher": "comfy.model_patcher.ModelPatcher",
    "server.PromptServer.instance": "server.PromptServer",
}
DICTS = ("args", "cond", "kwargs", "options", "model_options")
OF_DICTS = ("get", "items", "keys", "pop", "setdefault", "values")
ASKING = ("getattr", "hasattr", "setattr")

Where = dict[str, set[str]]  # by name: the files that use it


class Derived(NamedTuple):
    """A class of ours that is derived from one of ComfyUI's, by that one's name, and the names that it defines."""

    file: str
    name: str
    base: str
    names: frozenset[str]


def used(root: Path) -> tuple[Where, Where]:
    """Return the names, and the keys of dicts, that the pack uses beyond the public node API."""
    own = {cls.name: cls for cls in derived(root)}
    names: Where = defaultdict(set)
    keys: Where = defaultdict(set)
    for path, where in _files(root):
        source = _Source(path, root, own)
        for name in source.names:
            names[name].add(where)
        for key in source.keys:
            keys[key].add(where)
    return dict(names), dict(keys)


def derived(root: Path) -> list[Derived]:
    """Return the classes of ours that are derived from ComfyUI's."""
    found = []
    for path, where in _files(root):
        for node, base in _Source(path, root, {}).derived.items():
            names = frozenset(name for part in node.body for name in _given(part)) | _set_on_self(node)
            found.append(Derived(where, node.name, base, names))
    return found


def _files(root: Path) -> Iterator[tuple[Path, str]]:
    for room in ROOMS:
        for path in sorted((root / room).glob("*.py")):
            if (where := path.relative_to(root).as_posix()) != TABLE:
                yield path, where


class _Source(ast.NodeVisitor):
    """One file: what it uses, and its classes that are derived from ComfyUI's."""

    def __init__(self, path: Path, root: Path, own: Mapping[str, Derived]) -> None:
        self.names: set[str] = set()
        self.keys: set[str] = set()
        self.derived: dict[ast.ClassDef, str] = {}
        self._own = own
        self._scopes: list[dict[str, str]] = [dict(VARIABLES)]  # by variable, innermost last: what it stands for
        self._modules: set[str] = set()
        self._ours = {name for name, is_ours in imported(path, root) if is_ours}
        self.visit(ast.parse(path.read_text(encoding="utf-8")))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if self._is_host(alias.name):
                self._modules.add(alias.name)
                first = alias.name.partition(".")[0]
                self._scopes[-1][alias.asname or first] = alias.name if alias.asname else first

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if node.level:
                ours = self._own.get(alias.name)
                self._scopes[-1][alias.asname or alias.name] = ours.base if ours else ""
            elif node.module and self._is_host(node.module):
                name = f"{node.module}.{alias.name}"
                self._scopes[-1][alias.asname or alias.name] = name
                self._use(name)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        base = next((name for name in map(self._name, node.bases) if name and not name.startswith(PUBLIC)), None)
        if base:
            self.derived[node] = base
            self._scopes[-1][node.name] = base
        self._scopes.append({"self": base} if base else {})
        self.generic_visit(node)
        self._scopes.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        annotated = {each.arg: self._name(each.annotation) for each in every if each.annotation}
        self._scopes.append({argument: name for argument, name in annotated.items() if name})
        self.generic_visit(node)
        self._scopes.pop()

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 - ast calls it so

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        self._bind(node.targets[0], node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        self._bind(node.target, node.annotation)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if name := self._name(node):
            self._use(name)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        asks = isinstance(node.func, ast.Name) and node.func.id in ASKING and len(node.args) > 1
        if asks and isinstance(node.args[1], ast.Constant) and (name := self._name(node.args[0])):
            self._use(f"{name}.{node.args[1].value}")
        if isinstance(node.func, ast.Attribute) and node.func.attr in OF_DICTS and node.args:
            self._use_key(node.func.value, node.args[0])
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        for_ours = isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "kwargs"
        if not for_ours:
            self._use_key(node.value, node.slice)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        if isinstance(node.ops[0], (ast.In, ast.NotIn)):
            self._use_key(node.comparators[0], node.left)
        self.generic_visit(node)

    def _is_host(self, module: str) -> bool:
        return module.partition(".")[0] in COMFYUI and module not in self._ours

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name) and (name := self._name(value)):
            self._scopes[-1][target.id] = name

    def _use(self, name: str) -> None:
        name = name.removesuffix(".__init__")
        if name not in self._modules and not f"{name}.".startswith(f"{PUBLIC}."):
            self.names.add(name)

    def _use_key(self, of: ast.expr, key: ast.expr) -> None:
        name = of.id if isinstance(of, ast.Name) else of.attr if isinstance(of, ast.Attribute) else ""
        if name in DICTS and isinstance(key, ast.Constant) and isinstance(key.value, str):
            self.keys.add(key.value)

    def _name(self, node: ast.expr) -> str | None:
        """Return the name of ComfyUI's that an expression stands for; None where there is none, or it is not seen."""
        if isinstance(node, ast.Name):
            return next((scope[node.id] for scope in reversed(self._scopes) if node.id in scope), None)
        if isinstance(node, ast.Attribute):
            of = self._name(node.value)
            return of and self._attribute(of, node.attr)
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id == "super":
                return self._scopes_self()
            made = self._name(node.func)
            if made and made.endswith(".clone"):
                return made.removesuffix(".clone")
            return made if made and made.rpartition(".")[2][0].isupper() else None
        if isinstance(node, ast.IfExp):
            return self._name(node.body) or self._name(node.orelse)
        return self._name(node.left) if isinstance(node, ast.BinOp) else None  # the annotation `X | None`

    def _scopes_self(self) -> str | None:
        return self._name(ast.Name("self"))

    def _attribute(self, of: str, name: str) -> str | None:
        """Return the name of an attribute, None for what is no name of ComfyUI's class, or lies beyond one."""
        of = CLASSES.get(of, of)
        if any(cls.base == of and name in cls.names for cls in self._own.values()) or name in OF_DICTS:
            return None
        owner = of.rpartition(".")[0].rpartition(".")[2]
        return None if owner[:1].isupper() else f"{of}.{name}"


def _given(node: ast.stmt) -> Iterator[str]:
    """The names that a statement of a class's body gives to it."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        yield node.name
    for target in node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]:
        if isinstance(target, ast.Name):
            yield target.id


def _set_on_self(node: ast.ClassDef) -> frozenset[str]:
    """The names that a class's methods give to its objects."""
    parts = (part for part in ast.walk(node) if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store))
    return frozenset(part.attr for part in parts if isinstance(part.value, ast.Name) and part.value.id == "self")
