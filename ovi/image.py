"""A start image at the size of the video. Images are ComfyUI's: [B, H, W, C], 0..1."""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

Fit = Literal["crop", "stretch", "pad", "refuse"]
FITS: tuple[Fit, ...] = get_args(Fit)


def fit_image(image: Tensor, width: int, height: int, fit: Fit = "crop") -> Tensor:
    """Bring `image` [1, H, W, C >= 3] to [1, height, width, 3]; alpha is left out, as ComfyUI's own video nodes do.

    "crop" cuts the largest part of the wanted aspect from the centre, "stretch" changes the aspect, "pad" keeps the
    whole picture between black bars, "refuse" takes only an image that has the size.

    Resampling is the published one for every fit: bicubic (a = -0.75) without antialiasing, so a far larger image had
    better be scaled down before, and without clamping: hard edges overshoot 0..1 a little, in the VAE's input too.

    Raises ValueError for a batch, and for another size with "refuse".
    """
    batch, image_height, image_width, _ = image.shape
    if batch != 1:
        raise ValueError(f"A video starts from one image, got a batch of {batch}: pick one with ImageFromBatch.")
    if fit == "refuse" and (image_width, image_height) != (width, height):
        raise ValueError(
            f"The start image is {image_width}x{image_height}, the video {width}x{height}:"
            " make them equal, or choose crop, stretch or pad."
        )
    pixels = image[..., :3].movedim(-1, 1)
    if fit == "crop":
        scale = min(image_width / width, image_height / height)
        pixels = _centre(pixels, _scaled(width, scale), _scaled(height, scale))
    if fit == "pad":
        scale = min(width / image_width, height / image_height)
        inner = _scaled(image_height, scale), _scaled(image_width, scale)
    else:
        inner = height, width
    pixels = F.interpolate(pixels, size=inner, mode="bicubic", align_corners=False)
    return _centre(pixels, width, height).movedim(1, -1)


def _scaled(pixels: int, scale: float) -> int:
    return max(1, round(pixels * scale))


def _centre(pixels: Tensor, width: int, height: int) -> Tensor:
    """Cut `pixels` [1, C, H, W] about its centre, or fill it up with black, to [1, C, height, width]."""
    left, top = (width - pixels.shape[-1]) // 2, (height - pixels.shape[-2]) // 2
    return F.pad(pixels, (left, width - pixels.shape[-1] - left, top, height - pixels.shape[-2] - top))
