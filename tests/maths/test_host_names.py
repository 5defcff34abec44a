"""The scan for names of ComfyUI: what it finds in small files, and what it leaves alone."""

from __future__ import annotations

import pytest

from support.host_names import derived, used

LATENT = """
import comfy.latent_formats
class Ours(comfy.latent_formats.Wan22):
    ratio = 4
    def __init__(self):
        super().__init__()
        self.own = 1
    def process_in(self, latent):
        return super().process_in(latent) + self.own + self.scale_factor
"""


def scan(folder, source, name="ovi/native/model.py"):
    """Return the names and the keys in a file of a small pack."""
    for each in ("ovi/native", "nodes"):
        (folder / each).mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(source)
    return tuple(sorted(found) for found in used(folder))


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import comfy.utils\ncomfy.utils.pack(1)", ["comfy.utils.pack"]),
        ("import comfy.utils as u\nu.pack(1)", ["comfy.utils.pack"]),
        ("def f():\n    from comfy.utils import pack", ["comfy.utils.pack"]),
        ("import comfy.management\nm = comfy.management\nm.device()", ["comfy.management.device"]),
        ("import comfy.management\ngetattr(comfy.management, 'training', 0)", ["comfy.management.training"]),
        ("import nodes\nnodes.MAPPINGS.get('x')", ["nodes.MAPPINGS"]),
        ("from comfy_api.latest import io, ui\nio.Int.Input('x')", []),
        ("from comfy_api.internal import x", ["comfy_api.internal.x"]),
        ("from .host import require\nimport torch\ntorch.nn.Linear(1, 1)", []),
        ("from comfy.sd import VAE\nVAE(sd=1).first", ["comfy.sd.VAE", "comfy.sd.VAE.first"]),
        ("from comfy.sd import VAE\ndef f(x: VAE | None):\n    x.first.second", ["comfy.sd.VAE", "comfy.sd.VAE.first"]),
        ("def f(vae):\n    vae.first", ["comfy.sd.VAE.first"]),
        (
            "def f(patcher):\n    patcher.clone().more",
            [f"comfy.model_patcher.ModelPatcher.{x}" for x in ("clone", "more")],
        ),
        ("from .. import vae\nvae.first", []),
        (LATENT, ["comfy.latent_formats.Wan22", "comfy.latent_formats.Wan22.scale_factor"]),
    ],
)
def test_names(tmp_path, source, names):
    assert scan(tmp_path, source) == (names, [])


@pytest.mark.parametrize(
    ("source", "keys"),
    [
        ("options['a'] = options.get('b')\n'c' in model.model_options", ["a", "b", "c"]),
        ("def f(args, **kwargs):\n    kwargs['ours'] = args['a'], kwargs['b']", ["a", "b"]),
        ("others['a'], options[0], options[name]", []),
    ],
)
def test_keys(tmp_path, source, keys):
    assert scan(tmp_path, source) == ([], keys)


def test_objects_of_a_class_of_ours_in_another_file(tmp_path):
    scan(tmp_path, LATENT, "ovi/native/latent.py")
    names, _ = scan(tmp_path, "from .latent import Ours\ndef f(x: Ours):\n    x.own, x.process_in, x.channels")
    assert names == [f"comfy.latent_formats.Wan22{end}" for end in ("", ".channels", ".scale_factor")]


def test_what_a_class_of_ours_defines(tmp_path):
    scan(tmp_path, LATENT)
    (cls,) = derived(tmp_path)
    assert (cls.name, cls.base) == ("Ours", "comfy.latent_formats.Wan22")
    assert cls.names == {"ratio", "__init__", "own", "process_in"}


def test_the_table_itself_is_left_out(tmp_path):
    assert scan(tmp_path, "import comfy.utils\ncomfy.utils.pack(1)", "ovi/native/host.py") == ([], [])
