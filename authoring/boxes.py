"""The subgraphs of the templates: which nodes of a prompt are inside, what they show, and where the nodes are.

A key names a node by its id in the prompt, by its title or by its type. A place is left, top, width and height in the
canvas's units, with room for what a run adds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from . import notes

Place = tuple[int, int, int, int]


@dataclass(frozen=True)
class Box:
    """A subgraph: the nodes in it, its inputs and outputs, and the values that it shows, under a name of its own."""

    title: str
    members: Sequence[str]
    inputs: Sequence[tuple[str, str, str]]  # its name, and a node and an input inside
    outputs: Sequence[tuple[str, str, int]]  # its name, and a node and an output inside; no node: it hands on an input
    shown: Sequence[tuple[str, str, str]]  # a node and an input inside, and its name
    places: Mapping[str, Place]
    copies: Sequence[Sequence[str]] = ()  # nodes that a further one of the same subgraph replaces


MODEL_NAMES = [
    ("OviModelLoader", "model_name", "model"),
    ("CLIPLoader", "clip_name", "text_encoder"),
    ("VAELoader", "vae_name", "video_vae"),
    ("OviAudioVAELoader", "vae_name", "audio_vae"),
    ("OviAudioVAELoader", "vocoder_name", "vocoder"),
]


def texts(node: str) -> list[tuple[str, str, str]]:
    """Return the inputs of a text node that a box shows."""
    return [(node, name, name) for name in ("prompt", "video_negative", "audio_negative", "prompt_style")]


def size(node: str) -> list[tuple[str, str, str]]:
    """Return the inputs of a latent node that a box shows."""
    return [(node, name, name) for name in ("width", "height", "length")]


def everything(latent: str) -> list[tuple[str, str, str]]:
    """Return the inputs that a box of a whole workflow shows; `latent` is its latent node."""
    sampling = [("RandomNoise", "noise_seed", "seed"), ("OviScheduler", "steps", "steps")]
    return [*texts("OviTextEncode"), *size(latent), *sampling, *MODEL_NAMES]


def passed(*names: str) -> list[tuple[str, str, int]]:
    """Return outputs that hand on the inputs of these names."""
    return [(name, "", 0) for name in names]


FLAT: dict[str, Place] = {  # text to video with all nodes; also inside the boxes
    "OviModelLoader": (0, 0, 300, 106),
    "CLIPLoader": (0, 300, 300, 106),
    "VAELoader": (0, 860, 300, 58),
    "OviAudioVAELoader": (0, 960, 300, 82),
    "OviGuidance": (350, 0, 250, 394),
    notes.VIDEO_NEGATIVE: (350, 470, 220, 90),
    notes.AUDIO_NEGATIVE: (350, 610, 220, 90),
    "OviTextEncode": (620, 300, 380, 400),
    "RandomNoise": (1060, 0, 260, 82),
    "CFGGuider": (1060, 140, 260, 98),
    "OviUniPCSampler": (1060, 300, 260, 26),
    "OviScheduler": (1060, 390, 260, 130),
    "EmptyOviLatent": (1060, 580, 260, 200),
    "SamplerCustomAdvanced": (1380, 300, 220, 106),
    "OviDecode": (1660, 820, 230, 410),
    "CreateVideo": (1930, 820, 134, 0),
    "SaveVideo": (1930, 890, 420, 570),
}
BOXED = FLAT | {"OviTextEncode": (400, 460, 400, 400), "CreateVideo": (1930, 820, 210, 102)}

TEXT_TO_VIDEO = Box(
    title="Text to Video (Ovi)",
    members=[key for key in FLAT if key not in ("SaveVideo", notes.VIDEO_NEGATIVE, notes.AUDIO_NEGATIVE)],
    inputs=[],
    outputs=[("video", "CreateVideo", 0)],
    shown=everything("EmptyOviLatent"),
    places=BOXED,
)
AROUND_LATENT = [key for key in TEXT_TO_VIDEO.members if key != "EmptyOviLatent"]
IMAGE_TO_VIDEO = replace(
    TEXT_TO_VIDEO,
    title="Image to Video (Ovi)",
    members=[*AROUND_LATENT, "OviImageToVideo"],
    inputs=[("start_image", "OviImageToVideo", "start_image")],
    shown=everything("OviImageToVideo"),
    places=BOXED | {"OviImageToVideo": (1060, 580, 260, 240)},
)


IDEA = replace(
    TEXT_TO_VIDEO,
    title="Prompt to Video (Ovi)",
    members=["2" if key == "CLIPLoader" else key for key in TEXT_TO_VIDEO.members],
    inputs=[("prompt", "OviTextEncode", "prompt")],
    shown=[each for each in TEXT_TO_VIDEO.shown if each[1] != "prompt"],
)
FAST = replace(
    TEXT_TO_VIDEO,
    title="Fast Text to Video (Ovi)",
    members=[*TEXT_TO_VIDEO.members, "OviLoraLoader"],
    shown=[
        *TEXT_TO_VIDEO.shown, ("OviLoraLoader", "lora_name", "lora"), ("OviScheduler", "shift", "shift"),
        ("CFGGuider", "cfg", "cfg"), ("OviGuidance", "audio_cfg", "audio_cfg"),
    ],
    places=BOXED | {"OviLoraLoader": (0, 470, 300, 130)},
)  # fmt: skip
OWN_AUDIO = replace(
    IMAGE_TO_VIDEO,
    title="Audio to Video (Ovi)",
    members=[*AROUND_LATENT, "OviReference"],
    inputs=[("start_image", "OviReference", "start_image"), ("audio", "OviReference", "audio")],
    shown=[*everything("OviReference"), ("OviGuidance", "sync_scale", "sync_scale")],
    places=BOXED | {"OviReference": (1060, 580, 260, 400)},
)
GUIDES = replace(
    TEXT_TO_VIDEO,
    title="Images to Video (Ovi)",
    members=[*TEXT_TO_VIDEO.members, "17", "18", "19"],
    inputs=[(name, guide, "image") for name, guide in (("first", "17"), ("middle", "18"), ("last", "19"))],
    shown=[*everything("EmptyOviLatent"), ("18", "frame", "middle_frame")],
    places=BOXED
    | {"EmptyOviLatent": (400, 930, 260, 200)}
    | {guide: (720, 930 + 260 * index, 260, 200) for index, guide in enumerate(("17", "18", "19"))},
)


def with_persons(title: str, inputs: Sequence[tuple[str, str, str]]) -> Box:
    """Return a box of a whole workflow with persons, whose faces and voices are its inputs."""
    persons = list(dict.fromkeys(person for _, person, _ in inputs))
    width = 330  # of a person's column, in front of the sampler's
    places = {
        key: (left + width * len(persons) * (left >= BOXED["CFGGuider"][0]), top, wide, high)
        for key, (left, top, wide, high) in BOXED.items()
    }
    places |= {person: (860 + width * index, 340, 270, 460) for index, person in enumerate(persons)}
    return replace(
        TEXT_TO_VIDEO,
        title=title,
        members=[*TEXT_TO_VIDEO.members, *persons],
        inputs=inputs,
        places=places | {"EmptyOviLatent": (400, 930, 260, 200)},
    )


ONE_PERSON = with_persons("Person to Video (Ovi)", [("face", "23", "face"), ("voice", "23", "voice")])
TWO_PERSONS = with_persons(  # in the order in which no wires cross
    "Two Persons to Video (Ovi)",
    [("face1", "23", "face"), ("voice1", "23", "voice"), ("voice2", "27", "voice"), ("face2", "27", "face")],
)

MODELS = Box(
    title="Models (Ovi)",
    members=[
        "OviModelLoader", "CLIPLoader", "VAELoader", "OviAudioVAELoader", "OviGuidance", "OviUniPCSampler",
        "OviScheduler",
    ],
    inputs=[],
    outputs=[
        ("model", "OviGuidance", 0), ("clip", "CLIPLoader", 0), ("vae", "VAELoader", 0),
        ("audio_vae", "OviAudioVAELoader", 0), ("sampler", "OviUniPCSampler", 0), ("sigmas", "OviScheduler", 0),
    ],
    shown=[*MODEL_NAMES, ("OviScheduler", "steps", "steps")],
    places=FLAT,
)  # fmt: skip

SAMPLING = ["RandomNoise", "CFGGuider", "OviUniPCSampler", "OviScheduler", "SamplerCustomAdvanced"]
SAMPLED = [("latent", "SamplerCustomAdvanced", 0)]
CONDITIONED = [
    ("model", "CFGGuider", "model"),
    ("positive", "CFGGuider", "positive"),
    ("negative", "CFGGuider", "negative"),
]
SCHEDULED = [
    ("RandomNoise", "noise_seed", "seed"), ("OviScheduler", "steps", "steps"), ("OviScheduler", "shift", "shift"),
    ("CFGGuider", "cfg", "cfg"),
]  # fmt: skip
SIZE_AND_SEED = Box(
    title="Sampler (Ovi)",
    members=["EmptyOviLatent", *SAMPLING],
    inputs=CONDITIONED,
    outputs=SAMPLED,
    shown=[*size("EmptyOviLatent"), *SCHEDULED],
    places=FLAT,
)
WINDOWS = Box(
    title="Sampler with Windows (Ovi)",
    members=["EmptyOviLatent", "ContextWindowsManual", *SAMPLING],
    inputs=[("model", "ContextWindowsManual", "model"), *CONDITIONED[1:]],
    outputs=SAMPLED,
    shown=[
        *size("EmptyOviLatent"), *SCHEDULED, ("ContextWindowsManual", "context_length", "context_length"),
        ("ContextWindowsManual", "context_overlap", "context_overlap"),
    ],
    places=FLAT | {"ContextWindowsManual": (730, 0, 270, 380)},
)  # fmt: skip
FIRST_PASS = replace(SIZE_AND_SEED, outputs=[*SAMPLED, *passed("model", "positive", "negative")])
SECOND_PASS = Box(
    title="Second Pass (Ovi)",
    members=[
        "LTXVSeparateAVLatent", "LatentUpscaleBy", "LTXVConcatAVLatent", "OviRemake", "20", "21", "22", "23", "24",
    ],
    inputs=[("latent", "LTXVSeparateAVLatent", "av_latent"), *((name, "23", name) for name, *_ in CONDITIONED)],
    outputs=[("latent", "22", 0)],
    shown=[
        ("LatentUpscaleBy", "scale_by", "scale_by"), ("20", "noise_seed", "seed"), ("21", "steps", "steps"),
        ("21", "denoise", "denoise"), ("23", "cfg", "cfg"),
    ],
    places={
        "LTXVSeparateAVLatent": (0, 300, 230, 46),
        "LatentUpscaleBy": (280, 260, 250, 82),
        "LTXVConcatAVLatent": (590, 300, 230, 46),
        "OviRemake": (880, 300, 270, 200),
        "20": (880, -330, 270, 82),
        "23": (880, -190, 270, 98),
        "24": (880, -40, 270, 26),
        "21": (880, 50, 270, 130),
        "22": (1210, 0, 250, 106),
    },
)  # fmt: skip
YOUR_VIDEO = Box(
    title="Your Video (Ovi)",
    members=["17", "OviReference"],
    inputs=[
        ("video", "17", "video"),
        ("vae", "OviReference", "vae"),
        ("audio_vae", "OviReference", "audio_vae"),
    ],
    outputs=[("latent", "OviReference", 0), *passed("audio_vae", "video")],
    shown=[*size("OviReference"), ("OviReference", "fit", "fit")],
    places={"17": (0, 0, 220, 66), "OviReference": (280, 0, 300, 500)},
)
NEW_AUDIO = Box(
    title="New Audio",
    members=["18", "CreateVideo"],
    inputs=[("audio", "CreateVideo", "audio"), ("video", "18", "video")],
    outputs=[("video", "CreateVideo", 0)],
    shown=[],
    places={"18": (0, 0, 220, 66), "CreateVideo": (280, 0, 210, 102)},
)
LARGER = Box(
    title="Upscale and Interpolate",
    members=["UpscaleModelLoader", "ImageUpscaleWithModel", "FrameInterpolationModelLoader", "FrameInterpolate"],
    inputs=[("images", "ImageUpscaleWithModel", "image")],
    outputs=[("images", "FrameInterpolate", 0)],
    shown=[
        ("UpscaleModelLoader", "model_name", "upscale_model"),
        ("FrameInterpolationModelLoader", "model_name", "interpolation_model"),
        ("FrameInterpolate", "multiplier", "multiplier"),
    ],
    places={
        "UpscaleModelLoader": (0, 0, 300, 58),
        "ImageUpscaleWithModel": (360, 0, 260, 46),
        "FrameInterpolationModelLoader": (360, 130, 300, 58),
        "FrameInterpolate": (720, 0, 260, 78),
    },
)
PASSED = passed("model", "clip", "vae", "audio_vae")
FIRST_CLIP = Box(
    title="First Clip (Ovi)",
    members=["6", "EmptyOviLatent", "10", "11", "12"],
    inputs=[
        ("model", "10", "model"), ("clip", "6", "clip"), ("vae", "11", "vae"), ("audio_vae", "11", "audio_vae"),
    ],
    outputs=[("video", "12", 0), *PASSED],
    shown=[
        *texts("6"),
        *size("EmptyOviLatent"), ("10", "seed", "seed"), ("10", "steps", "steps"), ("10", "cfg", "cfg"),
    ],
    places={
        "6": (0, 0, 400, 400), "EmptyOviLatent": (0, 460, 270, 200), "10": (460, 0, 270, 262),
        "11": (790, 400, 240, 410), "12": (1090, 400, 210, 102),
    },
)  # fmt: skip
NEXT_CLIP = Box(
    title="Next Clip (Ovi)",
    members=["7", "13", "14", "15", "16", "21"],
    inputs=[
        ("video", "13", "clip"), ("video", "21", "clips.clip0"), ("model", "14", "model"), ("clip", "7", "clip"),
        ("vae", "13", "vae"), ("vae", "15", "vae"), ("audio_vae", "13", "audio_vae"), ("audio_vae", "15", "audio_vae"),
    ],
    outputs=[("video", "21", 0), *PASSED],
    shown=[
        *texts("7"),
        ("13", "overlap", "overlap"), ("13", "length", "length"), ("14", "seed", "seed"), ("14", "steps", "steps"),
        ("14", "cfg", "cfg"),
    ],
    places={
        "7": (0, 0, 400, 400), "13": (0, 460, 270, 220), "14": (460, 0, 270, 262), "15": (790, 400, 240, 410),
        "16": (1090, 400, 210, 102), "21": (1360, 400, 220, 150),
    },
    copies=[["8", "17", "18", "19", "20", "22"]],
)  # fmt: skip
