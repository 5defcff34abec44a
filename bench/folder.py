"""From a folder of videos to a LoRA that loads, timed: `python -m bench.folder COMFYUI`.

Twelve videos of the miniature's ball, of odd rates, sizes and lengths, one of them silent and one broken, go through
the workflow of Ovi Training Clips on a real server; 50 steps of `ovi.tools.train` follow, and a clip with the LoRA.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from authoring.demo import stand_in
from miniature import WEIGHTS, world
from tests.support import ROOT, workflows
from tests.support.comfy_server import Server, error
from tests.support.videos import encode

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
    width, height = odd.get("size", (world.WIDTH, world.HEIGHT))
    resized = F.interpolate(frames.movedim(-1, 1), (height, width), mode="bilinear").movedim(1, -1)
    images = resized.mul(255).round().byte().numpy()
    encode(folder / f"{name}.mp4", images, fps, (width, height), wave[None].numpy(), world.RATE)


def prompt(name: str, **changes: Any) -> dict[str, Any]:
    """Return a shipped workflow with the miniature's loaders; `changes` set inputs wherever they occur."""
    graph = workflows.prompt(name)
    for node in graph.values():
        stand_in(node, "ball")
        node["inputs"] |= {key: value for key, value in changes.items() if key in node["inputs"]}
    return graph


def shown(server: Server, graph: dict[str, Any], kind: str) -> str:
    """Run a prompt; return what the only node of a class shows. Raises RuntimeError where the run fails."""
    entry = server.wait(server.queue(graph))
    if entry["status"]["status_str"] != "success":
        raise RuntimeError(error(entry))
    return "\n".join(entry["outputs"][workflows.id_of(graph, kind)]["text"])


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
            workflows.node_of(graph, "OviTrainingClips")["inputs"]["folder"] = "clips/ball"
            print(shown(server, graph, "OviTrainingClips"))
            print(f"\nThe graph took {time.perf_counter() - began:.0f} s.\n", flush=True)

            began = time.perf_counter()
            command = ["ovi.tools.train", str(models / MODEL), "--clips", str(base / "output" / "clips" / "ball")]
            command += ["--out", str(loras / LORA), "--steps", "50", "--rank", "16", "--lr", "1e-3", "--device", "cpu"]
            subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True)
            print(f"\nThe command took {time.perf_counter() - began:.0f} s.\n", flush=True)

            size = {"width": world.WIDTH, "height": world.HEIGHT, "length": world.FRAMES}
            said = {"prompt": world.scene(0).caption, "skip_blocks": "", "steps": 4}
            graph = prompt("ovi_text_to_video", model_name=MODEL, **size, **said)
            guidance = workflows.node_of(graph, "OviGuidance")["inputs"]
            inputs = {"model": guidance["model"], "lora_name": LORA, "video_strength": 1.0, "audio_strength": 1.0}
            graph["lora"] = {"class_type": "OviLoraLoader", "inputs": inputs}
            guidance["model"] = ["lora", 0]
            print(shown(server, graph, "OviLoraLoader"))


if __name__ == "__main__":
    main()
