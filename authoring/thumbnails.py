"""Draw the thumbnails that ComfyUI's Templates dialog shows: workflows/NAME.jpg beside each workflow.

    python -m authoring.thumbnails COMFYUI

They show clips that the miniature (docs/miniature.md) generates here, with ComfyUI's nodes and this pack's, each in the
way of its workflow but all with KSampler. No upscaling or interpolating model runs: frames are only drawn larger. They
stand above their audio on one time axis. An orange outline marks what is given, dashed lines mark the bounces found in
the video.
"""

from __future__ import annotations

import base64
import io
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from playwright.sync_api import sync_playwright
from torch import Tensor

from miniature import WEIGHTS, measure, references, world
from ovi import geometry
from tests.support import ROOT, browser
from tests.support.comfy_host import Host
from tests.support.sampling import windowed

WORKFLOWS = ROOT / "workflows"
SIZE, EDGE = 400, 16  # pixels of a thumbnail, which the dialog shows as a square, and of its margin
INNER = SIZE - 2 * EDGE
BACKGROUND, PAPER, INK, LINE = "#17181c", "#e8e6e1", "#2b2c33", "#9a9aa5"
NODE, VIDEO, SKY, AUDIO, RUST = "#33343c", "#3f6fb5", "#a9c8ee", "#f08a4b", "#b4531a"

STEPS = 20
SAMPLING = {"cfg": 1.0, "sampler_name": "dpmpp_2m", "scheduler": "simple"}
FEW = 6  # steps of the fast workflow
SHARED = 17  # frames that a clip has in common with the one before
LONG = 481  # frames of 20 seconds
WINDOW, OVERLAP = 31, 8  # latent frames of a context window, and those that it shares with the next one
SMALL = 64  # pixels of a frame before the second pass
SHOWN = 3  # the frame that is shown of it


class Clip(NamedTuple):
    """Frames [T, H, W, 3] from 0 to 1, and the waveform [samples] at 16 kHz."""

    frames: Tensor
    waveform: Tensor


class Person(NamedTuple):
    """What a clip follows: an image [1, H, W, 3] and a recording [samples] at 16 kHz."""

    image: Tensor
    recording: Tensor


class Row(NamedTuple):
    """A number of frames side by side, one in `every` of a clip: where they begin, and their width in all."""

    x: float
    width: float
    every: int
    frames: int

    @property
    def step(self) -> float:
        """The width of one frame."""
        return self.width / self.frames

    def place(self, seconds: float) -> float:
        """Return where a time stands: a frame's time is in its middle."""
        return self.x + (seconds * world.FPS / self.every + 0.5) * self.step

    def seconds(self, x: float) -> float:
        """Return the time that stands at `x`."""
        return ((x - self.x) / self.step - 0.5) * self.every / world.FPS


class Studio:
    """The miniature on ComfyUI's nodes and this pack's, in this process."""

    def __init__(self, comfyui: Path, base: Path) -> None:
        self.host = Host(comfyui, base)
        self.run = self.host.run
        from miniature import nodes

        path = shutil.copy(WEIGHTS / "ovi_miniature.safetensors", self.host.models / "diffusion_models")
        options = {"second_model_name": "none", "weight_dtype": "default"}
        (self.model,) = self.run("OviModelLoader", model_name=Path(path).name, **options)
        lora = shutil.copy(WEIGHTS / "references_lora.safetensors", self.host.models / "loras")
        strengths = {"video_strength": 1.0, "audio_strength": 1.0}
        (self.following,) = self.run("OviLoraLoader", model=self.model, lora_name=Path(lora).name, **strengths)
        (self.text,) = nodes.OviMiniatureText.execute().args
        (self.video_vae,) = nodes.OviMiniatureVideoVAE.execute().args
        (self.audio_vae,) = nodes.OviMiniatureAudioVAE.execute().args

    def empty(self, length: int = world.FRAMES) -> Any:
        """Return an empty latent."""
        return self.run("EmptyOviLatent", width=world.WIDTH, height=world.HEIGHT, length=length, batch_size=1)[0]

    def sample(self, colour: str, latent: Any, seed: int, **options: Any) -> Any:
        """Sample the clip of a large ball, with options of `sample_prompt`; return its latent."""
        (cond,) = self.run("CLIPTextEncode", clip=self.text, text=caption(colour))
        return self.sample_prompt(cond, latent, seed, **options)

    def sample_prompt(
        self, cond: Any, latent: Any, seed: int, denoise: float = 1.0, model: Any = None, steps: int = STEPS
    ) -> Any:
        """Sample the clip of a prompt; return its latent."""
        inputs = {"positive": cond, "negative": cond, "latent_image": latent, "seed": seed, "denoise": denoise}
        return self.run("KSampler", model=model or self.model, **inputs, **SAMPLING, steps=steps)[0]

    def decode(self, latent: Any) -> Clip:
        """Decode a latent."""
        vaes = {"vae": self.video_vae, "audio_vae": self.audio_vae}
        frames, audio = self.run("OviDecode", samples=latent, **vaes, fps=world.FPS, tile_size=0)
        return Clip(frames, audio["waveform"][0, 0])

    def from_text(self, colour: str, seed: int, steps: int = STEPS) -> Clip:
        """Generate a clip from its prompt."""
        return self.decode(self.sample(colour, self.empty(), seed, steps=steps))

    def from_image(self, colour: str, image: Tensor, seed: int) -> Clip:
        """Generate a clip that starts with an image [1, H, W, 3]."""
        size = {"width": world.WIDTH, "height": world.HEIGHT, "length": world.FRAMES, "batch_size": 1, "fit": "refuse"}
        (latent,) = self.run("OviImageToVideo", vae=self.video_vae, start_image=image, **size)
        return self.decode(self.sample(colour, latent, seed))

    def of_person(self, person: Person, size: str, seed: int) -> Clip:
        """Generate a clip that follows a person, which its prompt does not describe."""
        prompt = references.Scene("", size, "", 0, 1, 0).caption
        (cond,) = self.run("CLIPTextEncode", clip=self.text, text=prompt)
        latent = self.empty()
        voice = {"waveform": person.recording[None, None], "sample_rate": world.RATE}
        positive, negative = self.run(
            "OviPerson", positive=cond, negative=cond, latent=latent, vae=self.video_vae, audio_vae=self.audio_vae,
            face=person.image, voice=voice, voice_start=0.0, voice_seconds=references.SECONDS,
        )  # fmt: skip
        prompts = {"positive": positive, "negative": negative}
        inputs = {"model": self.following, "latent_image": latent, "seed": seed, "denoise": 1.0}
        return self.decode(self.run("KSampler", **prompts, **inputs, **SAMPLING, steps=STEPS)[0])

    def in_a_row(self, colour: str, seeds: Sequence[int]) -> tuple[list[Clip], Clip]:
        """Generate clips that each continue the one before; return them, and all of them joined."""
        clips, videos = [self.from_text(colour, seeds[0])], []
        vaes = {"vae": self.video_vae, "audio_vae": self.audio_vae}
        for seed in (*seeds[1:], None):
            audio = {"waveform": clips[-1].waveform[None, None], "sample_rate": world.RATE}
            videos += self.run("CreateVideo", images=clips[-1].frames, audio=audio, fps=world.FPS)
            if seed is not None:
                inputs = {"clip": videos[-1], "length": world.FRAMES, "overlap": SHARED / world.FPS}
                latent, _ = self.run("OviContinue", **inputs, **vaes)
                clips.append(self.decode(self.sample(colour, latent, seed)))
        names = [f"clip{i}" for i in range(len(videos))]
        (joined,) = self.run("OviJoin", clips=dict(zip(names, videos, strict=True)), overlap_frames=SHARED)
        parts = joined.get_components()
        return clips, Clip(parts.images, parts.audio["waveform"][0, 0])

    def preserving(self, length: int, **given: Any) -> Any:
        """Return a latent that preserves frames or audio, which are whole."""
        size = {"width": world.WIDTH, "height": world.HEIGHT, "length": length, "batch_size": 1, "fit": "refuse"}
        keep = {"fps": world.FPS, "keep_frames": 0, "keep_seconds": 0.0}
        keep |= {"remake": "nothing", "remake_start": 0.0, "remake_end": 0.0}
        return self.run("OviReference", **size, **keep, vae=self.video_vae, audio_vae=self.audio_vae, **given)[0]

    def audio_for(self, colour: str, frames: Tensor, seed: int) -> Clip:
        """Generate audio for frames."""
        latent = self.preserving(len(frames), video=frames)
        return Clip(frames, self.decode(self.sample(colour, latent, seed)).waveform)

    def video_for(self, colour: str, audio: Tensor, seed: int) -> Clip:
        """Generate frames for audio [samples] at 16 kHz."""
        given = {"waveform": audio[None, None], "sample_rate": world.RATE}
        latent = self.preserving(world.FRAMES, audio=given)
        model = self.host.module("ovi.native").guide(self.model, 1.0, "", sync_scale=2.0)
        return Clip(self.decode(self.sample(colour, latent, seed, model=model)).frames, audio)

    def between(self, colour: str, images: Sequence[Tensor], seed: int) -> Clip:
        """Generate a clip that passes through images [1, H, W, 3], at equal distances from its start to its end."""
        latent = self.empty()
        for i, image in enumerate(images):
            at = i * (world.FRAMES - 1) // (len(images) - 1)
            inputs = {"latent": latent, "vae": self.video_vae, "image": image, "frame": at}
            (latent,) = self.run("OviGuide", **inputs, fit="refuse", fps=world.FPS)
        return self.decode(self.sample(colour, latent, seed))

    def in_windows(self, colours: Sequence[str], seed: int) -> Clip:
        """Generate 20 seconds in context windows, with a prompt for each colour, one after the other."""
        starts = [round(i * geometry.seconds(LONG) / len(colours)) for i in range(len(colours))]
        prompt = "\n".join(
            f"--- from {start}s\n{caption(colour)}" for start, colour in zip(starts, colours, strict=True)
        )
        negative = {"video_negative": "", "audio_negative": "", "prompt_style": "as written"}
        cond, _ = self.run("OviTimeline", clip=self.text, prompt=prompt, **negative)
        model = windowed(self.host, self.model, context_length=WINDOW, context_overlap=OVERLAP)
        return self.decode(self.sample_prompt(cond, self.empty(LONG), seed, model=model))

    def second_pass(self, colour: str, seed: int) -> tuple[Clip, Clip]:
        """Generate a clip, make it small, since the miniature knows one size alone, and refine it at its own size."""
        clip = self.from_text(colour, seed)
        frames = F.interpolate(clip.frames.movedim(-1, 1), (SMALL, SMALL), mode="area").movedim(1, -1)
        (video,) = self.run("VAEEncode", vae=self.video_vae, pixels=frames)
        audio = {"samples": self.audio_vae.encode(clip.waveform[None, :, None])}
        scale = {"upscale_method": "bilinear", "scale_by": world.WIDTH / SMALL}
        (large,) = self.run("LatentUpscaleBy", samples=video, **scale)
        (latent,) = self.run("LTXVConcatAVLatent", video_latent=large, audio_latent=audio)
        (latent,) = self.run("OviRemake", samples=latent, remake="video", remake_start=0.0, remake_end=0.0)
        refined = self.decode(self.sample(colour, latent, seed + 1, denoise=0.4))
        return Clip(self.video_vae.decode(video["samples"])[0], refined.waveform), refined


def main() -> None:
    """Generate the clips and write a thumbnail for every workflow."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        thumbnails = drawings(Studio(Path(sys.argv[1]).resolve(), Path(folder)))
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser.CHROMIUM, args=browser.OPTIONS)
        page = chromium.new_page(viewport={"width": SIZE, "height": SIZE})
        for name, drawing in thumbnails.items():
            note = words(SIZE / 2, 384, "clip generated by the miniature model", 15, LINE)
            page.set_content(
                f'<body style="margin:0"><svg width="{SIZE}" height="{SIZE}">{box(0, 0, SIZE, SIZE, BACKGROUND)}'
                f"{''.join(drawing)}{note}</svg>"
            )
            page.screenshot(path=WORKFLOWS / f"{name}.jpg", type="jpeg", quality=88)
        chromium.close()


def drawings(studio: Studio) -> dict[str, list[str]]:
    """Generate what the thumbnails show; return each as SVG."""
    image = world.frames(world.Scene("yellow", "large", "low", height=48, gravity=420, restitution=0.86))[:1]
    one, other = person("green", "high", 0), person("red", "low", 1)
    takes = [studio.of_person(one, size, seed) for size, seed in (("large", 1), ("medium", 2), ("small", 3))]
    return {
        "Ovi 1 Text to Video": [
            sheet(62, 16, 276, 96, "blue", 22), arrow(200, 120), *below(studio.from_text("blue", 2)),
        ],
        "Ovi 2 Image to Video": from_image(image, studio.from_image("yellow", image, 1)),
        "Ovi 3 Three Clips in a Row": in_a_row(*studio.in_a_row("red", [6, 7, 8])),
        "Ovi 4 Audio for a Video": audio_for(studio.audio_for("green", studio.from_text("green", 9).frames, 0)),
        "Ovi 5 Twenty Seconds": in_windows(studio.in_windows(("blue", "yellow", "green"), 0)),
        "Ovi 6 Second Pass": second_pass(*studio.second_pass("yellow", 0)),
        "Ovi 7 Upscale and 48 fps": upscaled(studio.from_text("red", 9)),
        "Ovi 8 Text to Video with KSampler": [
            sheet(16, 16, 196, 96, "green", 16), words(229, 64, "+", 26), sampler_node(246, 16, 138, 96),
            arrow(200, 120), *below(studio.from_text("green", 2)),
        ],
        "Ovi 9 Text to Video, All Nodes": [*graph(), arrow(200, 130), *below(studio.from_text("yellow", 3))],
        "Ovi Fast": fast(studio, "blue"),
        "Ovi Guides": guides(studio, "yellow"),
        "Ovi Idea": [
            box(16, 20, 116, 88, NODE, rx=40, stroke=LINE), words(74, 52, "a red ball", 19),
            words(74, 76, "falls ...", 19), arrow(140, 64, 24, across=True),
            sheet(172, 16, 212, 96, "red", 17), arrow(200, 120),
            *below(studio.from_text("red", 7)),
        ],
        "Ovi Own Audio": own_audio(studio.video_for("blue", studio.from_text("blue", 5).waveform, 0)),
        "Ovi Person 1 Face and Voice": [*given(one, 16), arrow(200, 124), *below(takes[0])],
        "Ovi Person 2 Dialogue": [
            *given(one, 16, 172), *beside(takes[0], 16), *given(other, 212, 172),
            *beside(studio.of_person(other, "large", 4), 212),
        ],
        "Ovi Person 3 Story": [*given(one, 16), *cuts(takes)],
        "Ovi Several GPUs": [
            *(part for i in range(2) for part in gpu(16 + 196 * i, f"GPU {i + 1}")), arrow(200, 120),
            *below(studio.from_text("green", 5)),
        ],
        "Ovi Storyboard 1 Three Shots": [
            *page(), *cuts([studio.from_text(colour, 2) for colour in ("blue", "yellow", "green")]),
        ],
        "Ovi Storyboard 2 Own Audio": shots_to_audio([studio.from_text("blue", seed) for seed in (2, 5, 7)]),
        "Ovi Training 1 Clips": training_clips(
            [studio.from_text(colour, seed) for seed in (2, 5) for colour in ("blue", "yellow", "green", "red")]
        ),
    }  # fmt: skip


def gpu(x: float, name: str) -> list[str]:
    """A graphics card, with its name on it."""
    pins = [box(x + 20 + 17 * i, 98, 9, 12, LINE) for i in range(8)]
    return [box(x, 20, 172, 78, NODE, rx=8, stroke=LINE), words(x + 86, 67, name, 24), *pins]


def below(clip: Clip) -> list[str]:
    """A clip in the lower part of a thumbnail."""
    row = Row(EDGE, INNER, every=4, frames=12)
    return [strip(clip, row, 160), wave(clip, row, 268, 92), bounces(clip, row, 160, 360)]


def fast(studio: Studio, colour: str) -> list[str]:
    """A prompt, the number of steps, and the clip that they give."""
    return [
        sheet(16, 16, 196, 96, colour, 16), words(229, 64, "+", 26), node(246, 16, 138, 96, "", 22),
        words(315, 64, f"{FEW} steps", 26), arrow(200, 120), *below(studio.from_text(colour, 2, FEW)),
    ]  # fmt: skip


def guides(studio: Studio, colour: str) -> list[str]:
    """Images, outlined, and the clip that passes through them."""
    source = world.frames(world.Scene(colour, "large", "low", height=48, gravity=420, restitution=0.86))
    images = [source[at : at + 1] for at in (0, world.FRAMES // 2, world.FRAMES - 1)]
    drawn = []
    for i, image in enumerate(images):
        x = EDGE + i * (INNER - 104) / 2
        drawn += [frame(image[0], x, 16, 104, 104), outline(x, 16, 104, 104), arrow(x + 52, 124)]
    return [*drawn, *below(studio.between(colour, images, 1))]


def own_audio(clip: Clip) -> list[str]:
    """Audio that is given, outlined, and its frames."""
    row = Row(EDGE + 4, INNER - 8, every=4, frames=12)
    return [
        wave(clip, row, 24, 120), outline(EDGE, 20, INNER, 128), arrow(200, 158), strip(clip, row, 200, 150),
        bounces(clip, row, 24, 350),
    ]  # fmt: skip


def person(colour: str, pitch: str, seed: int) -> Person:
    """Draw the references of a person."""
    scene = references.Scene(colour, "large", pitch, 0, 1, 0)
    return Person(references.image(scene, seed), references.recording(scene, seed))


def given(person: Person, x: float, width: float = INNER) -> list[str]:
    """A person's image and recording, outlined."""
    row = Row(x + 112, width - 116, every=1, frames=round(references.SECONDS * world.FPS))
    clip = Clip(person.image, person.recording)
    return [
        frame(person.image[0], x, 16, 100, 100), outline(x, 16, 100, 100),
        wave(clip, row, 24, 84), outline(x + 108, 16, width - 108, 100),
    ]  # fmt: skip


def beside(clip: Clip, x: float) -> list[str]:
    """A clip in the lower left or right of a thumbnail."""
    row = Row(x, 172, every=8, frames=6)
    return [arrow(x + 86, 124), strip(clip, row, 160), wave(clip, row, 268, 92), bounces(clip, row, 160, 360)]


def cuts(clips: Sequence[Clip]) -> list[str]:
    """Clips one after the other, each with its audio."""
    return [arrow(200, 124), *side_by_side(clips, EDGE, strip_at=(160, 100), wave_at=(268, 92))]


def shots_to_audio(clips: Sequence[Clip]) -> list[str]:
    """Audio that is given, outlined, and the shots that follow it."""
    shots = side_by_side(clips, EDGE + 3, strip_at=(200, 150), wave_at=(24, 120))
    return [outline(EDGE, 20, INNER, 128), arrow(200, 158), *shots]


def training_clips(clips: Sequence[Clip]) -> list[str]:
    """Many clips, each with its audio: four in a line."""
    width, height = INNER / 4, 174
    drawn = []
    for i, clip in enumerate(clips):
        x, y = EDGE + i % 4 * width, 16 + i // 4 * height
        row = Row(x, width - 8, every=12, frames=4)
        drawn += [
            frame(clip.frames[SHOWN], x, y, width - 8, width - 8),
            wave(clip, row, y + width, height - width - 16),
        ]
    return drawn


def side_by_side(
    clips: Sequence[Clip], x: float, strip_at: tuple[float, float], wave_at: tuple[float, float]
) -> list[str]:
    """Clips from `x` on, the frames and the audio of each at a place and of a height."""
    width = INNER / len(clips)
    drawn = []
    for i, clip in enumerate(clips):
        row = Row(x + i * width, width - 6, every=12, frames=4)
        drawn += [strip(clip, row, *strip_at), wave(clip, row, *wave_at)]
    return drawn


def page() -> list[str]:
    """The page of a storyboard."""
    lines = [("--- cut 2s", RUST), ("A blue ball falls.", INK), ("--- cut 2s", RUST), ("A yellow ball falls.", INK)]
    return [
        box(80, 12, 240, 108, PAPER, rx=6),
        *(words(200, 28 + 25 * i, line, 19, ink) for i, (line, ink) in enumerate(lines)),
    ]


def from_image(image: Tensor, clip: Clip) -> list[str]:
    """An image and a prompt, and the clip, whose first frame is outlined, too."""
    first = Row(EDGE, INNER, every=4, frames=12).step
    return [
        frame(image[0], 16, 16, 104, 104), outline(16, 16, 104, 104), arrow(EDGE + first / 2, 126, 26),
        words(140, 68, "+", 26), sheet(160, 16, 224, 104, "yellow", 18), *below(clip), outline(EDGE, 160, first, 100),
    ]  # fmt: skip


def in_a_row(clips: Sequence[Clip], joined: Clip) -> list[str]:
    """Clips on one time axis, each below the one before, and the audio of them all."""
    every = 8
    shared, added = SHARED // every, (world.FRAMES - SHARED) // every  # in frames that are shown
    whole = Row(EDGE, INNER, every, len(clips) * added + shared)
    drawn = []
    for i, clip in enumerate(clips):
        row = Row(whole.x + i * added * whole.step, (added + shared) * whole.step, every, added + shared)
        drawn.append(strip(clip, row, 16 + 82 * i, 70))
        if i:
            drawn.append(outline(row.x, 16 + 82 * i, shared * row.step, 70))
            drawn.append(arrow(row.x + shared * row.step / 2, 82 * i - 6, 16, AUDIO))
    return [*drawn, wave(joined, whole, 274, 88)]


def audio_for(clip: Clip) -> list[str]:
    """Frames that are given, and their audio."""
    row = Row(EDGE + 4, INNER - 8, every=4, frames=12)
    return [
        strip(clip, row, 24), outline(EDGE, 20, INNER, 108), arrow(200, 138),
        box(EDGE, 180, INNER, 176, AUDIO, rx=8, fill_opacity=0.16), wave(clip, row, 188, 160),
        bounces(clip, row, 24, 348),
    ]  # fmt: skip


def in_windows(clip: Clip) -> list[str]:
    """A long clip, its windows and its seconds."""
    row = Row(EDGE, INNER, every=40, frames=13)
    drawn = [words(200, 34, "20 seconds", 30)]
    for i in range(5):
        latent = min(i * (WINDOW - OVERLAP), geometry.video_latents(LONG) - WINDOW)
        left, right = (row.place(4 * edge / world.FPS) for edge in (latent, latent + WINDOW))
        drawn.append(box(left, 66 + 22 * (i % 2), right - left, 18, VIDEO, rx=5, stroke=SKY, stroke_width=2))
    drawn += [strip(clip, row, 122, 84), wave(clip, row, 222, 104)]
    for seconds in range(0, 21, 5):
        drawn.append(words(row.place(seconds), 344, f"{seconds} s", 17))
    return drawn


def second_pass(small: Clip, large: Clip) -> list[str]:
    """A small frame and its refined, larger version, above the same audio."""
    left, right = Row(16, 114, 4, 12), Row(172, 212, 4, 12)
    return [
        frame(small.frames[SHOWN], 16, 116, 114, 114), arrow(137, 173, 26, across=True),
        frame(large.frames[SHOWN], 172, 18, 212, 212),
        wave(small, left, 254, 92), words(151, 300, "=", 30), wave(large, right, 254, 92),
    ]  # fmt: skip


def upscaled(clip: Clip) -> list[str]:
    """Some frames, twice as many that are twice as large, and the audio."""
    few, many = Row(EDGE, INNER / 4, every=8, frames=4), Row(EDGE, INNER, every=4, frames=8)
    return [
        strip(clip, few, 16, 62), words(156, 47, "24 fps", 24), arrow(62, 88),
        strip(clip, many, 126, 124), words(224, 104, "2x size, 48 fps", 24), wave(clip, many, 266, 92),
        bounces(clip, many, 126, 358),
    ]  # fmt: skip


def caption(colour: str) -> str:
    """The prompt of a large ball."""
    return str(world.Scene(colour, "large", "low", 0, 1, 0).caption)


def frame(image: Tensor, x: float, y: float, width: float, height: float) -> str:
    """The middle of a frame [H, W, 3]."""
    columns = min(world.WIDTH, world.HEIGHT * width / height) / world.WIDTH * image.shape[1]
    left = (image.shape[1] - columns) / 2
    shown = Image.fromarray(image.clamp(0, 1).mul(255).round().byte().numpy())
    area = (left, 0, left + columns, image.shape[0])
    shown = shown.resize((round(2 * width), round(2 * height)), Image.Resampling.BICUBIC, box=area)
    shown.save(file := io.BytesIO(), "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<image x="{x}" y="{y}" width="{width}" height="{height}" preserveAspectRatio="none" '
        f'href="data:image/png;base64,{data}"/>'
    )


def strip(clip: Clip, row: Row, y: float, height: float = 100) -> str:
    """Frames of a clip side by side."""
    return "".join(
        frame(clip.frames[i * row.every], row.x + i * row.step, y, row.step - 2, height) for i in range(row.frames)
    )


def wave(clip: Clip, row: Row, y: float, height: float) -> str:
    """The audio of a clip: its peaks, as bars around a middle line."""
    loudest, drawn, width = clip.waveform.abs().max().item(), "", 4
    for x in range(round(row.x), round(row.x + row.width) - width + 1, width):
        begin, end = (max(0, round(row.seconds(edge) * world.RATE)) for edge in (x, x + width))
        samples = clip.waveform[begin:end]
        tall = max(2.0, samples.abs().max().item() / loudest * height) if len(samples) else 2.0
        drawn += box(x, y + (height - tall) / 2, width - 1, tall, AUDIO, rx=1)
    return drawn


def bounces(clip: Clip, row: Row, top: float, bottom: float) -> str:
    """Lines at the bounces of the ball."""
    return "".join(
        f'<path d="M{row.place(time)} {top} V{bottom}" stroke="{PAPER}" stroke-width="1.5" stroke-dasharray="4 4" '
        f'stroke-opacity="0.8"/>'
        for time in measure.bounces(clip.frames)
        if row.place(time) < row.x + row.width - row.step / 4
    )


def sheet(x: float, y: float, width: float, height: float, colour: str, size: int) -> str:
    """The prompt on a sheet of paper."""
    video, audio = caption(colour).split(" Audio: ")
    middle = video.index(" falls")
    lines = [(video[:middle], INK), (video[middle + 1 :], INK), (f"Audio: {audio}", RUST)]
    return box(x, y, width, height, PAPER, rx=6) + "".join(
        words(x + width / 2, y + (i + 0.75) * height / 3.5, line, size, ink) for i, (line, ink) in enumerate(lines)
    )


def node(x: float, y: float, width: float, height: float, title: str, size: int) -> str:
    """A node with its title."""
    return box(x, y, width, height, NODE, rx=8, stroke=LINE) + words(x + width / 2, y + size, title, size)


def sampler_node(x: float, y: float, width: float, height: float) -> str:
    """A KSampler with widgets."""
    bars = (box(x + 14, y + 42 + 18 * i, width - 28, 10, LINE, rx=5, fill_opacity=0.5) for i in range(3))
    return node(x, y, width, height, "KSampler", 22) + "".join(bars)


def graph() -> list[str]:
    """The nodes of a workflow and their links."""
    places = {
        "Model": (0, 0), "Guidance": (1, 0), "Text": (0, 1), "Prompt": (1, 1), "Latent": (1, 2), "Sampler": (2, 0.5),
        "VAEs": (2, 2), "Decode": (3, 1.25),
    }  # fmt: skip
    links = "Model Guidance, Guidance Sampler, Text Prompt, Prompt Sampler, Latent Sampler, VAEs Decode, Sampler Decode"
    at = {name: (EDGE + 95.5 * column, 14 + 38 * line) for name, (column, line) in places.items()}
    drawn = []
    for source, target in map(str.split, links.split(", ")):
        (x, y), (end, down) = at[source], at[target]
        path = f"M{x + 82} {y + 15} C{x + 94} {y + 15} {end - 12} {down + 15} {end} {down + 15}"
        drawn.append(f'<path d="{path}" stroke="{SKY}" stroke-width="2.5" fill="none"/>')
    return drawn + [node(x, y, 82, 30, name, 16) for name, (x, y) in at.items()]


def box(x: float, y: float, width: float, height: float, fill: str, **more: object) -> str:
    """A rectangle; `more` are attributes of SVG."""
    attributes = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in more.items())
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}"{attributes}/>'


def outline(x: float, y: float, width: float, height: float) -> str:
    """A frame around what is given."""
    return box(x, y, width, height, "none", stroke=AUDIO, stroke_width=4, rx=4)


def arrow(x: float, y: float, length: float = 28, colour: str = LINE, *, across: bool = False) -> str:
    """An arrow that points down, or to the right; `x` and `y` are its start."""
    turn = f'transform="rotate(-90 {x} {y})" ' if across else ""
    head = min(12, length / 2)
    path = f"M{x} {y} v{length} m{-head} {-head} l{head} {head} l{head} {-head}"
    return f'<path {turn}d="{path}" stroke="{colour}" stroke-width="5" fill="none"/>'


def words(x: float, y: float, text: str, size: int, colour: str = PAPER) -> str:
    """Words around a point."""
    return (
        f'<text x="{x}" y="{y}" font-family="sans-serif" font-size="{size}" fill="{colour}" text-anchor="middle" '
        f'dominant-baseline="central">{text}</text>'
    )


if __name__ == "__main__":
    main()
