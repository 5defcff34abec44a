"""The shipped workflows as the tests use them. Nodes are found by their class, never by their id."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from . import ROOT, tiny

GRAPHS = sorted((ROOT / "workflows").glob("*.json"))  # UI form
PROMPTS = sorted((ROOT / "workflows" / "api").glob("*.json"))  # API form
SUBGRAPHS = sorted((ROOT / "subgraphs").glob("*.json"))
NEWER = {"format.codec": "codec"}  # an input's name in a newer ComfyUI: in 0.30.0


def graph(title: str) -> dict[str, Any]:
    """Read a shipped workflow in UI form."""
    return dict(json.loads((ROOT / "workflows" / f"{title}.json").read_text()))


def prompt(name: str) -> dict[str, Any]:
    """Read a shipped workflow in API form."""
    return dict(json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text()))


def every_node(graph: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the nodes of a graph in UI form, with those of its subgraphs."""
    subgraphs = graph.get("definitions", {}).get("subgraphs", [])
    return graph["nodes"] + [node for subgraph in subgraphs for node in subgraph["nodes"]]


def overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two rectangles, as left, top, right and bottom, have a part in common."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def meaning(prompt: dict[str, Any]) -> list[Any]:
    """Return what a prompt does, whatever its nodes' ids: its sinks, each input replaced by the node that gives it.

    A text that a node of its own gives counts as the text. Save Video's codec is a part of its format since ComfyUI
    0.33, where it is in a prompt under both names: the one that counts there is compared.
    """

    def of_input(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        source, output = value
        kind = prompt[source]["class_type"]
        return prompt[source]["inputs"]["value"] if kind == "PrimitiveStringMultiline" else [of_node(source), output]

    def of_node(key: str) -> Any:
        node = prompt[key]
        inputs = {NEWER.get(name, name): of_input(value) for name, value in sorted(node["inputs"].items())}
        return [node["class_type"], inputs]

    taken = {value[0] for node in prompt.values() for value in node["inputs"].values() if isinstance(value, list)}
    return sorted((of_node(key) for key in prompt.keys() - taken), key=json.dumps)


def fitted(name: str, **changes: Any) -> dict[str, Any]:
    """Return a shipped workflow in API form, fitted to the tiny weights; `changes` set inputs wherever they occur."""
    fitted = prompt(name)
    tiny.fit(fitted)
    for node in fitted.values():
        node["inputs"] |= {key: value for key, value in changes.items() if key in node["inputs"]}
    return fitted


def ids(workflow: dict[str, Any], kind: str) -> list[str]:
    """Return the ids of a class's nodes in a workflow, in API form (`class_type`) or UI form (`type`)."""
    if "nodes" in workflow:
        return [str(node["id"]) for node in workflow["nodes"] if node["type"] == kind]
    return [key for key, node in workflow.items() if node["class_type"] == kind]


def id_of(workflow: dict[str, Any], kind: str) -> str:
    """Return the id of the only node of a class."""
    (found,) = ids(workflow, kind)
    return found


def node_of(workflow: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the only node of a class, itself rather than a copy."""
    found = id_of(workflow, kind)
    nodes = {str(node["id"]): node for node in workflow["nodes"]} if "nodes" in workflow else workflow
    node: dict[str, Any] = nodes[found]
    return node
