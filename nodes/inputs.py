"""Inputs, and their limits, that several nodes have."""

from __future__ import annotations

from collections.abc import Mapping

from comfy_api.latest import io
from comfy_execution.validation import validate_node_input

from ..ovi import geometry, image

WIDTH, HEIGHT, LENGTH = 1280, 704, 121  # pixels, pixels, frames
MAX_BATCH = 64
MAX_SECONDS = 10_000.0
MAX_TILE = 4096  # pixels
MAX_SCALE = 100.0  # ComfyUI's own limit of a cfg
MAX_STRENGTH = 100.0  # ComfyUI's own limit of a LoRA's strength
PROMPT_STYLE = "960x960_5s"
NO_SECOND_FILE = "none"  # where the first file of a model holds both towers
REGENERATED = {"video": (True, False), "audio": (False, True), "both": (True, True)}  # of video and audio


def mismatch(node: type[io.ComfyNode], input_types: Mapping[str, str]) -> str | None:
    """Say which wire has another type than its socket, as ComfyUI does for nodes without `validate_inputs`."""
    for socket in node.define_schema().inputs:
        needed, received = socket.get_io_type(), input_types.get(socket.id)
        if received is not None and not validate_node_input(received, needed):
            return f"{socket.id} needs {needed}, but {received} is connected to it."
    return None


def size_inputs() -> list[io.Input]:
    """Return inputs for width, height and length."""
    return [
        _pixels_input(
            "width",
            WIDTH,
            "Pixels, a multiple of 32. The checkpoints were trained on about 720x720 or 960x960 pixels in total, in "
            "any shape.",
        ),
        _pixels_input("height", HEIGHT, "Pixels, a multiple of 32."),
        length_input(
            1,
            "Frames at 24 per second, 4n + 1. The audio gets the same duration. 121 frames are 5 seconds; 241 are 10 "
            "seconds, for model_960x960_10s.",
        ),
    ]


def _pixels_input(name: str, default: int, tooltip: str) -> io.Input:
    step = geometry.SIZE_MULTIPLE
    return io.Int.Input(name, default=default, min=step, max=geometry.MAX_SIZE, step=step, tooltip=tooltip)


def length_input(shortest: int, tooltip: str) -> io.Input:
    """Return an input for the length of a clip in frames, at least `shortest`."""
    return io.Int.Input(
        "length", default=LENGTH, min=shortest, max=geometry.MAX_SIZE, step=geometry.FRAMES_PER_LATENT, tooltip=tooltip
    )


def batch_input() -> io.Input:
    """Return an input for the number of clips."""
    return io.Int.Input(
        "batch_size",
        default=1,
        min=1,
        max=MAX_BATCH,
        tooltip="Number of clips to generate at once, each from its own noise.",
    )


def fit_input(what: str) -> io.Input:
    """Return an input for how images or frames of another size are fitted; `what` names them."""
    return io.Combo.Input(
        "fit",
        options=list(image.FITS),
        default="crop",
        tooltip=f"What to do with {what} of another shape: crop from the centre, stretch, pad with black bars, or "
        "refuse.",
    )


def prompt_style_input(styles: list[str], addition: str = "") -> io.Input:
    """Return an input for the form of a prompt; `addition` ends its tooltip."""
    return io.Combo.Input(
        "prompt_style",
        options=styles,
        default=PROMPT_STYLE,
        tooltip="The checkpoint's prompt format: 720x720_5s (model.safetensors) was trained with <AUDCAP>, the 960x960 "
        f"checkpoints with 'Audio:', DreamID-Omni with numbered persons.{addition}",
    )


def text_input(
    name: str, default: str, tooltip: str, *, multiline: bool = True, advanced: bool | None = None
) -> io.Input:
    """Return an input for a prompt or a part of one; an advanced one may be absent from a graph."""
    return io.String.Input(
        name,
        multiline=multiline,
        dynamic_prompts=True,
        default=default,
        tooltip=tooltip,
        advanced=advanced,
        optional=bool(advanced),
    )


def seconds_input(name: str, tooltip: str) -> io.Input:
    """Return an input for a time in a clip, or a part of one."""
    return io.Float.Input(name, default=0.0, min=0.0, max=MAX_SECONDS, step=0.01, tooltip=tooltip)


def scale_input(
    name: str, default: float, tooltip: str, *, advanced: bool | None = None, optional: bool = False
) -> io.Input:
    """Return an input for a scale of guidance, or a shift."""
    return io.Float.Input(
        name,
        default=default,
        min=0.0,
        max=MAX_SCALE,
        step=0.1,
        round=0.01,
        tooltip=tooltip,
        advanced=advanced,
        optional=optional,
    )


def overlap_input(tooltip: str) -> io.Input:
    """Return an input for the time that a clip shares with the one that it continues."""
    return io.Float.Input("overlap", default=1.0, min=0.2, max=60.0, step=0.1, tooltip=tooltip)


def tile_size_input() -> io.Input:
    """Return an input for decoding in tiles."""
    return io.Int.Input(
        "tile_size",
        default=0,
        min=0,
        max=MAX_TILE,
        step=geometry.SIZE_MULTIPLE,
        tooltip="0 decodes whole frames. If this step runs out of memory, decode in tiles of this many pixels: 512 is "
        "a good value.",
    )


def voice_inputs() -> list[io.Input]:
    """Return inputs for the part of a recording that a person's voice is taken from."""
    return [
        io.Float.Input(
            "voice_start",
            default=1.0,
            min=0.0,
            max=MAX_SECONDS,
            step=0.1,
            round=0.01,
            tooltip="Where in the recording the voice is taken from, in seconds. DreamID-Omni was trained on the "
            "second second.",
        ),
        io.Float.Input(
            "voice_seconds",
            default=1.0,
            min=0.1,
            max=10.0,
            step=0.1,
            round=0.01,
            tooltip="How much of the recording is used. DreamID-Omni was trained on 1 second.",
        ),
    ]


def fps_input() -> io.Input:
    """Return an input for the frame rate of connected frames."""
    return io.Float.Input(
        "fps",
        default=geometry.FPS,
        min=1.0,
        max=1000.0,
        step=0.001,
        tooltip="Frames per second of the connected video. Ovi works at 24: at another rate the nearest frames are "
        "used.",
    )


def regenerated_inputs() -> list[io.Input]:
    """Return inputs for the time between which something is regenerated."""
    return [
        seconds_input("remake_start", "Where the regenerated part begins, in seconds from the start of the clip."),
        seconds_input(
            "remake_end",
            "Where the regenerated part ends, in seconds from the start of the clip. 0 is the end of the clip.",
        ),
    ]
