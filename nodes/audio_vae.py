"""Load Ovi Audio VAE."""

from __future__ import annotations

import folder_paths
from comfy_api.latest import io

from ..ovi.audio_vae import SOURCES, VAE, VOCODER
from ..ovi.native.vae import load_audio_vae

NO_VOCODER = "in the VAE file"


class OviAudioVAELoader(io.ComfyNode):
    """Load Ovi's audio VAE from the released VAE and vocoder files, or from a merged one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare a VAE file and a vocoder file in, a VAE out."""
        files = folder_paths.get_filename_list("vae")
        return io.Schema(
            node_id="OviAudioVAELoader",
            display_name="Load Ovi Audio VAE",
            category="Ovi/loaders",
            description="Loads the MMAudio 16 kHz VAE and the BigVGAN vocoder from models/vae as one VAE that encodes "
            "and decodes Ovi's audio.",
            search_aliases=["mmaudio", "bigvgan", "vocoder", "audio vae", "v1-16", "best_netG"],
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=files,
                    tooltip=f"The file of {VAE} ({SOURCES[VAE]}), or a merged file that contains the vocoder too.",
                ),
                io.Combo.Input(
                    "vocoder_name",
                    options=[NO_VOCODER, *files],
                    tooltip=f"The file of {VOCODER} ({SOURCES[VOCODER]}). Choose '{NO_VOCODER}' for a merged file.",
                ),
            ],
            outputs=[
                io.Vae.Output(
                    tooltip="Connect to 'Ovi Decode', or to ComfyUI's 'VAE Encode Audio' and 'VAE Decode Audio'."
                )
            ],
        )

    @classmethod
    def execute(cls, vae_name: str, vocoder_name: str) -> io.NodeOutput:
        """Load the two files, or the merged one."""
        names = [vae_name] if vocoder_name == NO_VOCODER else [vae_name, vocoder_name]
        return io.NodeOutput(load_audio_vae(*[folder_paths.get_full_path_or_raise("vae", name) for name in names]))
