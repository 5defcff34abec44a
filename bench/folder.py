"""From a folder of videos to a LoRA that loads, timed: `python -m bench.folder COMFYUI`.

Twelve videos of the miniature's ball, of odd rates, sizes and lengths, one of them silent and one broken, go through
the workflow of Ovi Training Clips on a real server; 50 steps of `ovi.tools.train` follow, and a clip with the LoRA.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch
import torch.nn.functional as F
from torch import Tensor

from authoring.demo import LOADERS
from miniature import WEIGHTS, world
from tests.support import ROOT
from tests.support.comfy_server import Server

MODEL, LORA = "ovi_miniature.safetensors", "folder.safetensors"
VIDEOS: dict[str, dict[str, Any]] = {  # by name: frames per second, size, scenes one after the other, loudness
    "pal": {"fps": 25.0},
    "ntsc": {"fps": 30000 / 1001},
    "film": {"fps": 24000 / 1001},
    "sixty": {"fps": 60.0},
    "twelve": {"fps": 12.0},
    "large": {"size": (384, 384)},
    "wide": {"size": (320, 180)},
    "tall": {"size": (120, 200)},
    "two_scenes": {"scenes": 2},
    "short": {"seconds": 0.6},
    "silent": {"loudness": 0.0},
    "broken": {},
}


def write(folder: Path, name: str, seed: int, **odd: Any) -> None:
    """Write a video of a scene, and beside it the caption."""
    scene = world.scene(seed)
    (folder / f"{name}.txt").write_text(scene.caption)
    fps, seconds = odd.get("fps", world.FPS), odd.get("seconds", world.FRAMES / world.FPS)
    times = torch.arange(round(seconds * fps)) / fps
    frames = torch.cat(
        [world.balls(scene.colour, world.RADII[scene.size], scene.heights(times))] * odd.get("scenes", 1)
    )
    wave = world.waveform(scene)[: round(seconds * world.RATE)].repeat(odd.get("scenes", 1)) * odd.get("loudness", 1.0)
    encode(folder / f"{name}.mp4", frames, wave, fps, odd.get("size", (world.WIDTH, world.HEIGHT)))


def encode(path: Path, frames: Tensor, wave: Tensor, fps: float, size: tuple[int, int]) -> None:
    """Encode frames [T, H, W, 3] from 0 to 1, resized to a width and height, and a waveform [samples] as mp4."""
    resized = F.interpolate(frames.movedim(-1, 1), size[::-1], mode="bilinear").movedim(1, -1)
    with av.open(path, "w") as container:
        video = container.add_stream("libx264", Fraction(fps).limit_denominator(1001))
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        audio = container.add_stream("aac", world.RATE, layout="mono")
        for image in resized.mul(255).round().byte().numpy():
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())
        block = av.AudioFrame.from_ndarray(wave[None].numpy(), format="fltp", layout="mono")
        block.sample_rate = world.RATE
        container.mux(audio.encode(block))
        container.mux(audio.encode())


def prompt(name: str, **changes: Any) -> dict[str, Any]:
    """Return a shipped workflow with the miniature's loaders; `changes` set inputs wherever they occur."""
    graph = dict(json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text()))
    for node in graph.values():
        if node["class_type"] in LOADERS:
            loader, has_world = LOADERS[node["class_type"]]
            node.update(class_type=loader, inputs={"world": "ball"} if has_world else {})
        node["inputs"] |= {key: value for key, value in changes.items() if key in node["inputs"]}
    return graph


def shown(entry: Any, kind: str, graph: dict[str, Any]) -> str:
    """Return what the only node of a class shows after a run. Raises RuntimeError where the run failed."""
    if entry["status"]["status_str"] != "success":
        raise RuntimeError(json.dumps(entry["status"]))
    (key,) = (key for key, node in graph.items() if node["class_type"] == kind)
    return "\n".join(entry["outputs"][key]["text"])


def main() -> None:
    """Make the videos, the clips, the LoRA and a clip with it; print what is said and how long each takes."""
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        videos, models, loras = base / "input" / "ball", base / "models" / "diffusion_models", base / "models" / "loras"
        for folder in (videos, models, loras):
            folder.mkdir(parents=True)
        shutil.copy(WEIGHTS / MODEL, models)
        for seed, (name, odd) in enumerate(VIDEOS.items()):
            write(videos, name, seed, **odd)
        broken = videos / "broken.mp4"
        broken.write_bytes(broken.read_bytes()[:2000])
        with Server(Path(sys.argv[1]), base, "--cpu") as server:
            began = time.perf_counter()
            graph = prompt("ovi_training_clips", folder="ball", size=world.WIDTH, length=world.FRAMES, shortest=25)
            (clips,) = (node["inputs"] for node in graph.values() if node["class_type"] == "OviTrainingClips")
            clips["folder"] = "clips/ball"
            said = shown(server.wait(server.queue(graph)), "OviTrainingClips", graph)
            print(f"{said}\n\nThe graph took {time.perf_counter() - began:.0f} s.\n", flush=True)

            began = time.perf_counter()
            command = ["ovi.tools.train", str(models / MODEL), "--clips", str(base / "output" / "clips" / "ball")]
            command += ["--out", str(loras / LORA), "--steps", "50", "--rank", "16", "--lr", "1e-3", "--device", "cpu"]
            subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True)
            print(f"\nThe command took {time.perf_counter() - began:.0f} s.\n", flush=True)

            size = {"width": world.WIDTH, "height": world.HEIGHT, "length": world.FRAMES}
            said = {"prompt": world.scene(0).caption, "skip_blocks": "", "steps": 4}
            graph = prompt("ovi_text_to_video", model_name=MODEL, **size, **said)
            strengths = {"video_strength": 1.0, "audio_strength": 1.0}
            graph["lora"] = {"class_type": "OviLoraLoader", "inputs": {"lora_name": LORA, **strengths}}
            for node in graph.values():
                if node["class_type"] == "OviGuidance":
                    graph["lora"]["inputs"]["model"], node["inputs"]["model"] = node["inputs"]["model"], ["lora", 0]
            print(shown(server.wait(server.queue(graph)), "OviLoraLoader", graph))


if __name__ == "__main__":
    main()
