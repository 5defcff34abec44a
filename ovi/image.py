"""Images and frames fitted to the size of the video. Images are ComfyUI's: [B, H, W, C], 0..1."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .media import FLOATS, check_finite

Fit = Literal["crop", "stretch", "pad", "refuse"]
FITS: tuple[Fit, ...] = get_args(Fit)


def check_images(images: Any, what: str) -> None:
    """Raise ValueError, naming the images as `what`, for anything but at least one of 3 or 4 channels [B, H, W, C]."""
    got = f"{list(images.shape)} of {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
    if isinstance(images, Tensor) and 0 in images.shape:
        raise ValueError(f"The {what} is empty, {got}; check the file or the node that it comes from.")
    if (
        not isinstance(images, Tensor)
        or images.ndim != 4
        or images.shape[-1] not in (3, 4)
        or images.dtype not in FLOATS
        or images.layout != torch.strided
    ):
        raise ValueError(
            f"The {what} must be [batch, height, width, 3 or 4 channels] of floating point, 0 to 1, got {got}; check "
            "the node that it comes from, or use 'Convert Mask to Image' for a mask."
        )


def fit_image(image: Any, width: int, height: int, fit: Fit = "crop", what: str = "start image") -> Tensor:
    """Fit `image` [1, H, W, 3 or 4] to [1, height, width, 3], as `fit_frames` does.

    Raises ValueError for a batch and where `fit_frames` does; `what` names the image there.
    """
    check_images(image, what)
    if len(image) != 1:
        raise ValueError(f"The {what} must be one image, got a batch of {len(image)}: pick one with ImageFromBatch.")
    return fit_frames(image, width, height, fit, what)


def fit_frames(frames: Tensor, width: int, height: int, fit: Fit, what: str) -> Tensor:
    """Fit frames [T, H, W, 3 or 4] to [T, height, width, 3]; alpha is dropped, as by ComfyUI's own video nodes.

    "crop" cuts the largest part of the wanted aspect ratio from the centre, "stretch" changes the aspect ratio, "pad"
    adds black bars around the whole frame, "refuse" accepts only frames of exactly that size.

    Resampling is the Ovi release's for every fit: bicubic (a = -0.75) without antialiasing, so far larger images should
    be scaled down first, and without clamping: hard edges overshoot 0..1 slightly, also in the VAE's input.

    Raises ValueError for another size with "refuse", where `check_images` does, and for NaN or infinity.
    """
    check_images(frames, what)
    check_finite(frames, what)
    _, image_height, image_width, _ = frames.shape
    if fit == "refuse" and (image_width, image_height) != (width, height):
        raise ValueError(
            f"The {what} is {image_width}x{image_height}, the video {width}x{height}:"
            " make them equal, or choose crop, stretch or pad."
        )
    pixels = frames[..., :3].movedim(-1, 1)
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
    """Crop `pixels` [T, C, H, W] around the centre (a view), or pad them with black, to [T, C, height, width]."""
    left, top = (width - pixels.shape[-1]) // 2, (height - pixels.shape[-2]) // 2
    if width <= pixels.shape[-1] and height <= pixels.shape[-2]:
        return pixels[..., -top : height - top, -left : width - left]
    return F.pad(pixels, (left, width - pixels.shape[-1] - left, top, height - pixels.shape[-2] - top))
