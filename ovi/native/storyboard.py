"""A storyboard as a graph: every shot in ComfyUI's and this pack's own nodes, so that ComfyUI caches each.

The id of a node is made from the prompt of its shot and the node's role in it. Nodes that ask for their id have it in
the signature that ComfyUI caches results by, so an id that counted shots would generate the later ones anew wherever a
shot is added in front of them. What counts is in the titles, which are in no signature.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import Types, io, ui
from comfy_execution.graph_utils import GraphBuilder, Node

from .. import geometry
from ..storyboard import Shot, Storyboard

Link = list[Any]  # a node's id and the number of its output
PLAN = "plan"


class Expansion:
    """The graph of a storyboard's shots.

    `given` are the storyboard's inputs by name, as the prompt has them: links, and values where there is no wire;
    growing inputs have names such as "images.image1". `prefix` names the files of the shots, and `note` is said once
    all prompts are encoded.
    """

    def __init__(self, board: Storyboard, given: Mapping[str, Any], prefix: str, note: str) -> None:
        self.board, self.given, self.prefix, self.note = board, given, prefix, note
        self.graph = GraphBuilder()
        self.titles: dict[str, str] = {}

    def build(self) -> tuple[dict[str, Any], Link]:
        """Return the graph, for ComfyUI to run in place of the storyboard, and the link to the joined clip."""
        titles = [f"Shot {number} of {len(self.board.shots)}" for number in range(1, len(self.board.shots) + 1)]
        titled = list(zip(self.board.shots, titles, strict=True))
        prompts = [self._prompts(shot, title) for shot, title in titled]
        # ComfyUI begins with what the first output node needs: the text encoder is loaded once, for all shots.
        waits = {f"waits.wait{index}": positive for index, (positive, _) in enumerate(prompts)}
        self._node("OviShot", PLAN, "", note=self.note, filename_prefix="", **waits)
        clips: list[Link] = []
        begins = self.board.starts[:-1]
        for number, ((shot, title), conditioning, begin) in enumerate(zip(titled, prompts, begins, strict=True), 1):
            clips.append(self._clip(shot, title, conditioning, clips[-1] if clips else None, begin))
            prefix = f"{self.prefix}_shot{number:02}" if self.prefix else ""
            self._node("OviShot", f"{shot.key}.done", title, clip=clips[-1], note="done", filename_prefix=prefix)
        joined = self._joined(clips)
        graph = self.graph.finalize()
        for node_id, title in self.titles.items():
            graph[node_id]["_meta"] = {"title": title}
        return graph, joined

    def _node(self, kind: str, key: str, title: str, **inputs: Any) -> Node:
        node = self.graph.node(kind, id=key, **inputs)
        self.titles[node.id] = title
        return node

    def _take(self, *names: str) -> dict[str, Any]:
        return {name: self.given[name] for name in names}

    def _prompts(self, shot: Shot, title: str) -> tuple[Link, Link]:
        """Encode a shot's prompt, and put every person into it."""
        texts = self._take("clip", "video_negative", "audio_negative", "prompt_style")
        encoded = self._node("OviTextEncode", f"{shot.key}.text", title, prompt=shot.prompt, **texts)
        prompts = encoded.out(0), encoded.out(1)
        for number in persons(self.given):
            wired = {kind: self.given.get(f"{kind}s.{kind}{number}") for kind in ("face", "voice")}
            person = self._node(
                "OviPerson",
                f"{shot.key}.person{number}",
                title,
                positive=prompts[0],
                negative=prompts[1],
                latent=self._size(),
                **self._take("voice_start", "voice_seconds", "vae", "audio_vae"),
                **{kind: link for kind, link in wired.items() if link is not None},
            )
            prompts = person.out(0), person.out(1)
        return prompts

    def _size(self) -> Link:
        """Return a latent of one frame, which tells the size of all shots before any is there."""
        size = self._node("EmptyOviLatent", "size", "", length=1, batch_size=1, **self._take("width", "height"))
        return size.out(0)

    def _cut(self, key: str, title: str, begin: int, frames: int) -> Link:
        """Cut the track for `frames` from `begin` on."""
        times = {"start_index": geometry.seconds(begin), "duration": geometry.seconds(frames)}
        return self._node("TrimAudioDuration", key, title, **self._take("audio"), **times).out(0)

    def _clip(self, shot: Shot, title: str, prompts: tuple[Link, Link], before: Link | None, begin: int) -> Link:
        """Generate a shot that begins at a frame; it may continue the clip `before` it, and follow the track."""
        latent = self._latent(shot, title, before)
        follows = self.board.follows(shot, begin)
        if follows:
            # The last audio latent may end after the last frame.
            driving = self._cut(f"{shot.key}.driving", title, begin, shot.frames + geometry.FRAMES_PER_LATENT)
            more = self._take("audio_vae") | {"frame": 0, "fit": "crop", "fps": geometry.FPS}
            latent = self._node("OviGuide", f"{shot.key}.guided", title, latent=latent, audio=driving, **more).out(0)
        noise = self._node("RandomNoise", f"{shot.key}.noise", title, noise_seed=shot.seed)
        positive, negative = prompts
        guider = self._node(
            "CFGGuider",
            f"{shot.key}.guider",
            title,
            positive=positive,
            negative=negative,
            **self._take("model", "cfg"),
        )
        sampled = self._node(
            "SamplerCustomAdvanced",
            f"{shot.key}.sampled",
            title,
            noise=noise.out(0),
            guider=guider.out(0),
            latent_image=latent,
            **self._take("sampler", "sigmas"),
        )
        decoded = self._node(
            "OviDecode",
            f"{shot.key}.decoded",
            title,
            samples=sampled.out(0),
            fps=geometry.FPS,
            **self._take("vae", "audio_vae", "tile_size"),
        )
        audio = self._cut(f"{shot.key}.part", title, begin, shot.frames) if follows else decoded.out(1)
        return self._video(f"{shot.key}.clip", title, decoded.out(0), audio)

    def _latent(self, shot: Shot, title: str, before: Link | None) -> Link:
        vae = self._take("vae")
        key, size = f"{shot.key}.latent", self._take("width", "height") | {"length": shot.frames, "batch_size": 1}
        if shot.overlap:
            more = self._take("audio_vae", "overlap") | {"length": shot.frames}
            return self._node("OviContinue", key, title, clip=before, **vae, **more).out(0)
        if shot.image:
            start_image = self.given[f"images.image{shot.image}"]
            more = size | self._take("fit")
            return self._node("OviImageToVideo", key, title, start_image=start_image, **vae, **more).out(0)
        return self._node("EmptyOviLatent", key, title, **size).out(0)

    def _video(self, key: str, title: str, images: Link, audio: Link) -> Link:
        return self._node("CreateVideo", key, title, images=images, audio=audio, fps=geometry.FPS, bit_depth=8).out(0)

    def _joined(self, clips: list[Link]) -> Link:
        joined = self._in_a_row(clips)
        if self.board.track is None:
            return joined
        # The track as it is, rather than its parts, which crossfade.
        parts = self._node("GetVideoComponents", "components", "", video=joined)
        return self._video("followed", "", parts.out(0), self._cut("track", "", 0, self.board.frames))

    def _in_a_row(self, clips: list[Link]) -> Link:
        if len(clips) == 1:
            return clips[0]
        overlaps = self.board.overlaps
        cuts = ", ".join(str(number) for number, overlap in enumerate(overlaps, start=2) if not overlap)
        wired = {f"clips.clip{index}": clip for index, clip in enumerate(clips)}
        return self._node("OviJoin", "joined", "", overlap_frames=max(*overlaps, 1), cuts=cuts, **wired).out(0)


def numbers(given: Mapping[str, Any], kind: str) -> list[int]:
    """Return the numbers of the connected inputs of a kind that grows, such as "image" for images.image1."""
    prefix = f"{kind}s.{kind}"
    return sorted(int(name.removeprefix(prefix)) for name in given if name.startswith(prefix))


def persons(given: Mapping[str, Any]) -> list[int]:
    """Return the numbers of the persons, by face, voice or both.

    Raises ValueError where a number is left out: the persons are told apart by their order.
    """
    found = sorted({*numbers(given, "face"), *numbers(given, "voice")})
    for number in range(1, len(found) + 1):
        if number not in found:
            raise ValueError(
                f"Person {found[-1]} is connected, but face{number} and voice{number} are not: connect the persons in "
                "their order, without a gap."
            )
    return found


def check_prefix(prefix: str) -> None:
    """Raise ValueError for the name of a file outside of ComfyUI's output folder, as ComfyUI does once it is saved."""
    root = os.path.abspath(folder_paths.get_output_directory())
    if os.path.commonpath([root, os.path.abspath(os.path.join(root, prefix))]) != root:
        raise ValueError(
            f"filename_prefix is '{prefix}', outside of ComfyUI's output folder: give a name, or a folder and a name, "
            "inside of it."
        )


def save(video: Any, prefix: str, hidden: Any) -> ui.PreviewVideo:
    """Save a VIDEO as mp4 with the graph in it, under `prefix` in ComfyUI's output folder; return how it is shown.

    An empty prefix saves it where ComfyUI keeps what is only shown. `hidden` are a node's `prompt` and `extra_pnginfo`.
    """
    folder = io.FolderType.output if prefix else io.FolderType.temp
    root = folder_paths.get_output_directory() if prefix else folder_paths.get_temp_directory()
    path, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix or "ovi_shot", root, *video.get_dimensions()
    )
    graph = {**(hidden.extra_pnginfo or {}), **({"prompt": hidden.prompt} if hidden.prompt else {})}
    file = f"{name}_{counter:05}_.mp4"
    video.save_to(
        os.path.join(path, file),
        format=Types.VideoContainer.MP4,
        codec=Types.VideoCodec.H264,
        metadata=None if args.disable_metadata or not graph else graph,
    )
    return ui.PreviewVideo([ui.SavedResult(file, subfolder, folder)])
