"""What the templates show: places, groups, subgraphs, notes and model files, for the prompts of workflows/api/.

A key names a node by its id in the prompt, by its title or by its type. A place is left, top, width and height in the
canvas's units, with room for what a run adds: a note on a node takes 62, the spectrogram of Ovi Decode 220. A node
without height is collapsed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from . import notes
from .boxes import (
    CONDITIONED,
    FAST,
    FIRST_CLIP,
    FIRST_PASS,
    FLAT,
    GUIDES,
    IDEA,
    IMAGE_TO_VIDEO,
    LARGER,
    MODELS,
    NEW_AUDIO,
    NEXT_CLIP,
    ONE_PERSON,
    OWN_AUDIO,
    SAMPLING,
    SCHEDULED,
    SECOND_PASS,
    SIZE_AND_SEED,
    TEXT_TO_VIDEO,
    TWO_PERSONS,
    WINDOWS,
    YOUR_VIDEO,
    Box,
    Place,
)

FILES = {  # node type: its files, beside Load Ovi Model
    "CLIPLoader": [notes.TEXT_ENCODER],
    "VAELoader": [notes.VIDEO_VAE],
    "OviAudioVAELoader": [notes.AUDIO_VAE, notes.VOCODER],
    "OviLoraLoader": [notes.FASTWAN],
    "UpscaleModelLoader": [notes.UPSCALER],
    "FrameInterpolationModelLoader": [notes.INTERPOLATOR],
}
HASHES = {  # of files whose hash is public; MD5 where it has 32 digits
    notes.TEXT_ENCODER: "c3355d30191f1f066b26d93fba017ae9809dce6c627dda5f6a66eaa651204f68",
    notes.VIDEO_VAE: "e40321bd36b9709991dae2530eb4ac303dd168276980d3e9bc4b6e2b75fed156",
    notes.AUDIO_VAE: "69f56803f59a549a1a507c93859fd4d7",
    notes.VOCODER: "eeaf372a38a9c31c362120aba2dde292",
}
COLOURS = {"OviTextEncode": "green", "OviTimeline": "green", notes.VIDEO_NEGATIVE: "red", notes.AUDIO_NEGATIVE: "red"}


def feeds(node: str) -> list[tuple[str, str, str]]:
    """Return the inputs of a text node whose texts have nodes of their own, and the titles of these."""
    return [(node, "video_negative", notes.VIDEO_NEGATIVE), (node, "audio_negative", notes.AUDIO_NEGATIVE)]


FEEDS = feeds("OviTextEncode")


@dataclass(frozen=True)
class Template:
    """A graph of workflows/: the prompt that it is made of, and how it looks."""

    prompt: str  # the name of a file in workflows/api/
    places: Mapping[str, Place]
    groups: Mapping[str, Sequence[str]]  # by title: the nodes inside
    about: str  # the note on the workflow
    links: str = notes.LINKS  # the note on what to download
    model: str = notes.FP8  # the file of Load Ovi Model
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by a node's id, where not those of its type
    boxes: Sequence[Box] = ()
    feeds: Sequence[tuple[str, str, str]] = ()


def layout(template: Template) -> dict[str, Any]:
    """Return what authoring/layout.js needs of a template, with its groups as left, top, right and bottom."""
    files = {**FILES, "OviModelLoader": [template.model], **template.files}
    models = {kind: [model_file(url) for url in urls] for kind, urls in files.items()}
    groups = {title: around([template.places[key] for key in keys]) for title, keys in template.groups.items()}
    texts = {notes.MODEL_LINKS: template.links, notes.ABOUT: template.about}
    return asdict(template) | {"groups": groups, "notes": texts, "models": models, "colours": COLOURS}


def around(places: Sequence[Place]) -> tuple[int, int, int, int]:
    """Return the bounds of a group around nodes: left, top, right, bottom. A node's title stands 30 above its place."""
    return (
        min(left for left, *_ in places) - 12,
        min(top for _, top, *_ in places) - 78,
        max(left + width for left, _, width, _ in places) + 12,
        max(top + height for _, top, _, height in places) + 12,
    )


def model_file(url: str) -> dict[str, str]:
    """Return what ComfyUI shows of a missing file."""
    (folder,) = {
        folder
        for folders in (notes.WRITTEN, notes.DREAMID, notes.FAST, notes.LARGER)
        for folder, urls in folders.items()
        if url in urls
    }
    file = {"name": notes.file_name(url), "url": url, "directory": folder}
    if digits := HASHES.get(url):
        file |= {"hash": digits, "hash_type": "MD5" if len(digits) == 32 else "SHA256"}
    return file


LOADERS: dict[str, Place] = {
    "OviModelLoader": (0, 0, 270, 106),
    "CLIPLoader": (0, 160, 270, 106),
    notes.MODEL_LINKS: (0, 320, 270, 310),
    "VAELoader": (0, 690, 270, 58),
    "OviAudioVAELoader": (0, 800, 270, 82),
    "OviGuidance": (306, 0, 136, 0),
}
# Some templates have a column more between the prompt and the video.
WIDE = LOADERS | {
    notes.VIDEO_NEGATIVE: (306, 190, 210, 90),
    notes.AUDIO_NEGATIVE: (306, 330, 210, 90),
    "OviTextEncode": (546, 40, 350, 380),
    SIZE_AND_SEED.title: (936, 0, 260, 320),
    WINDOWS.title: (936, 0, 260, 370),
    "OviDecode": (1236, 0, 220, 410),
    "CreateVideo": (1490, 0, 134, 0),
    "SaveVideo": (1490, 70, 340, 490),
    notes.ABOUT: (936, 650, 894, 232),
}
DENSE = LOADERS | {
    notes.VIDEO_NEGATIVE: (300, 190, 210, 90),
    notes.AUDIO_NEGATIVE: (300, 330, 210, 90),
    "OviTextEncode": (530, 40, 310, 380),
    SIZE_AND_SEED.title: (870, 0, 210, 320),
    SECOND_PASS.title: (1110, 0, 210, 320),
    "OviDecode": (1350, 0, 210, 410),
    "CreateVideo": (1590, 0, 134, 0),
    "SaveVideo": (1590, 70, 250, 400),
    notes.ABOUT: (870, 560, 690, 322),
}
PROMPTED = ["OviGuidance", notes.VIDEO_NEGATIVE, notes.AUDIO_NEGATIVE, "OviTextEncode"]
LOADED = ["OviModelLoader", "CLIPLoader", notes.MODEL_LINKS, "VAELoader", "OviAudioVAELoader"]
SAVED = ["OviDecode", "CreateVideo", "SaveVideo"]
GROUPS = {
    "1 Load models": LOADED,
    "2 Prompt": PROMPTED,
    "3 Size, length, seed": [SIZE_AND_SEED.title],
    "4 Video": SAVED,
}


TEMPLATES = {
    "Ovi 1 Text to Video": Template(
        prompt="ovi_text_to_video",
        places={
            notes.MODEL_LINKS: (0, 0, 440, 390),
            notes.ABOUT: (0, 450, 440, 430),
            TEXT_TO_VIDEO.title: (480, 0, 480, 880),
            "SaveVideo": (1000, 0, 500, 500),
        },
        groups={},
        about=notes.ABOUT_TEXT,
        links=notes.LINKS_AND_TREE,
        boxes=[TEXT_TO_VIDEO],
    ),
    "Ovi 2 Image to Video": Template(
        prompt="ovi_image_to_video",
        places={
            notes.MODEL_LINKS: (0, 0, 440, 390),
            notes.ABOUT: (0, 450, 440, 430),
            "LoadImage": (480, 0, 250, 320),
            IMAGE_TO_VIDEO.title: (770, 0, 470, 880),
            "SaveVideo": (1280, 0, 420, 420),
        },
        groups={},
        about=notes.ABOUT_IMAGE,
        links=notes.LINKS_AND_TREE,
        boxes=[IMAGE_TO_VIDEO],
    ),
    "Ovi 3 Three Clips in a Row": Template(
        prompt="ovi_three_clips",
        places=LOADERS
        | {
            FIRST_CLIP.title: (470, 0, 300, 550),
            NEXT_CLIP.title: (810, 0, 300, 550),
            f"{NEXT_CLIP.title} 2": (1150, 0, 300, 550),
            "SaveVideo": (1490, 0, 350, 500),
            notes.ABOUT: (470, 640, 640, 240),
        },
        groups={
            "1 Load models": [*LOADED, "OviGuidance"],
            "2 First clip": [FIRST_CLIP.title],
            "3 Second clip": [NEXT_CLIP.title],
            "4 Third clip": [f"{NEXT_CLIP.title} 2"],
            "5 Video": ["SaveVideo"],
        },
        about=notes.ABOUT_CLIPS,
        boxes=[FIRST_CLIP, NEXT_CLIP],
    ),
    "Ovi 4 Audio for a Video": Template(
        prompt="ovi_video_to_audio",
        places=WIDE
        | {
            NEW_AUDIO.title: (1490, 0, 140, 46),
            "SaveVideo": (1490, 120, 340, 490),
            notes.ABOUT: (936, 690, 894, 190),
            "LoadVideo": (306, 560, 210, 320),
            YOUR_VIDEO.title: (546, 560, 350, 320),
        },
        groups={
            "1 Load models": LOADED,
            "2 Prompt": PROMPTED,
            "3 Your video: size, length": ["LoadVideo", YOUR_VIDEO.title],
            "4 Seed": [SIZE_AND_SEED.title],
            "5 Video": ["OviDecode", NEW_AUDIO.title, "SaveVideo"],
        },
        about=notes.ABOUT_VIDEO,
        boxes=[
            YOUR_VIDEO,
            NEW_AUDIO,
            replace(
                SIZE_AND_SEED,
                members=SAMPLING,
                inputs=[*CONDITIONED, ("latent", "SamplerCustomAdvanced", "latent_image")],
                shown=SCHEDULED,
            ),
        ],
        feeds=FEEDS,
    ),
    "Ovi 5 Twenty Seconds": Template(
        prompt="ovi_context_windows",
        places=WIDE | {"OviTimeline": WIDE["OviTextEncode"]},
        groups=GROUPS
        | {
            "2 Prompt": ["OviGuidance", notes.VIDEO_NEGATIVE, notes.AUDIO_NEGATIVE, "OviTimeline"],
            "3 Size, length, seed": [WINDOWS.title],
        },
        about=notes.ABOUT_WINDOWS,
        boxes=[WINDOWS],
        feeds=feeds("OviTimeline"),
    ),
    "Ovi 6 Second Pass": Template(
        prompt="ovi_second_pass",
        places=DENSE,
        groups=GROUPS | {"3 Size, length, seed": [SIZE_AND_SEED.title, SECOND_PASS.title]},
        about=notes.ABOUT_SECOND_PASS,
        boxes=[FIRST_PASS, SECOND_PASS],
        feeds=FEEDS,
    ),
    "Ovi 7 Upscale and 48 fps": Template(
        prompt="ovi_upscale_48fps",
        places=DENSE | {"OviDecode": (1110, 0, 210, 410), LARGER.title: (1350, 0, 210, 140)},
        groups=GROUPS | {"4 Video": [*SAVED, LARGER.title]},
        about=notes.ABOUT_UPSCALE,
        links=notes.LINKS_FOR_LARGER,
        boxes=[SIZE_AND_SEED, LARGER],
        feeds=FEEDS,
    ),
    "Ovi 8 Text to Video with KSampler": Template(
        prompt="ovi_minimal_ksampler",
        places=DENSE | {"EmptyOviLatent": (870, 120, 210, 200), "KSampler": (1110, 0, 210, 262)},
        groups=GROUPS | {"3 Size, length, seed": ["EmptyOviLatent", "KSampler"]},
        about=notes.ABOUT_NODES,
        feeds=FEEDS,
    ),
    "Ovi 9 Text to Video, All Nodes": Template(
        prompt="ovi_text_to_video",
        places=FLAT | {notes.MODEL_LINKS: (1660, 0, 330, 660), notes.ABOUT: (2020, 0, 330, 660)},
        groups={
            "1 Load models": ["OviModelLoader", "CLIPLoader", "VAELoader", "OviAudioVAELoader"],
            "2 Prompt": PROMPTED,
            "3 Size, length, seed": [*SAMPLING, "EmptyOviLatent"],
            "4 Video": SAVED,
        },
        about=notes.ABOUT_NODES,
        links=notes.LINKS_AND_TREE,
        feeds=FEEDS,
    ),
    "Ovi Fast": Template(
        prompt="ovi_fast",
        places={
            notes.MODEL_LINKS: (0, 0, 440, 340),
            notes.ABOUT: (0, 400, 440, 480),
            FAST.title: (480, 0, 480, 880),
            "SaveVideo": (1000, 0, 500, 500),
        },
        groups={},
        about=notes.ABOUT_FAST,
        links=notes.LINKS_FOR_FAST,
        boxes=[FAST],
    ),
    "Ovi Guides": Template(
        prompt="ovi_guides",
        places={
            "16": (0, 0, 224, 314),
            "20": (0, 370, 224, 314),
            "21": (0, 740, 224, 314),
            notes.ABOUT: (340, 0, 460, 270),
            GUIDES.title: (340, 350, 460, 704),
            notes.MODEL_LINKS: (840, 0, 420, 270),
            "SaveVideo": (840, 350, 420, 560),
        },
        groups={},
        about=notes.ABOUT_GUIDES,
        links=notes.LINKS,
        boxes=[GUIDES],
    ),
    "Ovi Idea": Template(
        prompt="ovi_idea",
        places={
            "16": (0, 0, 300, 106),
            "OviIdea": (0, 170, 300, 360),
            notes.MODEL_LINKS: (0, 600, 300, 270),
            "TextGenerate": (340, 0, 300, 530),
            notes.ABOUT: (340, 600, 620, 270),
            "OviAnswer": (680, 0, 280, 330),
            "PreviewAny": (1000, 0, 420, 190),
            IDEA.title: (1000, 260, 420, 610),
            "SaveVideo": (1460, 260, 380, 400),
        },
        groups={},
        about=notes.ABOUT_IDEA,
        links=notes.LINKS_FOR_IDEA,
        boxes=[IDEA],
        files={"16": [notes.LANGUAGE_MODEL]},
    ),
    "Ovi Own Audio": Template(
        prompt="ovi_own_audio",
        places={
            notes.MODEL_LINKS: (0, 0, 400, 390),
            notes.ABOUT: (0, 450, 400, 430),
            "LoadImage": (440, 0, 224, 320),
            "LoadAudio": (440, 400, 224, 136),
            OWN_AUDIO.title: (720, 0, 460, 880),
            "SaveVideo": (1220, 0, 420, 420),
        },
        groups={},
        about=notes.ABOUT_OWN_AUDIO,
        boxes=[OWN_AUDIO],
    ),
    "Ovi Person 1 Face and Voice": Template(
        prompt="ovi_person",
        places={
            notes.MODEL_LINKS: (0, 0, 380, 420),
            notes.ABOUT: (0, 480, 380, 480),
            "LoadImage": (420, 0, 224, 320),
            "ImageCropV2": (674, 0, 224, 420),
            "LoadAudio": (674, 500, 224, 136),
            ONE_PERSON.title: (944, 0, 440, 960),
            "SaveVideo": (1424, 0, 376, 400),
        },
        groups={},
        about=notes.ABOUT_PERSON,
        links=notes.LINKS_FOR_PERSONS,
        model=notes.DREAMID_FP8,
        boxes=[ONE_PERSON],
    ),
    "Ovi Person 2 Dialogue": Template(
        prompt="ovi_dialogue",
        places={
            "20": (12, 0, 224, 314),
            "21": (272, 0, 210, 370),
            "22": (12, 360, 224, 136),
            "26": (12, 600, 224, 136),
            "24": (12, 790, 224, 314),
            "25": (272, 720, 210, 370),
            notes.ABOUT: (560, 0, 440, 330),
            TWO_PERSONS.title: (560, 400, 440, 690),
            notes.MODEL_LINKS: (1040, 0, 380, 330),
            "SaveVideo": (1040, 400, 380, 400),
        },
        groups={"Person 1": ["20", "21", "22"], "Person 2": ["24", "25", "26"]},
        about=notes.ABOUT_DIALOGUE,
        links=notes.LINKS_FOR_PERSONS,
        model=notes.DREAMID_FP8,
        boxes=[TWO_PERSONS],
    ),
    "Ovi Person 3 Story": Template(
        prompt="ovi_story",
        places={
            MODELS.title: (0, 0, 400, 280),
            "20": (0, 350, 224, 314),
            "24": (0, 714, 224, 314),
            "22": (260, 770, 224, 136),
            "26": (260, 956, 224, 136),
            "OviStoryboard": (704, 0, 480, 1092),
            "SaveVideo": (1214, 0, 280, 440),
            notes.MODEL_LINKS: (1214, 500, 280, 592),
            notes.ABOUT: (1524, 0, 280, 1092),
        },
        groups={},
        about=notes.ABOUT_STORY,
        links=notes.LINKS_FOR_PERSONS,
        model=notes.DREAMID_FP8,
        boxes=[MODELS],
    ),
    "Ovi Several GPUs": Template(
        prompt="ovi_several_gpus",
        places=LOADERS
        | {
            "OviParallel": (306, 0, 210, 82),
            "SelectVAEDevice": (306, 690, 210, 58),
            "OviAudioVAELoader": (306, 800, 210, 82),
            notes.MODEL_LINKS: (0, 320, 516, 310),
            "OviGuidance": (564, 0, 136, 0),
            notes.VIDEO_NEGATIVE: (564, 190, 210, 90),
            notes.AUDIO_NEGATIVE: (564, 330, 210, 90),
            "OviTextEncode": (800, 40, 280, 380),
            SIZE_AND_SEED.title: (1116, 0, 200, 320),
            "OviDecode": (1352, 0, 210, 410),
            "CreateVideo": (1592, 0, 134, 0),
            "SaveVideo": (1592, 70, 236, 400),
            notes.ABOUT: (800, 560, 762, 322),
        },
        groups={"1 Load models on several GPUs": [*LOADED, "OviParallel", "SelectVAEDevice"]}
        | {title: keys for title, keys in GROUPS.items() if keys is not LOADED},
        about=notes.ABOUT_SEVERAL_GPUS,
        boxes=[SIZE_AND_SEED],
        feeds=FEEDS,
    ),
    "Ovi Storyboard 1 Three Shots": Template(
        prompt="ovi_storyboard",
        places={
            MODELS.title: (0, 0, 440, 300),
            notes.MODEL_LINKS: (0, 360, 440, 250),
            notes.ABOUT: (0, 670, 440, 330),
            "OviStoryboard": (480, 0, 520, 1000),
            "SaveVideo": (1040, 0, 440, 420),
        },
        groups={},
        about=notes.ABOUT_STORYBOARD,
        boxes=[MODELS],
    ),
    "Ovi Storyboard 2 Own Audio": Template(
        prompt="ovi_storyboard_own_audio",
        places={
            MODELS.title: (0, 0, 400, 280),
            "LoadAudio": (176, 350, 224, 136),
            notes.MODEL_LINKS: (0, 560, 400, 250),
            notes.ABOUT: (0, 870, 400, 220),
            "OviStoryboard": (480, 0, 520, 1090),
            "SaveVideo": (1040, 0, 440, 420),
        },
        groups={},
        about=notes.ABOUT_STORYBOARD_AUDIO,
        boxes=[MODELS],
    ),
    "Ovi Training 1 Clips": Template(
        prompt="ovi_training_clips",
        places={
            "LoadVideoTextDataSetFromFolder": (0, 0, 400, 78),
            "CLIPLoader": (0, 180, 400, 106),
            "VAELoader": (0, 340, 400, 58),
            "OviAudioVAELoader": (0, 450, 400, 82),
            notes.MODEL_LINKS: (0, 640, 400, 220),
            "OviTrainingClips": (480, 0, 420, 460),
            notes.ABOUT: (480, 560, 420, 300),
            "PreviewImage": (980, 0, 520, 860),
        },
        groups={
            "1 Your videos": ["LoadVideoTextDataSetFromFolder"],
            "2 Load models": ["CLIPLoader", "VAELoader", "OviAudioVAELoader"],
            "3 Clips": ["OviTrainingClips"],
            "4 What will be learned": ["PreviewImage"],
        },
        about=notes.ABOUT_TRAINING_CLIPS,
        links=notes.LINKS_FOR_TRAINING,
    ),
}
BLUEPRINTS = {  # boxes that ComfyUI's search finds, by title: ComfyUI's category for them, and what they do
    TEXT_TO_VIDEO.title: {
        "category": "Video generation and editing/Text to video",
        "description": "Generates video and audio together, including speech, from a prompt with Ovi.",
    },
    IMAGE_TO_VIDEO.title: {
        "category": "Video generation and editing/Image to video",
        "description": "Generates video and audio together from a start image and a prompt with Ovi.",
    },
}
