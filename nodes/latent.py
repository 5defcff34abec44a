"""Empty Ovi Latent and Ovi Image to Video: where sampling starts."""

from __future__ import annotations

from typing import Any

from comfy.nested_tensor import NestedTensor
from comfy_api.latest import io
from torch import Tensor

from ..ovi import geometry, image
from ..ovi.native.joint import JointLatent, empty_parts
from ..ovi.native.vae import require_video_vae
from .inputs import batch_input, fit_input, size_inputs
from .notes import show


class EmptyOviLatent(io.ComfyNode):
    """Create an empty joint latent, for text to video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare a size and a length in, a LATENT out."""
        return io.Schema(
            node_id="EmptyOviLatent",
            display_name="Empty Ovi Latent",
            category="Ovi/latent",
            description="Creates an empty latent for a video and its audio. 'Separate AV Latent' splits it into video "
            "and audio, 'Concat AV Latent' joins them again.",
            search_aliases=["ovi text to video", "empty audio video latent", "ovi length", "ovi size"],
            inputs=[*size_inputs(), batch_input()],
            outputs=[io.Latent.Output(tooltip="Joint latent of video and audio.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, width: int, height: int, length: int, batch_size: int) -> io.NodeOutput:
        """Create zeros, and show on the node which checkpoints were trained for such a clip."""
        latent = {"samples": NestedTensor(empty_parts(width, height, length, batch_size))}
        return io.NodeOutput(latent, ui=show(cls, [geometry.fit_note(width, height, length)]))


class OviImageToVideo(io.ComfyNode):
    """Create a joint latent whose first frame is an image, for image to video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare a VAE, an image, a size and a length in, a LATENT out."""
        return io.Schema(
            node_id="OviImageToVideo",
            display_name="Ovi Image to Video",
            category="Ovi/latent",
            description="Creates a latent for a video with audio that starts with an image. The image is preserved as "
            "the first frame.",
            search_aliases=["ovi i2v", "start image", "first frame"],
            inputs=[
                io.Vae.Input("vae", tooltip="The Wan 2.2 VAE."),
                io.Image.Input("start_image", tooltip="One image, the first frame."),
                *size_inputs(),
                fit_input("an image"),
                batch_input(),
            ],
            outputs=[
                io.Latent.Output(
                    tooltip="Joint latent of video and audio, with a noise mask that preserves the first frame."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, vae: Any, start_image: Tensor, width: int, height: int, length: int, fit: image.Fit, batch_size: int
    ) -> io.NodeOutput:
        """Encode the image, and show on the node which checkpoints were trained for such a clip."""
        require_video_vae(vae)
        joint = JointLatent(width, height, length, batch_size)
        joint.preserve_start_image(vae, start_image, fit)
        return io.NodeOutput(joint.latent(), ui=show(cls, [geometry.fit_note(width, height, length)]))
