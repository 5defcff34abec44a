"""Images, frames and faces fitted to the size of the video. Images are ComfyUI's: [B, H, W, C], 0..1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .media import FLOATS, check_finite

Fit = Literal["crop", "stretch", "pad", "refuse"]
FITS: tuple[Fit, ...] = get_args(Fit)


def check_images(images: Any, what: str, channels: Sequence[int] = (3, 4)) -> None:
    """Raise ValueError, naming the images as `what`, for anything but at least one of `channels` [B, H, W, C]."""
    got = f"{list(images.shape)} of {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
    if isinstance(images, Tensor) and 0 in images.shape:
        raise ValueError(f"The {what} is empty, {got}; check the file or the node that it comes from.")
    if (
        not isinstance(images, Tensor)
        or images.ndim != 4
        or images.shape[-1] not in channels
        or images.dtype not in FLOATS
        or images.layout != torch.strided
    ):
        *others, last = channels
        raise ValueError(
            f"The {what} must be [batch, height, width, {', '.join(map(str, others))} or {last} channels] of floating "
            f"point, 0 to 1, got {got}; check the node that it comes from, or use 'Convert Mask to Image' for a mask."
        )


def check_one(image: Tensor, what: str) -> None:
    """Raise ValueError for a batch of images, naming them as `what`."""
    if len(image) != 1:
        raise ValueError(f"The {what} must be one image, got a batch of {len(image)}: pick one with ImageFromBatch.")


def fit_image(image: Any, width: int, height: int, fit: Fit = "crop", what: str = "start image") -> Tensor:
    """Fit `image` [1, H, W, 3 or 4] to [1, height, width, 3], as `fit_frames` does.

    Raises ValueError for a batch and where `fit_frames` does; `what` names the image there.
    """
    check_images(image, what)
    check_one(image, what)
    return fit_frames(image, width, height, fit, what)


def fit_face(image: Any, width: int, height: int, what: str = "face") -> Tensor:
    """Fit a person's face, `image` [1, H, W, 1, 3 or 4], to [1, height, width, 3] in float32, as DreamID-Omni does.

    The whole image, enlarged or reduced to touch two sides, stands in the middle of white; alpha is dropped without
    blending, grey becomes RGB. Resampling is Pillow's Lanczos on 8 bits, so the result is exactly whole numbers / 255;
    values are rounded to those first, and clamped to 0..1.

    Raises ValueError for a batch, an image so narrow that nothing of it would remain, another shape or dtype, and for
    NaN or infinity; `what` names the image there.
    """
    from PIL import Image

    check_images(image, what, (1, 3, 4))
    check_one(image, what)
    check_finite(image, what)
    _, image_height, image_width, channels = image.shape
    ratio = image_width / image_height
    inner = (width, int(width / ratio)) if ratio > width / height else (int(height * ratio), height)
    if 0 in inner:
        raise ValueError(
            f"The {what} is {image_width}x{image_height}, so narrow that nothing of it would remain in "
            f"{width}x{height}: crop it to the face."
        )
    pixels = (image[0, ..., :3].float().clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = pixels.expand(-1, -1, 3) if channels == 1 else pixels
    resized = Image.fromarray(pixels.cpu().numpy()).resize(inner, Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(resized, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    data = torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8)
    return data.view(1, height, width, 3).to(image.device) / 255


def fit_frames(frames: Tensor, width: int, height: int, fit: Fit, what: str, *, antialias: bool = False) -> Tensor:
    """Fit frames [T, H, W, 3 or 4] to [T, height, width, 3]; alpha is dropped, as by ComfyUI's own video nodes.

    "crop" cuts the largest part of the wanted aspect ratio from the centre, "stretch" changes the aspect ratio, "pad"
    adds black bars around the whole frame, "refuse" accepts only frames of exactly that size.

    Resampling is the Ovi release's for every fit: bicubic (a = -0.75) without antialiasing, so far larger images should
    be scaled down first, and without clamping: hard edges overshoot 0..1 slightly, also in the VAE's input. With
    `antialias` frames of any size may be given, and values stay within 0..1.

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
    pixels = F.interpolate(pixels, size=inner, mode="bicubic", align_corners=False, antialias=antialias)
    pixels = pixels.clamp(0, 1) if antialias else pixels
    return _centre(pixels, width, height).movedim(1, -1)


def _scaled(pixels: int, scale: float) -> int:
    return max(1, round(pixels * scale))


def _centre(pixels: Tensor, width: int, height: int) -> Tensor:
    """Crop `pixels` [T, C, H, W] around the centre (a view), or pad them with black, to [T, C, height, width]."""
    left, top = (width - pixels.shape[-1]) // 2, (height - pixels.shape[-2]) // 2
    if width <= pixels.shape[-1] and height <= pixels.shape[-2]:
        return pixels[..., -top : height - top, -left : width - left]
    return F.pad(pixels, (left, width - pixels.shape[-1] - left, top, height - pixels.shape[-2] - top))
