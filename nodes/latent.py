"""Where sampling starts: EmptyOviLatent, OviImageToVideo."""

from __future__ import annotations

from typing import Any

import comfy.latent_formats
import comfy.model_management
import torch
from comfy.nested_tensor import NestedTensor
from comfy_api.latest import io
from torch import Tensor

from ..ovi import geometry, image, native
from .notes import show

WIDTH, HEIGHT, LENGTH = 1280, 704, 121  # pixels, pixels, frames
MAX_SIZE = 16384  # ComfyUI's own limit of sizes and lengths


def size_inputs() -> list[io.Input]:
    """Width, height and length, as every node that makes a latent has them."""
    return [
        io.Int.Input(
            "width",
            default=WIDTH,
            min=geometry.SIZE_MULTIPLE,
            max=MAX_SIZE,
            step=geometry.SIZE_MULTIPLE,
            tooltip="Pixels, a multiple of 32. Checkpoints were trained near 720x720 or 960x960 pixels in all, in any "
            "shape.",
        ),
        io.Int.Input(
            "height",
            default=HEIGHT,
            min=geometry.SIZE_MULTIPLE,
            max=MAX_SIZE,
            step=geometry.SIZE_MULTIPLE,
            tooltip="Pixels, a multiple of 32.",
        ),
        io.Int.Input(
            "length",
            default=LENGTH,
            min=1,
            max=MAX_SIZE,
            step=geometry.FRAMES_PER_LATENT,
            tooltip="Frames at 24 per second, 4n + 1; the sound gets the same length. 121 are 5 seconds; 241 are 10 "
            "seconds, for model_960x960_10s.",
        ),
    ]


def batch_input() -> io.Input:
    """How many clips at once."""
    return io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Clips made at once, each with its own noise.")


def empty_parts(width: int, height: int, length: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Zeros for a clip: video [B, 48, F, H, W] and audio [B, 20, L].

    Raises ValueError for a size or length that the latents cannot hold.
    """
    geometry.check_size(width, height)
    geometry.check_length(length)
    stride = geometry.PIXELS_PER_LATENT
    device = comfy.model_management.intermediate_device()
    video = torch.zeros(
        batch_size,
        geometry.VIDEO_CHANNELS,
        geometry.video_latents(length),
        height // stride,
        width // stride,
        device=device,
    )
    audio = torch.zeros(batch_size, geometry.AUDIO_CHANNELS, geometry.audio_latents(length), device=device)
    return video, audio


class Clip:
    """A clip to be made: latents of which some are given, and masks, 0 where a latent is kept and 1 where it is made.

    `width` and `height` in pixels, `length` in frames; `video` [B, 48, F, H, W] and its mask [B, 1, F, H, W],
    `audio` [B, 20, L] and its mask [B, 1, L].
    """

    def __init__(self, width: int, height: int, length: int, batch_size: int) -> None:
        self.width, self.height, self.length = width, height, length
        video, self.audio = empty_parts(width, height, length, batch_size)
        # Zero after normalisation, as an empty latent is; where a sampler starts below sigma 1 it matters.
        self.video = comfy.latent_formats.Wan22().process_out(video)
        self.video_mask = torch.ones_like(self.video[:, :1])
        self.audio_mask = torch.ones_like(self.audio[:, :1])

    def latent(self) -> dict[str, Any]:
        """The clip as a LATENT."""
        return {
            "samples": NestedTensor((self.video, self.audio)),
            "noise_mask": NestedTensor((self.video_mask, self.audio_mask)),
        }


class EmptyOviLatent(io.ComfyNode):
    """Text to video: an empty joint latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="EmptyOviLatent",
            display_name="Empty Ovi Latent",
            category="Ovi",
            description="An empty latent for a clip and its sound. 'Separate AV Latent' and 'Concat AV Latent' "
            "take it apart and put it together.",
            search_aliases=["ovi text to video", "empty audio video latent", "ovi length", "ovi size"],
            inputs=[*size_inputs(), batch_input()],
            outputs=[io.Latent.Output(tooltip="Joint latent of video and audio.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, width: int, height: int, length: int, batch_size: int) -> io.NodeOutput:
        """Make zeros, and say on the node which checkpoints were trained for such a clip."""
        latent = {"samples": NestedTensor(empty_parts(width, height, length, batch_size))}
        return io.NodeOutput(latent, ui=show(cls, geometry.trained_for(width, height, length)))


class OviImageToVideo(io.ComfyNode):
    """Image to video: a joint latent whose first frame is given and kept."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="OviImageToVideo",
            display_name="Ovi Image to Video",
            category="Ovi",
            description="A latent for a clip that begins with an image, and its sound. The first frame is kept as it "
            "is.",
            search_aliases=["ovi i2v", "start image", "first frame"],
            inputs=[
                io.Vae.Input("vae", tooltip="The Wan 2.2 VAE."),
                io.Image.Input("start_image", tooltip="One image, the first frame."),
                *size_inputs(),
                io.Combo.Input(
                    "fit",
                    options=list(image.FITS),
                    default="crop",
                    tooltip="How an image of another shape gets the size: cropped from the centre, stretched, padded "
                    "with black, or refused.",
                ),
                batch_input(),
            ],
            outputs=[
                io.Latent.Output(
                    tooltip="Joint latent of video and audio, with a noise mask that keeps the first frame."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, vae: Any, start_image: Tensor, width: int, height: int, length: int, fit: image.Fit, batch_size: int
    ) -> io.NodeOutput:
        """Encode the image into the first latent frame, and say which checkpoints were trained for such a clip."""
        native.require_video_vae(vae)
        clip = Clip(width, height, length, batch_size)
        clip.video[:, :, :1] = vae.encode(image.fit_image(start_image, width, height, fit))
        clip.video_mask[:, :, 0] = 0.0
        return io.NodeOutput(clip.latent(), ui=show(cls, geometry.trained_for(width, height, length)))
