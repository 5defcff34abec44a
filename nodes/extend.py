"""Clips that go on from one another: OviContinue, OviJoin."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from comfy_api.latest import InputImpl, Types, io
from torch import Tensor

from ..ovi import geometry, join, native, reference
from .latent import LENGTH, MAX_SIZE, Clip
from .notes import show
from .reference import keep_audio, keep_video, kept_notes

MAX_CLIPS = 100  # ComfyUI's own limit of inputs that grow


def frames_at_24(video: Any) -> Tensor:
    """The frames [T, H, W, C] of a VIDEO at 24 per second, the nearest each time."""
    return reference.at_24(video.images, float(video.frame_rate))


def end_of_sound(audio: Mapping[str, Any], frames: int, overlap: int) -> dict[str, Any]:
    """The sound of the last `overlap` of a clip's `frames`, without the last latent's time.

    There Ovi Decode may have filled the sound up with silence, which the next clip would keep as a gap.
    """
    rate = audio["sample_rate"]
    start = round(geometry.seconds(frames - overlap) * rate)
    end = round((geometry.seconds(frames) - 1 / geometry.AUDIO_LATENT_RATE) * rate)
    return {"waveform": audio["waveform"][..., start:end], "sample_rate": rate}


class OviContinue(io.ComfyNode):
    """The end of a clip as the kept beginning of the next."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="OviContinue",
            display_name="Ovi Continue",
            category="Ovi",
            description="A latent for the clip that goes on where another ends: it begins with the other's last "
            "moments, picture and sound, which are kept. 'Ovi Join' puts the two together. Experimental: Ovi was "
            "trained with a given first frame only.",
            search_aliases=["ovi extend", "ovi longer", "last frame", "next clip", "ovi chain"],
            is_experimental=True,
            inputs=[
                io.Video.Input("clip", tooltip="The clip so far: from 'Create Video', 'Load Video' or 'Ovi Join'."),
                io.Vae.Input("vae", tooltip="The Wan 2.2 VAE."),
                io.Vae.Input("audio_vae", tooltip="From 'Load Ovi Audio VAE'."),
                io.Int.Input(
                    "length",
                    default=LENGTH,
                    min=5,
                    max=MAX_SIZE,
                    step=geometry.FRAMES_PER_LATENT,
                    tooltip="Frames of the next clip at 24 per second, 4n + 1, the overlap counted in.",
                ),
                io.Float.Input(
                    "overlap",
                    default=1.0,
                    min=0.2,
                    max=60.0,
                    step=0.1,
                    tooltip="Seconds at the end of the clip that the next one begins with. Latents hold 4n + 1 "
                    "frames: 1 second becomes 25.",
                ),
            ],
            outputs=[
                io.Latent.Output(tooltip="Joint latent of the next clip, with a noise mask that keeps its beginning."),
                io.Int.Output("overlap_frames", display_name="overlap_frames", tooltip="For 'Ovi Join'."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip: Any, vae: Any, audio_vae: Any, length: int, overlap: float) -> io.NodeOutput:
        """Encode the end of the clip, and say on the node how the two overlap."""
        native.require_video_vae(vae)
        native.require_audio_vae(audio_vae)
        video = clip.get_components()
        frames = frames_at_24(video)
        shared = join.overlap_frames(overlap)
        if shared > min(len(frames), length - 1):
            raise ValueError(
                f"The overlap of {overlap:g} s is {shared} frames, but the clip has {len(frames)} and the next one "
                f"{length}: overlap less."
            )
        _, height, width, _ = frames.shape
        following = Clip(width, height, length, batch_size=1)
        keep_video(following, vae, frames[-shared:], geometry.FPS, "refuse", keep_frames=0)
        if video.audio is not None:
            end = end_of_sound(video.audio, len(frames), shared)
            if reference.fills_a_latent(end):  # the sound may have ended before
                keep_audio(following, audio_vae, end, keep_seconds=0.0)
        added = length - shared
        notes = [
            f"Overlap: {shared} frames; {added} are added, {geometry.seconds(added):.2f} s",
            *kept_notes(following.video_mask, following.audio_mask),
            *geometry.trained_for(width, height, length),
        ]
        return io.NodeOutput(following.latent(), shared, ui=show(cls, notes))


class OviJoin(io.ComfyNode):
    """Any number of clips as one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="OviJoin",
            display_name="Ovi Join",
            category="Ovi",
            description="Joins clips of which each begins with the end of the one before, as 'Ovi Continue' makes "
            "them: no frame comes twice, and the sounds cross without a click.",
            search_aliases=["ovi concatenate", "join videos", "crossfade", "ovi extend", "ovi longer"],
            inputs=[
                io.Autogrow.Input(
                    "clips",
                    template=io.Autogrow.TemplatePrefix(io.Video.Input("clip"), prefix="clip", min=2, max=MAX_CLIPS),
                    tooltip="Clips in order, from 'Create Video', with their sound.",
                ),
                io.Int.Input(
                    "overlap_frames",
                    default=join.overlap_frames(1.0),
                    min=1,
                    max=MAX_SIZE,
                    tooltip="Frames that each clip begins with and the one before ends with: connect 'Ovi Continue'.",
                ),
            ],
            outputs=[io.Video.Output(tooltip="For 'Save Video', 'Ovi Continue' or 'Get Video Components'.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clips: dict[str, Any], overlap_frames: int) -> io.NodeOutput:
        """Bring the clips to one rate, join picture and sound, and say on the node how long that is."""
        videos = [clip.get_components() for clip in clips.values()]
        frames = [frames_at_24(video) for video in videos]
        for number, images in enumerate(frames, start=1):
            if images.shape[1:] != frames[0].shape[1:]:
                sizes = [f"{each.shape[2]}x{each.shape[1]}" for each in (images, frames[0])]
                raise ValueError(f"Clip {number} is {sizes[0]}, but the first is {sizes[1]}: make them equal.")
            if len(images) <= overlap_frames:
                raise ValueError(
                    f"Clip {number} has {len(images)} frames, no more than the overlap of {overlap_frames}: leave it "
                    "out, or overlap less."
                )
        lengths = [len(images) for images in frames]
        audio = None
        if sounds := [video.audio for video in videos if video.audio is not None]:
            rate = sounds[0]["sample_rate"]
            waves = join.alike([video.audio for video in videos], rate)
            waveform = join.join_waves(waves, lengths, overlap_frames, rate)[None]
            audio = {"waveform": waveform, "sample_rate": rate}
        images = join.join_frames(frames, overlap_frames)
        joined = Types.VideoComponents(images=images, audio=audio, frame_rate=Fraction(geometry.FPS))
        note = f"{len(images)} frames, {geometry.seconds(len(images)):.2f} s"
        return io.NodeOutput(InputImpl.VideoFromComponents(joined), ui=show(cls, [note]))
