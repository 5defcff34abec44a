"""Ovi Scheduler and Ovi UniPC: the sampling of the Ovi release, for SamplerCustomAdvanced."""

from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io

from ..ovi import sampling

STEPS = 50  # the Ovi release's
MAX_STEPS = 10_000


class OviScheduler(io.ComfyNode):
    """Compute the noise schedule of the Ovi release."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare the settings in, SIGMAS out."""
        return io.Schema(
            node_id="OviScheduler",
            display_name="Ovi Scheduler",
            category="Ovi/sampling",
            description="The noise schedule of the Ovi release, or of a model for few steps, for "
            "'SamplerCustomAdvanced'.",
            search_aliases=["ovi sigmas", "ovi steps", "ovi shift", "few steps", "FastWan", "turbo"],
            inputs=[
                io.Int.Input(
                    "steps",
                    default=STEPS,
                    min=1,
                    max=MAX_STEPS,
                    tooltip="The Ovi release uses 50; 30 are often enough.",
                ),
                io.Float.Input(
                    "shift",
                    default=sampling.SHIFT,
                    min=0.1,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="The Ovi release uses 5. A higher shift spends more steps on composition and large "
                    "movements, fewer on detail.",
                ),
                io.Combo.Input(
                    "solver",
                    options=list(sampling.SOLVERS),
                    default="unipc",
                    tooltip="The schedule that the Ovi release pairs with a sampler: 'unipc' for Ovi UniPC, 'euler' "
                    "for euler, 'dpm++' for dpmpp_2m.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Below 1, only the last part of a longer schedule: the input latent is changed, not "
                    "replaced.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "preset",
                    options=[sampling.NO_PRESET, *sampling.PRESETS],
                    default=sampling.NO_PRESET,
                    tooltip="The schedule that a model for few steps was trained with; steps, shift and solver then do "
                    "not matter, and denoise must be 1. ComfyUI's lcm samples as their authors do.",
                    optional=True,
                    advanced=True,
                ),
            ],
            outputs=[io.Sigmas.Output(tooltip="Connect to 'SamplerCustomAdvanced'.")],
        )

    @classmethod
    def execute(
        cls, steps: int, shift: float, solver: str, denoise: float, preset: str = sampling.NO_PRESET
    ) -> io.NodeOutput:
        """Compute the preset, or the last `steps` of steps / denoise, as ComfyUI's own schedulers do."""
        if preset != sampling.NO_PRESET:
            return io.NodeOutput(sampling.preset_sigmas(preset, denoise))
        sigmas = sampling.flow_sigmas(int(steps / denoise), shift, solver)
        return io.NodeOutput(sigmas[-(steps + 1) :])


class OviUniPCSampler(io.ComfyNode):
    """Select the sampler of the Ovi release."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare a SAMPLER out."""
        return io.Schema(
            node_id="OviUniPCSampler",
            display_name="Ovi UniPC",
            category="Ovi/sampling",
            description="The sampler of the Ovi release, for 'SamplerCustomAdvanced': second-order UniPC for flow "
            "matching. ComfyUI's uni_pc is a different variant.",
            search_aliases=["ovi sampler", "flow unipc"],
            inputs=[],
            outputs=[io.Sampler.Output(tooltip="Connect to 'SamplerCustomAdvanced'.")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Wrap the sampler function."""
        return io.NodeOutput(comfy.samplers.KSAMPLER(sampling.sample_unipc))
