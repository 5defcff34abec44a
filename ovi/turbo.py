"""How a LoRA for few steps says that it is to be sampled, in the metadata of its file.

The key `ovi_sampling` holds a JSON object, such as
{"steps": 4, "shift": 5.0, "cfg": 1.0, "audio_cfg": 1.0, "sampler": "euler"}. Training writes it and Load Ovi LoRA shows
it; nothing sets itself by it. `sampler` is a name of ComfyUI's, or "unipc" for Ovi UniPC. The sigmas are equal steps
from 1 to 0, shifted: those of Ovi Scheduler's solver "dpm++", or of "unipc", which begins a little lower, and never
those of "euler", which end near 0 and then step to 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

KEY = "ovi_sampling"
RANGES = {"steps": (1, 1000), "shift": (0.1, 100), "cfg": (0, 100), "audio_cfg": (0, 100)}  # from and to, both included
MAX_TEXT = 1000  # characters of the JSON, which has about 80
_SAMPLER = re.compile(r"[a-z0-9_]{1,40}")


@dataclass(frozen=True)
class Sampling:
    """The settings that a LoRA was made for."""

    steps: int
    shift: float
    cfg: float  # of the sampler or guider, for the video
    audio_cfg: float
    sampler: str

    def __post_init__(self) -> None:
        """Raise ValueError for settings that no sampler takes."""
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            kinds, kind = ((int,), "a whole number") if name == "steps" else ((int, float), "a number")
            if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
                raise ValueError(f"{name} must be {kind} from {low} to {high}")
        if not isinstance(self.sampler, str) or not _SAMPLER.fullmatch(self.sampler):
            raise ValueError("sampler must be a name of at most 40 small letters, digits and underscores")

    @property
    def solver(self) -> str:
        """What Ovi Scheduler has to be set to."""
        return "unipc" if self.sampler == "unipc" else "dpm++"

    def __str__(self) -> str:
        """Return one line for a note."""
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps"
        settings = f"shift {self.shift:g}, cfg {self.cfg:g}, audio cfg {self.audio_cfg:g}"
        return f"{steps} of {self.sampler}, {settings}; solver {self.solver}"

    def metadata(self) -> dict[str, str]:
        """Return what `read` reads, for the metadata of a safetensors file."""
        return {KEY: json.dumps(asdict(self))}


def read(metadata: Mapping[str, Any]) -> Sampling | None:
    """Return the settings that a file was made for, None where it says nothing.

    Settings of other names are left out. Raises ValueError, in half a sentence, for what is no such object.
    """
    text = metadata.get(KEY)
    if text is None:
        return None
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise ValueError(f"it must be a text of at most {MAX_TEXT} characters")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    names = Sampling.__dataclass_fields__
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{', '.join(missing)} missing")
    return Sampling(**{name: found[name] for name in names})


def note(metadata: Mapping[str, Any]) -> list[str]:
    """Return the line that a node shows of a file: what it was made for, or why that cannot be read; none without."""
    try:
        sampling = read(metadata)
    except ValueError as error:
        return [f"How it is to be sampled ({KEY}) cannot be read: {error}"]
    return [] if sampling is None else [f"Made for {sampling}"]
