"""Ovi Continue and Ovi Join: clips that continue one another."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

from comfy_api.latest import InputImpl, Types, io
from torch import Tensor

from ..ovi import geometry, image, join, media
from ..ovi.native.joint import JointLatent
from ..ovi.native.vae import require_vaes
from .inputs import length_input, overlap_input
from .notes import show


def frames_at_24(video: Any, what: str) -> Tensor:
    """Return the frames [T, H, W, 3] of a VIDEO's components at 24 fps; alpha is dropped, as by core's video nodes.

    Raises ValueError, naming the video as `what`, for one without frames or with an impossible frame rate.
    """
    image.check_images(video.images, what)
    return media.at_24(video.images[..., :3], video.frame_rate, what=what)


class OviContinue(io.ComfyNode):
    """Create a joint latent that begins with the end of another clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare a VIDEO, both VAEs, a length and an overlap in, a LATENT and the overlap in frames out."""
        return io.Schema(
            node_id="OviContinue",
            display_name="Ovi Continue",
            category="Ovi/latent",
            description="Creates a latent for the clip that follows another. It begins with the last moments of that "
            "clip, video and audio, which are preserved; 'Ovi Join' joins the two. Experimental: Ovi was trained with "
            "a first frame as its only reference.",
            search_aliases=["ovi extend", "ovi longer", "last frame", "next clip", "ovi chain"],
            is_experimental=True,
            inputs=[
                io.Video.Input(
                    "clip", lazy=True, tooltip="The clip so far, from 'Create Video', 'Load Video' or 'Ovi Join'."
                ),
                io.Vae.Input("vae", tooltip="The Wan 2.2 VAE."),
                io.Vae.Input("audio_vae", tooltip="From 'Load Ovi Audio VAE'."),
                length_input(5, "Length of the next clip in frames at 24 per second, 4n + 1, including the overlap."),
                overlap_input(
                    "Seconds from the end of the clip with which the next one begins. Latents hold 4n + 1 frames: 1 "
                    "second becomes 25 frames."
                ),
            ],
            outputs=[
                io.Latent.Output(
                    tooltip="Joint latent of the next clip, with a noise mask that preserves its beginning."
                ),
                io.Int.Output("overlap_frames", display_name="overlap_frames", tooltip="Connect to 'Ovi Join'."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def check_lazy_status(cls, vae: Any, audio_vae: Any, clip: Any = None, **_: object) -> list[str]:
        """Look at the VAEs before the clip is generated."""
        require_vaes(vae, audio_vae)
        return [] if clip is not None else ["clip"]

    @classmethod
    def execute(cls, clip: Any, vae: Any, audio_vae: Any, length: int, overlap: float) -> io.NodeOutput:
        """Encode the end of the clip, and show on the node how the two overlap."""
        require_vaes(vae, audio_vae)
        video = clip.get_components()
        frames = frames_at_24(video, "clip")
        shared = geometry.nearest_frames(overlap)
        if shared > min(len(frames), length - 1):
            raise ValueError(
                f"The overlap of {overlap:g} s is {shared} frames, but the clip has {len(frames)} and the next one "
                f"{length}: shorten the overlap."
            )
        _, height, width, _ = frames.shape
        following = JointLatent(width, height, length, batch_size=1)
        following.preserve_video(vae, frames[-shared:], geometry.FPS, "refuse", keep_frames=0, what="clip")
        audio = "without audio"
        if video.audio is not None:
            end = media.before_padding(video.audio, len(frames), shared, "clip's audio")
            if media.fills_a_latent(end):  # the audio may have ended earlier
                following.preserve_audio(audio_vae, end, keep_seconds=0.0, what="clip's audio")
                audio = "with audio"
        overlapping = f"Overlap: {shared} frames {audio}; adds {geometry.seconds(length - shared):.2f} s"
        return io.NodeOutput(following.latent(), shared, ui=show(cls, [*following.misfit(), overlapping]))


class OviJoin(io.ComfyNode):
    """Join any number of clips."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare VIDEOs and their overlap in, one VIDEO out."""
        return io.Schema(
            node_id="OviJoin",
            display_name="Ovi Join",
            category="Ovi/video",
            description="Joins clips that each begin with the end of the previous one, as 'Ovi Continue' prepares "
            "them. No frame is repeated, and the audio crossfades without a click.",
            search_aliases=["ovi concatenate", "join videos", "crossfade", "ovi extend", "ovi longer"],
            inputs=[
                io.Autogrow.Input(
                    "clips",
                    template=io.Autogrow.TemplatePrefix(
                        io.Video.Input("clip"), prefix="clip", min=2, max=join.MOST_CLIPS
                    ),
                    tooltip="Clips with their audio, in order, from 'Create Video'.",
                ),
                io.Int.Input(
                    "overlap_frames",
                    default=geometry.nearest_frames(1.0),
                    min=1,
                    max=geometry.MAX_SIZE,
                    tooltip="Frames that each clip shares with the end of the previous one: connect 'Ovi Continue'.",
                ),
                io.String.Input(
                    "cuts",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Numbers of the clips that begin with a cut, separated by commas: they share no frames "
                    "with the previous one.",
                ),
            ],
            outputs=[io.Video.Output(tooltip="Connect to 'Save Video', 'Ovi Continue' or 'Get Video Components'.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clips: dict[str, Any], overlap_frames: int, cuts: str = "") -> io.NodeOutput:
        """Bring the clips to one rate, join video and audio, and show the duration on the node."""
        begin_anew = join.parse_cuts(cuts, len(clips))
        overlaps = [0 if number in begin_anew else overlap_frames for number in range(2, len(clips) + 1)]
        pairs = list(pairwise([0, *overlaps, 0]))  # of each clip: its overlaps with the one before and the one after
        videos = [clip.get_components() for clip in clips.values()]
        frames = [frames_at_24(video, f"video of clip {number}") for number, video in enumerate(videos, start=1)]
        for number, images in enumerate(frames, start=1):
            if images.shape[1:] != frames[0].shape[1:]:
                sizes = [f"{each.shape[2]}x{each.shape[1]}" for each in (images, frames[0])]
                raise ValueError(f"Clip {number} is {sizes[0]}, but the first is {sizes[1]}: make them equal.")
            media.check_finite(images, f"video of clip {number}")
            if len(images) <= max(pairs[number - 1]):
                raise ValueError(
                    f"Clip {number} has {len(images)} frames, no more than the overlap of {overlap_frames}: leave it "
                    "out, or shorten the overlap."
                )
        lengths = [len(images) for images in frames]
        audio = None
        if tracks := [video.audio for video in videos if video.audio is not None]:
            rate = media.sample_rate(tracks[0], "audio of the first clip with audio")
            waves = join.match_waves([video.audio for video in videos], rate)
            waveform = join.join_waves(waves, lengths, overlaps, rate)[None]
            audio = {"waveform": waveform, "sample_rate": rate}
        images = join.join_frames(frames, overlaps)
        joined = Types.VideoComponents(images=images, audio=audio, frame_rate=Fraction(geometry.FPS))
        note = f"{len(images)} frames, {geometry.seconds(len(images)):.2f} s"
        return io.NodeOutput(InputImpl.VideoFromComponents(joined), ui=show(cls, [note]))
