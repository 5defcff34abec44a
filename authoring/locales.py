"""Write locales/en/nodeDefs.json, the English texts of the nodes, from their schemas.

    python -m authoring.locales COMFYUI

The other languages are written by hand, under the same keys, in the terms of ComfyUI's own translations. ComfyUI has no
German yet; it shows English where it lacks a language.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support import ROOT
from tests.support.comfy_host import Host

LOCALES = ROOT / "locales"


def main() -> None:
    """Write the English file."""
    with tempfile.TemporaryDirectory() as folder:
        nodes = english(Host(Path(sys.argv[1]).resolve(), Path(folder)))
    (LOCALES / "en" / "nodeDefs.json").write_text(json.dumps(nodes, indent=2) + "\n")


def english(comfy: Host) -> dict[str, Any]:
    """Every text of every node by its id, under the keys at which ComfyUI's frontend looks for translations.

    An output without a name of its own is called by its type, which the frontend translates itself.
    """
    schemas = [cls.GET_SCHEMA() for cls in asyncio.run(comfy.module("nodes").OviExtension().get_node_list())]
    return {
        schema.node_id: _without_empty(
            display_name=schema.display_name,
            description=schema.description,
            inputs={given.id: {"name": given.id, "tooltip": given.tooltip} for given in schema.inputs},
            outputs=_without_empty(
                **{
                    str(index): _without_empty(name=output.display_name, tooltip=output.tooltip)
                    for index, output in enumerate(schema.outputs)
                }
            ),
        )
        for schema in schemas
    }


def _without_empty(**entries: Any) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if value}


if __name__ == "__main__":
    main()
