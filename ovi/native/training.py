"""The files that training reads, made by ComfyUI's own VAEs and text encoder from planned clips, or from prompts alone.

A file is complete or absent, and is not made again unless its video, its caption or a setting changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_management
import comfy.utils
import folder_paths
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import footage, geometry, image, prompt
from ..config import TEXT_LEN
from ..quote import quoted
from ..writing import writing
from .footage import READ_ERRORS, Clip, Report, Settings
from .text import encode as encode_text
from .vae import encode

MADE_FROM = "made_from"  # in the metadata of a file


@dataclass(frozen=True)
class Encoders:
    """ComfyUI's text encoder and VAEs; None for what is not connected."""

    text: Any
    video: Any
    audio: Any


def folder(name: str) -> Path:
    """Return a folder inside ComfyUI's output folder, which need not exist. Raises ValueError for one outside of it."""
    root = Path(folder_paths.get_output_directory()).resolve()
    path = (root / name.strip()).resolve()
    if path == root or root not in path.parents:
        raise ValueError(
            f"The folder is {quoted(name)}, but must be one inside of ComfyUI's output folder, such as clips/my_clips."
        )
    return path


def captions(texts: Sequence[str] | None, encoder: Any) -> Sequence[str]:
    """Return the texts. Raises ValueError without any, and without a text encoder."""
    if not texts:
        raise ValueError("There are no texts: connect captions for videos, or prompts, to texts.")
    if encoder is None:
        raise ValueError("There are texts but no CLIP: connect 'Load CLIP', type wan, to clip.")
    return texts


def write_clips(report: Report, settings: Settings, encoders: Encoders, into: Path) -> None:
    """Encode the clips of a plan that are not in a folder yet. Raises ValueError for another CLIP than UMT5-XXL."""
    into.mkdir(parents=True, exist_ok=True)
    # What a video in memory shows is not in the fingerprint, so its clips are encoded each time.
    missing = [
        clip for clip in report.clips if clip.source.path is None or not _is_written(into, clip.name, clip.made_from)
    ]
    report.kept = len(report.clips) - len(missing)
    progress = comfy.utils.ProgressBar(2 * len(missing))
    contexts: dict[str, Tensor] = {}  # the text encoder is loaded once, for all captions
    for clip in missing:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if clip.text not in contexts:
            contexts[clip.text] = _context(encoders.text, clip.text, clip.source.name, report)
        progress.update(1)
    for clip in missing:
        comfy.model_management.throw_exception_if_processing_interrupted()
        tensors = _tensors(clip, settings, encoders, report)
        if tensors:
            _write(into, clip.name, tensors | {"context": contexts[clip.text]}, clip.made_from)
            report.encoded += 1
        else:
            report.clips.remove(clip)
        progress.update(1)
    report.notes += _others(into, {clip.name for clip in report.clips})


def _tensors(clip: Clip, settings: Settings, encoders: Encoders, report: Report) -> dict[str, Tensor]:
    """Encode a clip to "video" [48, F, h, w], normalised, and "audio" [20, L]; say why where that is not possible."""
    try:
        frames, wave = _media(clip, settings, encoders.audio.audio_sample_rate, report)
    except READ_ERRORS as error:
        report.leave_out(clip.name, error)
        return {}
    try:
        video = encode(encoders.video, frames, f"frames of {clip.name}")
        audio = encode(encoders.audio, wave.view(1, -1, 1), f"audio of {clip.name}")
    except ValueError as error:  # NaN: anything else is no fault of the clip
        report.leave_out(clip.name, error)
        return {}
    latents = geometry.audio_latents(len(frames))
    return {"video": comfy.latent_formats.Wan22().process_in(video)[0], "audio": audio[0, :, :latents]}


def _media(clip: Clip, settings: Settings, rate: int, report: Report) -> tuple[Tensor, Tensor]:
    """Return a clip's frames [T, H, W, 3] in its size and its audio [S] at `rate`, and note what is odd about them.

    Raises one of READ_ERRORS for a clip that cannot be read, or is to be left out.
    """
    frames, audio = clip.source.read(clip.piece)
    length = footage.longest_within(len(frames), footage.lengths(settings.longest, settings.shortest))
    if length is None:
        raise ValueError(f"only {len(frames)} of its {clip.piece.frames} frames can be read")
    if length < clip.piece.frames:
        report.notes.append(f"{clip.name} has {length} frames: the video ends before the {clip.piece.frames} planned")
    wave, notes = footage.wave(audio, length, rate)
    if footage.is_silent(wave):
        what = "it has no audio" if audio is None else "its audio is silent"
        if settings.without_audio == footage.SKIP:
            raise ValueError(f"{what} (without_audio is skip)")
        notes = [what]
    report.notes += [f"{clip.name}: {note}" for note in notes]
    return image.fit_frames(frames[:length], *clip.size, "crop", clip.name, antialias=True), wave


def _context(encoder: Any, text: str, name: str, report: Report) -> Tensor:
    """Encode a caption to [T, text_dim], without padding."""
    encoded = encode_text(encoder, text)
    if encoded.truncated:
        report.notes.append(f"{name}: of the caption's {encoded.tokens} tokens Ovi reads the first {TEXT_LEN}")
    context: Tensor = encoded.conditioning[0][0]
    return context[0, : min(encoded.tokens, TEXT_LEN)]


def write_prompts(texts: Sequence[str], style: str, encoder: Any, into: Path) -> Report:
    """Encode each line of texts to a file with its "context" alone, for training without videos."""
    into.mkdir(parents=True, exist_ok=True)
    report = Report()
    names: set[str] = set()
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    progress = comfy.utils.ProgressBar(len(lines))
    for number, line in enumerate(lines, 1):
        comfy.model_management.throw_exception_if_processing_interrupted()
        name = f"prompt_{number:05}"
        try:
            text = prompt.format_prompt(line, style).text
        except ValueError as error:
            report.leave_out(name, error)
            continue
        made_from, names = footage.fingerprint(text=text), names | {name}
        if _is_written(into, name, made_from):
            report.kept += 1
        else:
            _write(into, name, {"context": _context(encoder, text, name, report)}, made_from)
            report.encoded += 1
        progress.update(1)
    report.notes += _others(into, names)
    return report


def _is_written(into: Path, name: str, made_from: str) -> bool:
    """Return whether a file is there and up to date."""
    path = into / f"{name}.safetensors"
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get(MADE_FROM) == made_from
    except (SafetensorError, OSError):
        return False


def _write(into: Path, name: str, tensors: Mapping[str, Tensor], made_from: str) -> None:
    """Write a file, complete or not at all. Raises OSError where it cannot be written."""
    plain = {key: tensor.detach().float().cpu().contiguous() for key, tensor in tensors.items()}
    with writing(into / f"{name}.safetensors") as part:
        save_file(plain, part, metadata={MADE_FROM: made_from})


def _others(into: Path, names: set[str]) -> list[str]:
    """Say which files in a folder are none of these: training would read them too."""
    others = sorted(path.name for path in into.glob("*.safetensors") if path.stem not in names)
    if not others:
        return []
    count = f"{len(others)} files" if len(others) > 1 else "A file"
    listed = ", ".join(others[:3]) + ", …" * (len(others) > 3)
    return [f"{count} in the folder from another run ({listed}): training reads all, so delete what is not meant"]
