"""Joint latents as ComfyUI samples and previews them.

A joint latent is a nested tensor (video [B, 48, F, H, W], audio [B, 20, L]); samplers see it packed, [B, 1, N]. Core
gives the shapes of the parts to the model's conditioning, but not to the latent format, which needs them to scale the
video part alone: a wrapper around each sampling run (`load`) sets them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import comfy.latent_formats
import comfy.utils
import comfyui_version
import torch
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from .. import geometry, media
from ..version import numbers

COMFYUI = numbers(comfyui_version.__version__)


class OviLatent(comfy.latent_formats.Wan22):
    """Wan 2.2's latents, and beside them audio latents that are used as they are.

    `shapes` are those of the parts of the joint latent that is being sampled, or was sampled last.
    """

    temporal_downscale_ratio = 4

    def __init__(self) -> None:
        super().__init__()
        if COMFYUI < [0, 30]:
            self.taesd_decoder_name = None  # its previewer would get the packed latent, which it cannot read
        self.shapes: list[torch.Size] | None = None
        self.latent_rgb_factors_reshape = self.preview_frame
        self._previews = 0

    def process_in(self, latent: Any) -> Any:
        """Normalise the video part."""
        return self._on_video(super().process_in, latent)

    def process_out(self, latent: Any) -> Any:
        """Undo the normalisation of the video part."""
        return self._on_video(super().process_out, latent)

    def scale_audio(self, latent: Any, factor: Any) -> Any:
        """Multiply the audio part of a joint latent by a number, or by one for each row [B, 1, 1]; 1.0 changes nothing.

        A video alone is returned as it is.
        """
        if (isinstance(factor, float) and factor == 1.0) or (not latent.is_nested and latent.ndim == 5):
            return latent
        if latent.is_nested:
            video, audio = latent.unbind()
            return NestedTensor([video, audio * factor])
        size = self.video_size(latent)
        return torch.cat([latent[..., :size], latent[..., size:] * factor], dim=-1)

    def preview_frame(self, latent: Tensor) -> Tensor:
        """Return one frame [B, 48, H, W] of a video or packed latent, the next one at each call: previews move.

        Frames [N, 48, H, W] are returned as they are: VideoHelperSuite chooses its own.
        """
        if latent.ndim == 4:
            return latent
        video = latent if latent.ndim == 5 else self.unpack(latent)[0]
        index = self._previews % video.shape[2]
        self._previews += 1
        return video[:, :, index]

    def unpack(self, packed: Tensor) -> list[Tensor]:
        """Return the video [B, 48, F, H, W] and the audio [B, 20, L] of a packed latent [B, 1, N]."""
        return comfy.utils.unpack_latents(packed, self._part_shapes(packed))

    def video_size(self, packed: Tensor) -> int:
        """Return how many numbers of a packed latent [B, 1, N] are video, the first ones."""
        return math.prod(self._part_shapes(packed)[0][1:])

    def _on_video(self, change: Callable[[Tensor], Tensor], latent: Any) -> Any:
        if latent.is_nested:
            video, *others = latent.unbind()
            return NestedTensor([change(video), *others])
        if latent.ndim == 5:
            return change(latent)
        video, *others = self.unpack(latent)
        packed, _ = comfy.utils.pack_latents([change(video), *others])
        return packed

    def _part_shapes(self, packed: Tensor) -> list[torch.Size]:
        if self.shapes is None or sum(math.prod(shape[1:]) for shape in self.shapes) != packed.shape[-1]:
            raise RuntimeError(
                f"A packed latent of shape {list(packed.shape)} came without the shapes of its parts; "
                "Ovi needs the MODEL of 'Load Ovi Model' with its sampling wrapper in place."
            )
        return self.shapes


def check_latent(shapes: Sequence[torch.Size]) -> list[torch.Size]:
    """Return the shapes of a joint latent, video [B, 48, F, H, W] and audio [B, 20, L].

    Raises ValueError for any other, for an empty one, and for parts that are not of one batch.
    """
    channels = (geometry.VIDEO_CHANNELS, geometry.AUDIO_CHANNELS)
    if [len(shape) for shape in shapes] != [5, 3] or tuple(shape[1] for shape in shapes) != channels:
        raise ValueError(
            f"Ovi needs a joint latent of video [B, {channels[0]}, F, H, W] and audio [B, {channels[1]}, L], but got "
            f"{' and '.join(str(list(shape)) for shape in shapes)}; use 'Empty Ovi Latent' or 'Ovi Image to Video'."
        )
    video, audio = shapes
    if video[0] != audio[0] or 0 in (*video, *audio):
        raise ValueError(
            f"The halves of the joint latent do not belong together: video {list(video)} and audio {list(audio)}; Ovi "
            "needs the same batch size of both, and nothing empty: mend them before 'Concat AV Latent'."
        )
    return list(shapes)


def latent_parts(latent: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return video [B, 48, F, H, W] and audio [B, 20, L] of a LATENT.

    Raises ValueError for other latents, and for NaN or infinity.
    """
    samples = latent["samples"]
    parts = samples.unbind() if samples.is_nested else [samples]
    check_latent([part.shape for part in parts])
    video, audio = parts
    media.check_finite(video, "video half of the latent")
    media.check_finite(audio, "audio half of the latent")
    return video, audio
