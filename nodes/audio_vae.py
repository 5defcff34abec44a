"""Load the VAE of the sound: the published files, as ComfyUI's own VAE."""

from __future__ import annotations

import comfy.model_patcher
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

from ..ovi.audio_vae import PUBLISHED, VAE, VOCODER, merge

NO_VOCODER = "in the VAE file"


class OviAudioVAELoader(io.ComfyNode):
    """Load Ovi's audio VAE from the published VAE and vocoder files, or from a merged one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare a VAE file and a vocoder file in, a VAE out."""
        files = folder_paths.get_filename_list("vae")
        return io.Schema(
            node_id="OviAudioVAELoader",
            display_name="Load Ovi Audio VAE",
            category="Ovi",
            description="Loads the MMAudio 16 kHz VAE and the BigVGAN vocoder, both from models/vae, as the one VAE "
            "that encodes and decodes Ovi's sound.",
            search_aliases=["mmaudio", "bigvgan", "vocoder", "audio vae", "v1-16", "best_netG"],
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=files,
                    tooltip=f"The file of {VAE} ({PUBLISHED[VAE]}), or a merged file, which holds the vocoder too.",
                ),
                io.Combo.Input(
                    "vocoder_name",
                    options=[NO_VOCODER, *files],
                    tooltip=f"The file of {VOCODER} ({PUBLISHED[VOCODER]}), or '{NO_VOCODER}' if that is a merged one.",
                ),
            ],
            outputs=[io.Vae.Output(tooltip="For Ovi Decode, and for ComfyUI's VAE Encode Audio and VAE Decode Audio.")],
        )

    @classmethod
    def execute(cls, vae_name: str, vocoder_name: str) -> io.NodeOutput:
        """Load the two files, or the merged one."""
        names = [vae_name] if vocoder_name == NO_VOCODER else [vae_name, vocoder_name]
        return io.NodeOutput(load_vae(*[folder_paths.get_full_path_or_raise("vae", name) for name in names]))


def load_vae(vae_path: str, vocoder_path: str | None = None) -> comfy.sd.VAE:
    """Return the files as ComfyUI's VAE, which ComfyUI can load afresh for another device."""
    vae_sd = comfy.utils.load_torch_file(vae_path, safe_load=True)
    vocoder_sd = None if vocoder_path is None else comfy.utils.load_torch_file(vocoder_path, safe_load=True)
    # In 16 bits, which --bf16-vae asks of every VAE, its sound is wrong and it encodes none.
    vae = comfy.sd.VAE(sd=merge(vae_sd, vocoder_sd), dtype=torch.float32)
    vae.throw_exception_if_invalid()
    vae.patcher.cached_patcher_init = (_load_patcher, (vae_path, vocoder_path))
    return vae


def _load_patcher(
    vae_path: str, vocoder_path: str | None, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """Load afresh for ComfyUI, which hands `disable_dynamic` to every loader; its own for VAEs ignores it too."""
    return load_vae(vae_path, vocoder_path).patcher
