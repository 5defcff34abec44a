"""Run two of the shipped workflows on real ComfyUI, each to an mp4 with audio in output/.

python -m authoring.demo COMFYUI                   the miniature's weights (docs/miniature.md), on the CPU
python -m authoring.demo COMFYUI --say "ma so ti"  only the talking face, with other syllables
python -m authoring.demo COMFYUI WEIGHTS           the weights in the ComfyUI folder WEIGHTS, the graphs unchanged
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import torch
from PIL import Image
from torch import Tensor

from miniature import WEIGHTS, figures, judge, measure, speech, world
from tests.support import ROOT
from tests.support.comfy_server import Server

LOADERS = {  # by node type: its stand-in, and whether that has an input for the world
    "CLIPLoader": ("OviMiniatureText", True),
    "VAELoader": ("OviMiniatureVideoVAE", False),
    "OviAudioVAELoader": ("OviMiniatureAudioVAE", True),
}
OUTPUT = ROOT / "output"


@dataclass(frozen=True)
class Clip:
    """What the miniature generates with a workflow."""

    world: str  # as the stand-ins name it
    weights: Path
    prompt: str
    sampling: Mapping[str, dict[str, Any]]  # by node type: what suits the weights
    start: Tensor  # the first frame [H, W, 3] of a scene like it, for workflows that start from an image
    describe: Callable[[Tensor, Tensor, Path], None]  # frames, waveform, and where the page goes

    def settings(self) -> dict[str, dict[str, Any]]:
        """Return what suits the miniature, by node type."""
        height, width, _ = self.start.shape
        size = {"width": width, "height": height, "length": world.FRAMES}
        return {
            "OviModelLoader": {"model_name": self.weights.name},
            "OviTextEncode": {"prompt": self.prompt, "video_negative": "", "audio_negative": ""},
            **self.sampling,
            "EmptyOviLatent": size,
            "OviImageToVideo": size,
            "LoadImage": {"image": "start.png"},
        }


def talking(syllables: Sequence[str] | None = None) -> Clip:
    """Return a clip of a face that says these syllables, or those of a scene."""
    scene = speech.scene(world.HELD_OUT)
    if syllables:
        pace = scene.pace if len(syllables) in speech.COUNTS[scene.pace] else "fast"
        scene = speech.retimed(dataclasses.replace(scene, syllables=tuple(syllables), pace=pace), scene.seed)

    def describe(frames: Tensor, waveform: Tensor, page: Path) -> None:
        (clip,) = judge.observed(frames[None], waveform[None])
        figures.talk(frames, waveform, clip).save(page, optimize=True)
        heard = " ".join(clip.heard.syllables) or "nothing"
        print(f"    the prompt says {' '.join(scene.syllables)}, the recogniser hears {heard}")
        print(f"    {page.relative_to(ROOT)} shows the frames above the spectrogram, with the syllables")

    sampling = _sampling(steps=10, cfg=1.0, skip_blocks="")  # a larger cfg of the video changes the face's colour
    start = speech.frames([scene])[0, 0]
    return Clip("talking", WEIGHTS / "ovi_talking.safetensors", scene.caption, sampling, start, describe)


def bouncing() -> Clip:
    """Return a clip of a ball."""
    scene = world.scene(world.HELD_OUT + 1)

    def describe(frames: Tensor, waveform: Tensor, page: Path) -> None:
        seen, heard = measure.bounces(frames), measure.onsets(waveform)
        print(f"    the ball hits the floor at {listed(seen)} s, the bell rings at {listed(heard)} s")

    sampling = _sampling(steps=20, cfg=2.0, skip_blocks="2")
    start = world.frames(scene)[0]
    return Clip("ball", WEIGHTS / "ovi_miniature.safetensors", scene.caption, sampling, start, describe)


def _sampling(steps: int, cfg: float, skip_blocks: str) -> dict[str, dict[str, Any]]:
    """Return the settings of sampling, by node type."""
    guidance = {"audio_cfg": 2.0, "skip_blocks": skip_blocks}
    return {"OviGuidance": guidance, "CFGGuider": {"cfg": cfg}, "OviScheduler": {"steps": steps}}


def said(text: str) -> list[str]:
    """Read the syllables of `--say`.

    Raises ValueError where they are too few or too many, or others than the miniature knows.
    """
    syllables = text.split()
    counts = speech.COUNTS["fast"]
    if len(syllables) not in counts or not set(syllables) <= set(speech.SYLLABLES):
        raise ValueError(
            f"The miniature says {min(counts)} to {max(counts)} of the syllables "
            f'{", ".join(speech.SYLLABLES)}, not {text!r}: write, for instance, --say "ma so ti".'
        )
    return syllables


def main(argv: Sequence[str] | None = None) -> None:
    """Start ComfyUI, run the workflows through comfy-cli, and describe the clips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path, help="the folder of the ComfyUI to run")
    parser.add_argument("weights", type=Path, nargs="?", help="a ComfyUI folder whose models/ holds the real weights")
    parser.add_argument("--say", help="what the miniature's face says, 3 to 8 syllables")
    args = parser.parse_args(argv)
    if args.say is not None and args.weights:
        parser.error("--say is for the miniature: leave out the folder of the real weights.")
    try:
        clips = {"Ovi 1 Text to Video": talking(None if args.say is None else said(args.say))}
    except ValueError as error:
        parser.error(str(error))
    if args.say is None:
        clips["Ovi 2 Image to Video"] = bouncing()
    OUTPUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        if args.weights:
            options = ["--models-directory", str(args.weights.resolve() / "models")]
        else:
            options = ["--cpu"]
            print("The miniature stands in for Ovi (docs/miniature.md): it knows a talking face and a bouncing ball.")
            models = base / "models" / "diffusion_models"
            models.mkdir(parents=True)
            for clip in clips.values():
                shutil.copy(clip.weights, models)
        with Server(args.comfyui, base, *options) as server:
            for title, clip in clips.items():
                run(server, base, title, None if args.weights else clip)


def run(server: Server, base: Path, title: str, clip: Clip | None) -> None:
    """Run a workflow, as it is or fitted to a clip of the miniature; copy the video to output/ and describe it."""
    workflow = ROOT / "workflows" / f"{title}.json"
    print(f"\n{workflow.relative_to(ROOT)}")
    started = time.monotonic()
    graph = fitted(server, workflow, base, clip) if clip else workflow
    comfy_cli(server, base, "--workflow", str(graph), "--wait", "--timeout", "3600")
    saved = max((base / "output").rglob("*.mp4"), key=lambda path: path.stat().st_mtime)
    video = Path(shutil.copy(saved, OUTPUT / f"{title}.mp4"))
    frames = describe(video, base / "audio.wav", time.monotonic() - started)
    if clip:
        waveform = torch.from_numpy(soundfile.read(base / "audio.wav", dtype="float32")[0])
        clip.describe(torch.from_numpy(frames) / 255, waveform, OUTPUT / f"{title}.png")


def fitted(server: Server, workflow: Path, folder: Path, clip: Clip) -> Path:
    """Write a workflow as a prompt for the miniature; print what was changed."""
    answer = comfy_cli(server, folder, "--workflow", str(workflow), "--print-prompt", json_answer=True)
    prompt = json.loads(answer)["data"]["prompt"]
    Image.fromarray(clip.start.mul(255).round().byte().numpy()).save(folder / "input" / "start.png")
    print(f"  prompt: {clip.prompt}\n  changed to fit the miniature:")
    for node in prompt.values():
        kind = node["class_type"]
        if stand_in(node, clip.world):
            world_of_it = f", world {clip.world!r}" if node["inputs"] else ""
            print(f"    {kind} -> {node['class_type']}{world_of_it}")
        for name, value in clip.settings().get(kind, {}).items():
            print(f"    {kind} {name}: {str(node['inputs'][name])[:40]!r} -> {value!r}")
            node["inputs"][name] = value
    path = folder / f"{workflow.stem}.api.json"
    path.write_text(json.dumps(prompt))
    return path


def stand_in(node: dict[str, Any], world: str) -> bool:
    """Replace a loader of a prompt, in place, by the miniature's for a world; return whether it is one."""
    if node["class_type"] not in LOADERS:
        return False
    loader, has_world = LOADERS[node["class_type"]]
    node.update(class_type=loader, inputs={"world": world} if has_world else {})
    return True


def comfy_cli(server: Server, home: Path, *arguments: str, json_answer: bool = False) -> str:
    """Call `comfy run` on the server, untracked and with a home of its own; it prints, or its answer is returned."""
    command = [sys.executable, "-m", "comfy_cli", "--json" if json_answer else "--no-json", "run", *arguments]
    command += ["--host", "127.0.0.1", "--port", str(server.port)]
    environment = os.environ | {"DO_NOT_TRACK": "1", "HOME": str(home), "NO_PROXY": "127.0.0.1"}
    answer = subprocess.PIPE if json_answer else None
    done = subprocess.run(command, env=environment, text=True, stdout=answer, check=False)
    if done.returncode:
        sys.exit(f"comfy-cli failed: {done.stdout or 'see above'}")
    return done.stdout or ""


def listed(times: list[float]) -> str:
    """Seconds, to hundredths."""
    return ", ".join(f"{time:.2f}" for time in times) or "no"


def describe(clip: Path, wave: Path, seconds: float) -> np.ndarray:
    """Read a clip, print its streams, frames and durations, and return its frames [T, H, W, 3], 0 to 255.

    Its audio is written to the wav file `wave`.
    """
    with av.open(clip) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video)])
        container.seek(0)
        samples = np.concatenate([block.to_ndarray() for block in container.decode(audio)], axis=1)
        soundfile.write(wave, samples.T, audio.rate)
        print(f"  {clip.relative_to(ROOT)}, generated in {seconds:.0f} s")
        print(
            f"    video: {video.codec_context.name}, {video.width} x {video.height}, {len(frames)} frames "
            f"at {video.average_rate} per second, {float(video.duration * video.time_base):.3f} s"
        )
        heard = soundfile.info(wave)
        level = 20 * np.log10(np.sqrt(np.mean(np.square(soundfile.read(wave)[0]))))
        print(
            f"    audio: {audio.codec_context.name}, {heard.samplerate} Hz, {heard.channels} channel(s), "
            f"{float(audio.duration * audio.time_base):.3f} s, mean level {level:.0f} dB"
        )
    return frames


if __name__ == "__main__":
    main()
