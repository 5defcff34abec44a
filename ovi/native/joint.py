"""The joint latent that a node builds: what of it is preserved, and from what media.

A mask is 0 where a latent is preserved and 1 where it is generated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.latent_formats
import comfy.model_management
import torch
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from .. import geometry, image, media
from .latent import latent_parts
from .vae import encode


def empty_parts(width: int, height: int, length: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return zeros for a clip: video [B, 48, F, H, W] and audio [B, 20, L].

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


class JointLatent:
    """A clip to generate: `video` [B, 48, F, H, W] and `audio` [B, 20, L], with masks [B, 1, F, H, W] and [B, 1, L].

    `width` and `height` are in pixels, `length` in frames. At first everything is empty and generated.
    """

    def __init__(self, width: int, height: int, length: int, batch_size: int) -> None:
        self.width, self.height, self.length = width, height, length
        video, self.audio = empty_parts(width, height, length, batch_size)
        # Zero after normalisation, as an empty latent is: it matters where a sampler starts below sigma 1.
        self.video = comfy.latent_formats.Wan22().process_out(video)
        self.video_mask = torch.ones_like(self.video[:, :1])
        self.audio_mask = torch.ones_like(self.audio[:, :1])

    @classmethod
    def of(cls, latent: Mapping[str, Any]) -> JointLatent:
        """Return that of a LATENT, whose own tensors stay as they are, with its masks.

        Raises ValueError for another latent, and for masks of another form than this class makes.
        """
        video, audio = latent_parts(latent)
        batch, _, frames, height, width = video.shape
        stride = geometry.PIXELS_PER_LATENT
        joint = cls(width * stride, height * stride, geometry.frames(frames), batch)
        if video.any():  # an empty one stays zero after normalisation
            joint.video = video.clone()
        joint.audio, joint.audio_mask = audio.clone(), torch.ones_like(audio[:, :1])
        if (mask := latent.get("noise_mask")) is not None:
            given = mask.unbind() if mask.is_nested else [mask]
            shapes = [list(part.shape) for part in given]
            if shapes != [list(part.shape) for part in (joint.video_mask, joint.audio_mask)]:
                raise ValueError(
                    f"The latent has a noise mask of the shape {' and '.join(map(str, shapes))}, but one for each half "
                    "is needed: connect the latent from before 'Set Latent Noise Mask'."
                )
            joint.video_mask, joint.audio_mask = (part.clone() for part in given)
        return joint

    def latent(self) -> dict[str, Any]:
        """Return it as a LATENT."""
        return {
            "samples": NestedTensor((self.video, self.audio)),
            "noise_mask": NestedTensor((self.video_mask, self.audio_mask)),
        }

    def notes(self, on_media: Sequence[str] = ()) -> list[str]:
        """Say where no checkpoint was trained for such a clip, then what is preserved, and the notes on its media."""
        return [*self.misfit(), preserved_note(self.video_mask, self.audio_mask), *on_media]

    def misfit(self) -> list[str]:
        """Say that no checkpoint was trained for such a clip, where that is so."""
        size = self.width, self.height, self.length
        return [] if geometry.fits(*size) else [geometry.fit_note(*size)]

    def preserve_start_image(self, vae: Any, start_image: Tensor, fit: image.Fit) -> None:
        """Preserve an image [1, H, W, C] as the first frame, which the first latent holds alone."""
        fitted = image.fit_image(start_image, self.width, self.height, fit)
        self.video[:, :, :1] = encode(vae, fitted, "start image")
        self.video_mask[:, :, 0] = 0.0

    def preserve_end_image(self, vae: Any, end_image: Tensor, fit: image.Fit) -> None:
        """Preserve an image [1, H, W, C] as the last four frames, which the last latent holds.

        The VAE packs four frames into a latent only after a first one, so it encodes the image five times.
        """
        if self.length == 1 or not self.video_mask[:, :, -1].all():
            raise ValueError("There is no room for an end image: make the clip longer, or preserve less of the video.")
        still = image.fit_image(end_image, self.width, self.height, fit, "end image")
        encoded = encode(vae, still.expand(1 + geometry.FRAMES_PER_LATENT, -1, -1, -1), "end image")
        self.video[:, :, -1:] = encoded[:, :, 1:]
        self.video_mask[:, :, -1] = 0.0

    def preserve_video(
        self, vae: Any, frames: Any, fps: float, fit: image.Fit, keep_frames: int, what: str = "reference video"
    ) -> list[str]:
        """Encode frames [T, H, W, C] from the start of the clip and preserve the first `keep_frames` (0: all).

        Only whole latents are encoded and preserved: 4n + 1 frames. Returns notes on what was left out or retimed.
        Raises ValueError, naming the video as `what`, for anything else.
        """
        image.check_images(frames, what)
        fps = media.frame_rate(fps, what)
        length = len(media.retimed(len(frames), fps))
        if not 0 <= keep_frames <= length:
            raise ValueError(
                f"keep_frames is {keep_frames}, but the video has {length} frames: preserve fewer, or all (0)."
            )
        latents = geometry.video_latents(min(length, self.length))
        used = media.at_24(frames, fps, geometry.frames(latents))
        fitted = image.fit_frames(used, self.width, self.height, fit, what)
        self.video[:, :, :latents] = encode(vae, fitted, what)
        self.video_mask[:, :, : geometry.video_latents(keep_frames) if keep_frames else latents] = 0.0
        notes = []
        if fps != geometry.FPS:
            notes.append(f"The video's {len(frames)} frames at {fps:g} fps are used as {length} at 24 fps")
        if length > self.length:
            notes.append(f"The video has {length} frames: the first {self.length} are used")
        return notes

    def preserve_audio(self, vae: Any, audio: Any, keep_seconds: float, what: str = "audio") -> list[str]:
        """Encode audio from the start of the clip and preserve its first `keep_seconds` (0: all).

        The VAE gets no silence beyond the end of the audio, which Ovi would take for a pause to continue. Returns notes
        on what was left out or clipped. Raises ValueError, naming the audio as `what`, for anything else.
        """
        rate = vae.audio_sample_rate
        wave = media.mono(audio, rate, what)
        seconds, clip_seconds = len(wave) / rate, geometry.seconds(self.length)
        shortest = 1 / geometry.AUDIO_LATENT_RATE
        if not 0 <= keep_seconds <= seconds:
            raise ValueError(
                f"keep_seconds is {keep_seconds:.2f}, but the audio lasts {seconds:.2f} s: preserve less, or all (0)."
            )
        if 0 < keep_seconds < shortest:
            raise ValueError(
                f"keep_seconds is {keep_seconds:.2f}, but an audio latent lasts {shortest:.3f} s: preserve at least "
                "0.04 s, or all (0)."
            )
        room = self.audio.shape[2]
        used = wave[: math.ceil(room * rate / geometry.AUDIO_LATENT_RATE)]
        latent = encode(vae, used.view(1, -1, 1), what)[..., :room]
        self.audio[..., : latent.shape[2]] = latent
        preserved = int(keep_seconds * geometry.AUDIO_LATENT_RATE) if keep_seconds else latent.shape[2]
        self.audio_mask[..., :preserved] = 0.0
        notes = []
        if seconds > clip_seconds:
            notes.append(f"The audio lasts {seconds:.2f} s: the first {clip_seconds:.2f} s are used")
        return notes + media.peak_notes(audio)

    def guide_video(self, vae: Any, frames: Any, fps: float, fit: image.Fit, frame: int) -> str:
        """Preserve one image [1, H, W, C], or frames [T, H, W, C] from `frame` on, and say what they fill.

        Frames are counted from 0, and from -1 for the last one backwards. An image fills the latent that holds its
        frame; of several frames, those are used that fill whole latents. Raises ValueError for a frame beyond the clip,
        and for frames that fill no latent.
        """
        image.check_images(frames, "guide")
        frame = self._place(frame)
        packed = geometry.FRAMES_PER_LATENT
        if len(frames) == 1:
            begin = geometry.video_latents(frame)  # the latent that holds it
            used = frames.expand(1 + packed if begin else 1, -1, -1, -1)
        elif frame == 0:
            shown = media.at_24(frames, fps, self.length, "guide")
            begin, used = 0, shown[: geometry.frames(geometry.video_latents(len(shown)))]
        else:
            shown = media.at_24(frames, fps, self.length - frame, "guide")
            begin = geometry.video_latents(frame + packed - 1)  # the first latent that begins there or later
            skipped = geometry.frames(begin) - frame
            if len(shown) < skipped + packed:
                raise ValueError(
                    f"The guide's {len(shown)} frames from frame {frame} on fill no latent, which holds four: "
                    f"{skipped + packed} are needed there, or one image."
                )
            whole = shown[skipped : skipped + (len(shown) - skipped) // packed * packed]
            # The VAE packs four frames into a latent only after a first one, which is left out below.
            used = torch.cat([shown[max(0, skipped - 1)][None], whole])
        encoded = encode(vae, image.fit_frames(used, self.width, self.height, fit, "guide"), "guide")
        latents = encoded[:, :, 1:] if begin else encoded
        after = begin + latents.shape[2]
        self.video[:, :, begin:after] = latents
        self.video_mask[:, :, begin:after] = 0.0
        first, last = max(0, geometry.frames(begin)), geometry.frames(after) - 1
        place = f"frames {first} to {last}" if first < last else f"frame {first}"
        return f"Guide: {place} of 0 to {self.length - 1}"

    def guide_audio(self, vae: Any, audio: Any, frame: int) -> list[str]:
        """Preserve audio that begins at the time of a frame, counted as for `guide_video`, and say what it fills.

        What lies before the first whole latent is left out, so that the rest is where it belongs. Raises ValueError for
        a frame beyond the clip, and for audio that fills no latent.
        """
        rate, latent_rate = vae.audio_sample_rate, geometry.AUDIO_LATENT_RATE
        start = geometry.seconds(self._place(frame))
        wave = media.mono(audio, rate, "guide's audio")
        begin, room = math.ceil(start * latent_rate), self.audio.shape[2]
        used = wave[round((begin / latent_rate - start) * rate) :]
        used = used[: math.ceil((room - begin) * rate / latent_rate)]
        if len(used) / rate * latent_rate < 1:
            raise ValueError(
                f"The guide's audio lasts {len(wave) / rate:.2f} s and begins at {start:.2f} s of the clip's "
                f"{geometry.seconds(self.length):.2f} s, so it fills no latent of {1 / latent_rate:.3f} s: let it "
                "begin earlier, or use a longer one."
            )
        latents = encode(vae, used.view(1, -1, 1), "guide's audio")[..., : room - begin]
        after = begin + latents.shape[2]
        self.audio[..., begin:after] = latents
        self.audio_mask[..., begin:after] = 0.0
        place = f"Guide: audio {begin / latent_rate:.2f} to {after / latent_rate:.2f} of {room / latent_rate:.2f} s"
        return [place, *media.peak_notes(audio)]

    def _place(self, frame: int) -> int:
        """Return a frame of the clip counted from 0, of one that may be counted from -1 backwards."""
        place = frame + self.length if frame < 0 else frame
        if not 0 <= place < self.length:
            raise ValueError(
                f"The guide begins at frame {frame}, but the clip has the frames 0 to {self.length - 1}: use one of "
                "them, or -1 for the last."
            )
        return place


def regenerate_between(
    video_mask: Tensor, audio_mask: Tensor, start: float, end: float, *, video: bool, audio: bool
) -> None:
    """Set masks [B, 1, F, H, W] and [B, 1, L] to 1 between two times in seconds (end 0: the end of the clip).

    Raises ValueError for a time that starts before the clip or after it, or ends before it starts.
    """
    seconds = geometry.seconds(geometry.frames(video_mask.shape[2]))
    until = min(end or seconds, seconds)
    if not 0 <= start < until:
        raise ValueError(
            f"remake_start is {start:.2f} s, but must lie between 0 and the end of the part to regenerate, "
            f"{until:.2f} s (the clip lasts {seconds:.2f} s)."
        )
    if video:
        first, after = geometry.video_latents_between(start, until)
        video_mask[:, :, first:after] = 1.0
    if audio:
        first, after = geometry.audio_latents_between(start, until)
        audio_mask[..., first:after] = 1.0


def preserved_note(video_mask: Tensor, audio_mask: Tensor) -> str:
    """Say what the masks [B, 1, F, H, W] and [B, 1, L] preserve."""
    return media.preserved_note(video_mask[0, 0, :, 0, 0], audio_mask[0, 0])
