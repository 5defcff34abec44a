"""ComfyUI's side of the bench: Ovi with ComfyUI's layers, attention and rotation, and ComfyUI's own Wan of that size.

ComfyUI reads its arguments when it is imported, so `start` comes before everything else that imports it. Both models
use ComfyUI's PyTorch attention.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from torch import Tensor, nn

from ovi.config import OviConfig
from ovi.model import Attention, OviModel


def start(device: str = "cpu") -> None:
    """Put the ComfyUI of COMFYUI_PATH on the path and set it to a device, "cpu" or "cuda", and PyTorch's attention.

    Raises SystemExit where COMFYUI_PATH is not set.
    """
    if "COMFYUI_PATH" not in os.environ:
        raise SystemExit("The bench compares with ComfyUI: set COMFYUI_PATH to its folder, or run 'nox -s bench'.")
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args

    args.cpu = device == "cpu"
    args.use_pytorch_cross_attention = True
    importlib.import_module("comfy.ldm.wan.model")  # now: within a trace, what it makes on import would be fake


def version() -> str:
    """Return ComfyUI's version."""
    from comfyui_version import __version__

    return __version__


def ovi(config: OviConfig, **options: Any) -> OviModel:
    """Return Ovi as ComfyUI runs it."""
    import comfy.ops

    from ovi.native import NativeOviModel

    return NativeOviModel(config, operations=comfy.ops.disable_weight_init, **options)


class Wan(nn.Module):
    """ComfyUI's Wan 2.2 5B at Ovi's sizes, called as OviModel is with the video alone.

    `attention` replaces ComfyUI's.
    """

    def __init__(self, config: OviConfig, attention: Attention | None = None, **options: Any) -> None:
        super().__init__()
        import comfy.ops
        from comfy.ldm.wan.model import WanModel

        self.options: dict[str, Any] = {}
        if attention is not None:
            self.options["optimized_attention_override"] = lambda _, *args, **kwargs: attention(*args, **kwargs)
        self.wan = WanModel(
            dim=config.dim,
            ffn_dim=config.video_ffn_dim,
            num_heads=config.num_heads,
            num_layers=config.num_layers,
            in_dim=config.video_channels,
            out_dim=config.video_channels,
            text_dim=config.text_dim,
            operations=comfy.ops.disable_weight_init,
            **options,
        )

    def load(self, video_tower: nn.Module) -> None:
        """Load the weights of Ovi's video tower, which are Wan's and some for the fusion."""
        state = {k.replace("modulation.modulation", "modulation"): v for k, v in video_tower.state_dict().items()}
        self.wan.load_state_dict({k: v for k, v in state.items() if "fusion" not in k})

    def forward(self, x: list[Tensor | None], timestep: Tensor, context: Tensor) -> list[Tensor | None]:
        """Return the velocities: [video, None] → [velocity, None]."""
        return [self.wan(x[0], timestep, context, transformer_options=dict(self.options)), None]
