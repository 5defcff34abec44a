"""Run two of the shipped workflows on real ComfyUI, each to an mp4 with audio in output/.

python -m authoring.demo COMFYUI              the miniature's weights (docs/miniature.md), on the CPU
python -m authoring.demo COMFYUI WEIGHTS      the weights in the ComfyUI folder WEIGHTS, the graphs unchanged
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import torch
from PIL import Image

from miniature import WEIGHTS, measure, world
from tests.support import ROOT
from tests.support.comfy_server import Server

from . import notes

MODEL = "diffusion_models/" + notes.file_name(notes.FP8)  # the file that the graphs name
LOADERS = {  # by node type: its stand-in
    "CLIPLoader": "OviMiniatureText",
    "VAELoader": "OviMiniatureVideoVAE",
    "OviAudioVAELoader": "OviMiniatureAudioVAE",
}
SIZE = {"width": world.WIDTH, "height": world.HEIGHT, "length": world.FRAMES}
SETTINGS: dict[str, dict[str, Any]] = {  # by node type: what suits the miniature
    "OviTextEncode": {"video_negative": "", "audio_negative": ""},
    "OviGuidance": {"audio_cfg": 2.0, "skip_blocks": "2"},
    "CFGGuider": {"cfg": 2.0},
    "OviScheduler": {"steps": 20},
    "EmptyOviLatent": SIZE,
    "OviImageToVideo": SIZE,
    "LoadImage": {"image": "ball.png"},
}
SCENES = {"Ovi 1 Text to Video": world.HELD_OUT, "Ovi 2 Image to Video": world.HELD_OUT + 1}  # seeds, by workflow
OUTPUT = ROOT / "output"


def main() -> None:
    """Start ComfyUI, run the workflows through comfy-cli, and describe the clips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path, help="the folder of the ComfyUI to run")
    parser.add_argument("weights", type=Path, nargs="?", help="a ComfyUI folder whose models/ holds the real weights")
    args = parser.parse_args()
    OUTPUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        if args.weights:
            options = ["--models-directory", str(args.weights.resolve() / "models")]
        else:
            options = ["--cpu"]
            print("The miniature stands in for Ovi (docs/miniature.md): all it can generate is a bouncing ball.")
            (base / "models" / MODEL).parent.mkdir(parents=True)
            shutil.copy(WEIGHTS / "ovi_miniature.safetensors", base / "models" / MODEL)
        with Server(args.comfyui, base, *options) as server:
            for title in SCENES:
                workflow = ROOT / "workflows" / f"{title}.json"
                print(f"\n{workflow.relative_to(ROOT)}")
                started = time.monotonic()
                graph = workflow if args.weights else fitted(server, workflow, base)
                comfy_cli(server, base, "--workflow", str(graph), "--wait", "--timeout", "3600")
                saved = max((base / "output").rglob("*.mp4"), key=lambda path: path.stat().st_mtime)
                clip = Path(shutil.copy(saved, OUTPUT / f"{title}.mp4"))
                frames = describe(clip, base / "audio.wav", time.monotonic() - started)
                if not args.weights:
                    wave = torch.from_numpy(soundfile.read(base / "audio.wav", dtype="float32")[0])
                    seen, heard = measure.bounces(torch.from_numpy(frames) / 255), measure.onsets(wave)
                    print(f"    the ball hits the floor at {listed(seen)} s, the bell rings at {listed(heard)} s")


def fitted(server: Server, workflow: Path, folder: Path) -> Path:
    """Write a workflow as a prompt for the miniature; print what was changed."""
    answer = comfy_cli(server, folder, "--workflow", str(workflow), "--print-prompt", json_answer=True)
    prompt = json.loads(answer)["data"]["prompt"]
    scene = world.scene(SCENES[workflow.stem])
    first = world.frames(scene)[0].mul(255).round().byte().numpy()
    Image.fromarray(first).save(folder / "input" / "ball.png")
    print(f"  prompt: {scene.caption}\n  changed to fit the miniature:")
    for node in prompt.values():
        kind = node["class_type"]
        if kind in LOADERS:
            node.update(class_type=LOADERS[kind], inputs={})
            print(f"    {kind} -> {LOADERS[kind]}")
        settings = SETTINGS.get(kind, {}) | ({"prompt": scene.caption} if kind == "OviTextEncode" else {})
        for name, value in settings.items():
            print(f"    {kind} {name}: {str(node['inputs'][name])[:40]!r} -> {value!r}")
            node["inputs"][name] = value
    path = folder / f"{workflow.stem}.api.json"
    path.write_text(json.dumps(prompt))
    return path


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
