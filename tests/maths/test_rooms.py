"""Which room of the pack may import which: on the checkout, and on small trees that keep and break the rules."""

from __future__ import annotations

import pytest

from support import ROOT
from support.imports import broken_rules

TREE = {  # by file: its source; every arrow that is allowed
    "__init__.py": "def entry():\n    from comfyui_version import __version__\n    from .ovi import native\n"
    "    from .nodes import Extension\n",
    "ovi/__init__.py": "",
    "ovi/config.py": "import torch\n",
    "ovi/model.py": "from .config import Config\n" + "x = 1\n" * 500,
    "ovi/native/__init__.py": "from .load import load\n",
    "ovi/native/load.py": "import comfy.utils\nimport comfy_kitchen\nfrom .. import config\nfrom . import latent\n",
    "ovi/native/latent.py": "from comfy.nested_tensor import NestedTensor\nfrom ..model import Model\n",
    "ovi/tools/__init__.py": "",
    "ovi/tools/files.py": "import tqdm\n",
    "ovi/tools/convert.py": "import ovi.config\nfrom .files import whole\nfrom ..model import Model\n",
    "nodes/__init__.py": "from .load import Loader\nfrom . import notes\n",
    "nodes/inputs.py": "from comfy_api.latest import io\n",
    "nodes/notes.py": "from ..ovi import config\n",
    "nodes/load.py": "import folder_paths\nimport nodes\nfrom ..ovi.native import load\nfrom .inputs import size\n",
    "bench/__main__.py": "import comfy\nfrom ovi.native import load\nfrom authoring import demo\n",
}


def grow(folder, **changed):
    """Write the tree with some files changed; return the folder."""
    for name, source in (TREE | changed).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return folder


def test_a_tree_that_keeps_the_rules(tmp_path):
    assert broken_rules(grow(tmp_path)) == []


@pytest.mark.parametrize(
    ("where", "source", "message"),
    [
        ("ovi/config.py", "import comfy", "ovi/config.py imports ComfyUI's comfy"),
        ("ovi/config.py", "import comfy.utils as u", "ovi/config.py imports ComfyUI's comfy.utils"),
        ("ovi/config.py", "from comfy_api.latest import io", "ovi/config.py imports ComfyUI's comfy_api.latest"),
        ("ovi/config.py", "def f():\n    import folder_paths", "ovi/config.py imports ComfyUI's folder_paths"),
        (
            "ovi/config.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from server import PromptServer",
            "ovi/config.py imports ComfyUI's server",
        ),
        ("ovi/config.py", "import nodes", "ovi/config.py imports ComfyUI's nodes"),
        ("ovi/tools/files.py", "import comfyui_version", "ovi/tools/files.py imports ComfyUI's comfyui_version"),
        ("ovi/config.py", "from .native import load", "ovi/config.py imports ovi.native.load"),
        ("ovi/config.py", "from . import native", "ovi/config.py imports ovi.native"),
        ("ovi/config.py", "import ovi.tools.convert", "ovi/config.py imports ovi.tools.convert"),
        ("ovi/config.py", "from ..nodes import inputs", "ovi/config.py imports nodes.inputs"),
        ("ovi/config.py", "from nodes.inputs import size", "ovi/config.py imports nodes.inputs"),
        ("ovi/native/latent.py", "from ..tools.files import whole", "ovi/native/latent.py imports ovi.tools.files"),
        ("ovi/native/latent.py", "from ...nodes.notes import note", "ovi/native/latent.py imports nodes.notes"),
        ("ovi/tools/convert.py", "from ..native import load", "ovi/tools/convert.py imports ovi.native.load"),
        ("ovi/tools/convert.py", "from ovi.native import Ovi", "ovi/tools/convert.py imports ovi.native"),
        ("nodes/load.py", "from ..ovi.tools import convert", "nodes/load.py imports ovi.tools.convert"),
        ("nodes/inputs.py", "from .load import Loader", "nodes/inputs.py imports nodes.load"),
        ("nodes/inputs.py", "from . import load", "nodes/inputs.py imports nodes.load"),
        ("nodes/inputs.py", "from . import Loader", "nodes/inputs.py imports nodes"),
        ("nodes/load.py", "from bench import trace", "nodes/load.py imports bench"),
        ("ovi/config.py", "from miniature.world import scene", "ovi/config.py imports miniature.world"),
        ("ovi/config.py", "import authoring.demo", "ovi/config.py imports authoring.demo"),
        ("ovi/native/latent.py", "from ...tests.support import tiny", "ovi/native/latent.py imports tests.support"),
        ("__init__.py", "from .ovi.tools import convert", "__init__.py imports ovi.tools.convert"),
        ("__init__.py", "import comfy.sd", "__init__.py imports ComfyUI's comfy.sd"),
        ("ovi/web/page.py", "", "ovi/web/page.py stands in no known room"),
        ("ovi/config.py", "from . import model", "a circle: ovi.config → ovi.model → ovi.config"),
        (
            "ovi/native/latent.py",
            "def f():\n    from . import load",
            "a circle: ovi.native.latent → ovi.native.load → ovi.native.latent",
        ),
        (
            "ovi/native/latent.py",
            "from . import Ovi",
            "a circle: ovi.native → ovi.native.load → ovi.native.latent → ovi.native",
        ),
        ("ovi/config.py", "x = 1\n" * 401, "ovi/config.py has 401 lines, more than 400"),
        ("nodes/load.py", "x = 1\n" * 401, "nodes/load.py has 401 lines, more than 400"),
    ],
)
def test_a_tree_that_breaks_a_rule(tmp_path, where, source, message):
    broken = broken_rules(grow(tmp_path, **{where: source}))
    assert any(message in sentence for sentence in broken), broken


def test_the_pack_keeps_to_its_rooms():
    assert broken_rules(ROOT) == []
