"""Ovi Person."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..ovi import caption, geometry, image
from ..ovi.native import references
from ..ovi.native.latent import latent_parts
from ..ovi.native.vae import encode, encode_voice, require_audio_vae, require_video_vae
from .inputs import voice_inputs
from .notes import show


class OviPerson(io.ComfyNode):
    """Add a person, by face, voice or both, to the prompts of a model that was trained with them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare prompts, the latent to sample, VAEs, a face and a voice in, prompts out."""
        return io.Schema(
            node_id="OviPerson",
            display_name="Ovi Person",
            category="Ovi/conditioning",
            description="Adds a person to the prompts: a face and a voice that the clip follows. One node for each "
            "person, in a row; the first is <sub1> of the prompt, the second <sub2>. For DreamID-Omni: only that model "
            "was trained for it.",
            search_aliases=["reference face", "reference voice", "same person", "identity", "dreamid", "voice clone"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="From 'Ovi Text Encode', or from the person before."),
                io.Conditioning.Input("negative", tooltip="From 'Ovi Text Encode', or from the person before."),
                io.Latent.Input("latent", tooltip="The latent that is sampled: it gives the size."),
                *voice_inputs(),
                io.Vae.Input("vae", optional=True, tooltip="The Wan 2.2 VAE, for the face."),
                io.Vae.Input("audio_vae", optional=True, tooltip="From 'Load Ovi Audio VAE', for the voice."),
                io.Image.Input(
                    "face",
                    optional=True,
                    tooltip="One image, cropped to the face, by 'Crop Image' for example. It is scaled to fit the size "
                    "of the clip, on white.",
                ),
                io.Audio.Input("voice", optional=True, tooltip="A recording of the person alone, mixed down to mono."),
            ],
            outputs=[
                io.Conditioning.Output("positive", display_name="positive"),
                io.Conditioning.Output("negative", display_name="negative"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        positive: Any,
        negative: Any,
        latent: dict[str, Any],
        voice_start: float,
        voice_seconds: float,
        vae: Any = None,
        audio_vae: Any = None,
        face: Tensor | None = None,
        voice: Any = None,
    ) -> io.NodeOutput:
        """Encode face and voice, and show the prepared face and who it is."""
        if face is None and voice is None:
            raise ValueError("Ovi Person has neither a face nor a voice: connect one of them, or both.")
        video, _ = latent_parts(latent)
        height, width = (side * geometry.PIXELS_PER_LATENT for side in video.shape[3:])
        encoded_face = encoded_voice = None
        preview: dict[str, Any] = {}
        if face is not None:
            require_video_vae(vae, "Ovi Person has a face")
            fitted = image.fit_face(face, width, height)
            encoded_face = encode(vae, fitted, "face")
            preview = ui.PreviewImage(fitted).as_dict()
        if voice is not None:
            require_audio_vae(audio_vae, "Ovi Person has a voice")
            encoded_voice = encode_voice(audio_vae, voice, voice_start, voice_seconds)
        styles = {values.get(references.STYLE_KEY, caption.STYLE) for _, values in positive}
        positive, negative, person = references.add_person(positive, negative, encoded_face, encoded_voice)
        given = [f"a {what}" for what, medium in (("face", face), ("voice", voice)) if medium is not None]
        notes = [f"<sub{person}>: {' and '.join(given)}"]
        if styles != {caption.STYLE}:
            notes.insert(0, f"Only DreamID-Omni knows persons: its prompt style is {caption.STYLE}")
        elif len(given) == 1:
            notes[0] += " alone, for which no model was trained"
        return io.NodeOutput(positive, negative, ui=preview | show(cls, notes).as_dict())
