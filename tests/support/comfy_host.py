"""Real ComfyUI in this process, on the CPU or another device, with this pack loaded the way ComfyUI loads it.

ComfyUI reads its arguments and folders at import, so a `Host` is made once, before anything of ComfyUI is imported.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from . import ROOT

CORE_NODES = ("nodes_custom_sampler", "nodes_model_advanced", "nodes_video", "nodes_audio", "nodes_lt")
DEVICES = ("cpu", "cuda", "emulated")


class Host:
    """The running ComfyUI: its node classes, and the modules of this pack as ComfyUI imported them."""

    def __init__(self, comfyui: Path, base: Path, device: str = "cpu", *, dynamic_vram: bool = False) -> None:
        """`device` is one of `DEVICES`. On a card, `dynamic_vram` moves weights as ComfyUI does there."""
        self.base = base
        self.models = base / "models"
        if str(comfyui) in sys.path:
            sys.path.remove(str(comfyui))
        sys.path.insert(0, str(comfyui))
        from comfy.cli_args import args

        args.cpu = device != "cuda"  # the emulated device comes later
        # On the CPU ComfyUI computes in float32. On a card it would take float16 and bfloat16, whose errors are larger
        # than the tests' tolerances.
        args.force_fp32 = device == "cuda"
        args.base_directory = str(base)
        for folder in ("diffusion_models", "vae", "text_encoders", "loras", "checkpoints"):
            (self.models / folder).mkdir(parents=True, exist_ok=True)
        (base / "custom_nodes").mkdir(exist_ok=True)

        import utils.extra_config  # noqa: F401  (first, as in main.py: importing nodes hides ComfyUI's utils)

        if device == "cuda":
            _use_card(dynamic_vram=dynamic_vram)
        elif device == "emulated":
            from . import emulated_comfy

            emulated_comfy.adapt()

        import nodes  # ComfyUI's nodes.py

        if Path(nodes.__file__) != comfyui / "nodes.py":
            raise RuntimeError(f"'import nodes' gave {nodes.__file__}, not ComfyUI's nodes.py")
        self._nodes = nodes

        async def load() -> None:
            await nodes.init_public_apis()
            for name in CORE_NODES:
                self._check(
                    await nodes.load_custom_node(
                        str(comfyui / "comfy_extras" / f"{name}.py"), module_parent="comfy_extras"
                    ),
                    name,
                )
            self._check(await nodes.load_custom_node(str(ROOT), module_parent="custom_nodes"), "this pack")

        asyncio.run(load())

    @staticmethod
    def _check(loaded: bool, name: str) -> None:
        if not loaded:
            raise RuntimeError(f"ComfyUI could not load {name}; its log says why")

    @property
    def node(self) -> dict[str, Any]:
        """Node classes by id."""
        return self._nodes.NODE_CLASS_MAPPINGS

    def core(self, name: str) -> None:
        """Load one more of ComfyUI's `comfy_extras` modules."""
        path = Path(self._nodes.__file__).parent / "comfy_extras" / f"{name}.py"
        self._check(asyncio.run(self._nodes.load_custom_node(str(path), module_parent="comfy_extras")), name)

    def module(self, name: str) -> ModuleType:
        """A module of this pack as ComfyUI imported it, e.g. `module("ovi.native")`."""
        return importlib.import_module(f"{str(ROOT).replace('.', '_x_')}.{name}")

    def run(self, node_id: str, **inputs: Any) -> tuple[Any, ...]:
        """Call a node (V3 or V1) with inputs by name; return its outputs."""
        cls = self.node[node_id]
        if hasattr(cls, "define_schema"):
            return tuple(cls.execute(**inputs).args)
        return tuple(getattr(cls(), cls.FUNCTION)(**inputs))


def _use_card(*, dynamic_vram: bool) -> None:
    """Put the text encoder on the card, as ComfyUI does where it is not held to float32; and load weights as it does.

    Multiply in float32, whose errors the tests' tolerances allow for: convolutions would take TF32, and the matrices of
    quantised files 8 or 4 bits.

    Raises RuntimeError where dynamic VRAM does not start.
    """
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher

    comfy.model_management.text_encoder_device = comfy.model_management.get_torch_device
    torch.backends.cudnn.allow_tf32 = False
    for formats in ("fp8", "nvfp4", "mxfp8"):
        setattr(comfy.model_management, f"supports_{formats}_compute", lambda device=None: False)
    if not dynamic_vram:
        return
    import comfy_aimdo.control  # as in main.py

    devices = [device.index for device in comfy.model_management.get_all_torch_devices()]
    if not (comfy_aimdo.control.init() and comfy_aimdo.control.init_devices(devices)):
        raise RuntimeError("ComfyUI's dynamic VRAM did not start on this card.")
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True
