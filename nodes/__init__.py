"""The nodes of the graph: schema and execute, one module per step."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import replace
from .audio_vae import OviAudioVAELoader
from .decode import OviDecode
from .extend import OviContinue, OviJoin
from .guide import OviGuidance
from .idea import OviAnswer, OviIdea
from .keyframe import OviGuide
from .latent import EmptyOviLatent, OviImageToVideo
from .load import OviModelLoader
from .lora import OviLoraLoader
from .parallel import OviParallel
from .person import OviPerson
from .prompt import OviPrompt
from .reference import OviReference, OviRemake
from .sample import OviScheduler, OviUniPCSampler
from .storyboard import OviShot, OviStoryboard
from .text import OviTextEncode, OviTimeline


class OviExtension(ComfyExtension):
    """The nodes of this pack."""

    async def on_load(self) -> None:
        """Register replacements for nodes of other packs."""
        await replace.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """List the nodes in the order of a graph: load, text, latent, guide, sample, decode."""
        return [
            OviModelLoader,
            OviLoraLoader,
            OviAudioVAELoader,
            OviIdea,
            OviAnswer,
            OviPrompt,
            OviTextEncode,
            OviTimeline,
            EmptyOviLatent,
            OviImageToVideo,
            OviPerson,
            OviReference,
            OviGuide,
            OviContinue,
            OviRemake,
            OviGuidance,
            OviParallel,
            OviScheduler,
            OviUniPCSampler,
            OviDecode,
            OviJoin,
            OviStoryboard,
            OviShot,
        ]
