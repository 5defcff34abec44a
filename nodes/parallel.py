"""Ovi Parallel."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..ovi.native.parallel import share_out
from ..ovi.parallel import AUTO

MAX_GPUS = 64  # ComfyUI's own limit


class OviParallel(io.ComfyNode):
    """Share out each pass of the model among several GPUs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare a MODEL, a number of GPUs and their shares in, a MODEL out."""
        return io.Schema(
            node_id="OviParallel",
            display_name="Ovi Parallel",
            category="Ovi/sampling",
            description="Generates one clip on several GPUs of this machine: first the positive and the negative pass "
            "at the same time, then the parts of each frame. Every GPU holds the whole model.",
            search_aliases=["ovi multi gpu", "multigpu", "several gpus", "sequence parallel", "cfg parallel"],
            inputs=[
                io.Model.Input("model", tooltip="From 'Load Ovi Model'; LoRAs and 'Ovi Guidance' come after it."),
                io.Int.Input(
                    "gpus",
                    default=2,
                    min=1,
                    max=MAX_GPUS,
                    tooltip="How many GPUs share out each pass of the model: that of the MODEL, and the next ones in "
                    "ComfyUI's order. 1 changes nothing.",
                ),
                io.String.Input(
                    "shares",
                    default=AUTO,
                    tooltip="The share of each GPU: auto is equal shares; for GPUs of different speed, numbers such "
                    "as 3, 2.",
                    advanced=True,
                ),
            ],
            outputs=[io.Model.Output(tooltip="Connect to 'Load Ovi LoRA', 'Ovi Guidance' or a sampler.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, gpus: int, shares: str) -> io.NodeOutput:
        """Make clones of the model for the other GPUs."""
        return io.NodeOutput(share_out(model, gpus, shares))
