"""The rooms of the pack and which of them may import which, read from the source of every module."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

COMFYUI = {
    "alembic_db", "api_server", "app", "comfy", "comfy_api", "comfy_api_nodes", "comfy_config", "comfy_execution",
    "comfy_extras", "comfyui_version", "cuda_malloc", "execution", "folder_paths", "hook_breaker_ac10a0",
    "latent_preview", "main", "middleware", "new_updater", "node_helpers", "nodes", "protocol", "server", "utils",
}  # fmt: skip
RUN_TIME = ("ovi", "nodes")  # with the root's __init__.py: what runs inside ComfyUI
OTHERS = ("miniature", "bench", "authoring", "tests", "noxfile")
ARROWS = {  # by room: the rooms that it may import
    "": {"nodes", "ovi", "ovi/native"},
    "ovi": {"ovi"},
    "ovi/native": {"ovi", "ovi/native"},
    "ovi/tools": {"ovi", "ovi/tools"},
    "nodes": {"ovi", "ovi/native"},
}
WITH_COMFYUI = ("ovi/native", "nodes")
SHARED_BY_NODES = ("nodes.inputs", "nodes.notes")
FLOOR_CHECK = ("", "comfyui_version")  # the root refuses a ComfyUI that is too old before it imports the nodes
MAX_LINES = 400
LONG = ("ovi/model.py",)


def broken_rules(root: Path) -> list[str]:
    """Return a sentence for every import that leaves its room the wrong way, every circle and every long file."""
    modules = {_dotted(path, root): path for path in _sources(root)}
    edges = {module: set(imported(path, root)) for module, path in modules.items()}
    broken = []
    for module, targets in edges.items():
        where = modules[module].relative_to(root).as_posix()
        room = _room(module, root)
        if room not in ARROWS:
            broken.append(f"{where} stands in no known room")
            continue
        for target, is_ours in sorted(targets):
            if not is_ours:
                allowed = room in WITH_COMFYUI or (room, target) == FLOOR_CHECK
                if target.partition(".")[0] in COMFYUI and not allowed:
                    broken.append(f"{where} imports ComfyUI's {target}")
            elif _room(target, root) == room == "nodes":
                if module != "nodes" and target not in SHARED_BY_NODES:
                    broken.append(f"{where} imports {target}")
            elif _room(target, root) not in ARROWS[room]:
                broken.append(f"{where} imports {target}")
    if circle := _circle({module: {target for target, ours in targets if ours} for module, targets in edges.items()}):
        broken.append("a circle: " + " → ".join(circle))
    for path in modules.values():
        name, lines = path.relative_to(root).as_posix(), len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_LINES and name not in LONG:
            broken.append(f"{name} has {lines} lines, more than {MAX_LINES}")
    return broken


def imported(path: Path, root: Path) -> Iterator[tuple[str, bool]]:
    """What a file imports, wherever in the file: each module's absolute name, and whether it is one of this checkout.

    The root's own package has the name "". `nodes` is the pack's where the file is there, and else ComfyUI's.
    """
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, _is_ours(alias.name, root)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}".lstrip(".")
                name = name if _file(name, root) else base
                yield name, bool(node.level) or _is_ours(name, root)


def _sources(root: Path) -> Iterator[Path]:
    if (root / "__init__.py").exists():
        yield root / "__init__.py"
    for folder in RUN_TIME:
        yield from sorted((root / folder).rglob("*.py"))


def _dotted(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def _file(module: str, root: Path) -> Path | None:
    stem = root.joinpath(*module.split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.exists()), None)


def _is_ours(module: str, root: Path) -> bool:
    first, _, below = module.partition(".")
    return first in ("ovi", *OTHERS) or (first == "nodes" and bool(below) and _file(module, root) is not None)


def _room(module: str, root: Path) -> str:
    """The folder that a module stands in, "" for the root."""
    path = _file(module, root)
    parts = module.split(".") if path is None else path.relative_to(root).parent.parts
    return "/".join(parts)


def _circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return a circle of imports, its first module again at the end; empty where there is none."""
    try:
        TopologicalSorter({module: targets - {module} for module, targets in graph.items()}).prepare()
    except CycleError as error:
        circle = list(reversed(error.args[1]))[:-1]  # in the direction of the imports
        first = circle.index(min(circle))
        return [name or "the root" for name in (*circle[first:], *circle[: first + 1])]
    return []
