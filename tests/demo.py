"""Two of the shipped workflows on real ComfyUI, each to an mp4 with sound in output/.

python tests/demo.py --comfyui COMFYUI              tiny random weights, made on the spot, on the CPU
python tests/demo.py --comfyui COMFYUI WEIGHTS      the weights in the ComfyUI folder WEIGHTS, the graphs unchanged
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

import av
import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # tiny reads the shapes of the audio VAE from ovi/

import tiny  # noqa: E402
from comfy_server import Server  # noqa: E402

WORKFLOWS = [ROOT / "workflows" / "ovi_text_to_video.json", ROOT / "workflows" / "ovi_image_to_video.json"]
OUTPUT = ROOT / "output"


def main() -> None:
    """Start ComfyUI, run the workflows through comfy-cli, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="the ComfyUI to run")
    parser.add_argument("weights", type=Path, nargs="?", help="a ComfyUI folder whose models/ holds the real weights")
    args = parser.parse_args()
    OUTPUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        if args.weights:
            options = ["--models-directory", str(args.weights.resolve() / "models")]
        else:
            options = ["--cpu"]
            tiny.everything(base / "models")
            print("Tiny random weights stand in for the real ones, under their file names: what comes out is noise.")
            print(f"{tiny.VIDEO_VAE} is of the taew2_2 kind, not the Wan 2.2 VAE.")
        with Server(args.comfyui, base, *options) as server:
            for workflow in WORKFLOWS:
                print(f"\n{workflow.relative_to(ROOT)}")
                started = time.monotonic()
                graph = workflow if args.weights else fitted(server, workflow, base)
                comfy_cli(server, base, "--workflow", str(graph), "--wait", "--timeout", "3600")
                made = max((base / "output").rglob("*.mp4"), key=lambda path: path.stat().st_mtime)
                film = Path(shutil.copy(made, OUTPUT / f"{workflow.stem}.mp4"))
                describe(film, base / "sound.wav", time.monotonic() - started)


def fitted(server: Server, workflow: Path, folder: Path) -> Path:
    """Write a workflow as a prompt that a CPU can run; print what was changed."""
    answer = comfy_cli(server, folder, "--workflow", str(workflow), "--print-prompt", json_answer=True)
    prompt = json.loads(answer)["data"]["prompt"]
    print("  changed to fit a CPU:")
    for change in tiny.fit(prompt):
        print(f"    {change}")
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


def describe(film: Path, wave: Path, seconds: float) -> None:
    """Read a film back and print its streams, frames and durations; its sound goes through a wav file."""
    with av.open(film) as container:
        picture, sound = container.streams.video[0], container.streams.audio[0]
        frames = sum(1 for _ in container.decode(picture))
        container.seek(0)
        samples = np.concatenate([block.to_ndarray() for block in container.decode(sound)], axis=1)
        soundfile.write(wave, samples.T, sound.rate)
        print(f"  {film.relative_to(ROOT)}, made in {seconds:.0f} s")
        print(
            f"    picture: {picture.codec_context.name}, {picture.width} x {picture.height}, {frames} frames "
            f"at {picture.average_rate} per second, {float(picture.duration * picture.time_base):.3f} s"
        )
        heard = soundfile.info(wave)
        level = 20 * np.log10(np.sqrt(np.mean(np.square(soundfile.read(wave)[0]))))
        print(
            f"    sound: {sound.codec_context.name}, {heard.samplerate} Hz, {heard.channels} channel(s), "
            f"{float(sound.duration * sound.time_base):.3f} s, mean level {level:.0f} dB"
        )


if __name__ == "__main__":
    main()
