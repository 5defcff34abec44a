"""The published sampling, for SamplerCustomAdvanced: OviScheduler, OviUniPCSampler."""

from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io

from ..ovi import sampling

STEPS = 50  # published
MAX_STEPS = 10_000


class OviScheduler(io.ComfyNode):
    """The published noise schedule."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="OviScheduler",
            display_name="Ovi Scheduler",
            category="Ovi",
            description="Ovi's published noise schedule, for 'SamplerCustomAdvanced'.",
            search_aliases=["ovi sigmas", "ovi steps", "ovi shift"],
            inputs=[
                io.Int.Input(
                    "steps", default=STEPS, min=1, max=MAX_STEPS, tooltip="50 are published; 30 are often enough."
                ),
                io.Float.Input(
                    "shift",
                    default=5.0,
                    min=0.1,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="5 is published; more spends more steps on the large movements of picture and sound.",
                ),
                io.Combo.Input(
                    "solver",
                    options=list(sampling.SOLVERS),
                    default="unipc",
                    tooltip="Which published schedule: 'unipc' for Ovi UniPC, 'euler' for the sampler euler, 'dpm++' "
                    "for dpmpp_2m.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Below 1, only the last part of a longer schedule: the latent given is changed instead of "
                    "replaced.",
                    advanced=True,
                ),
            ],
            outputs=[io.Sigmas.Output()],
        )

    @classmethod
    def execute(cls, steps: int, shift: float, solver: str, denoise: float) -> io.NodeOutput:
        """Make the schedule, its last `steps` of steps / denoise as in ComfyUI's own schedulers."""
        sigmas = sampling.flow_sigmas(int(steps / denoise), shift, solver)
        return io.NodeOutput(sigmas[-(steps + 1) :])


class OviUniPCSampler(io.ComfyNode):
    """The published sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="OviUniPCSampler",
            display_name="Ovi UniPC",
            category="Ovi",
            description="Ovi's published sampler, for 'SamplerCustomAdvanced': UniPC of order 2 in flow form. "
            "ComfyUI's uni_pc is another variant.",
            search_aliases=["ovi sampler", "flow unipc"],
            inputs=[],
            outputs=[io.Sampler.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Wrap the sampler function."""
        return io.NodeOutput(comfy.samplers.KSAMPLER(sampling.sample_unipc))
