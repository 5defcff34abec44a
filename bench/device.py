"""Time and memory of the full-size model and the VAEs on a device: `python -m bench.device` prints tables in Markdown.

Weights are random and made on the device. Ovi runs in bfloat16 with ComfyUI's layers, attention and rotation, the VAEs
as ComfyUI loads them, in the dtypes that it chooses. Next to each measured peak stands what was predicted: by
`bench/trace.py`, and by what ComfyUI is told before it makes room. 1 GB is 10^9 bytes.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench import comfyui, memory, trace
from bench.weights import draw
from ovi import audio_vae, geometry
from ovi.config import OviConfig
from ovi.model import OviModel

CLIPS = [(704, 704, 121), (960, 960, 121), (960, 960, 241)]  # width, height, frames
DECODED = (960, 960, 121)
ENOUGH = 2.0  # seconds of timed runs, after which there is no other one
TURNS = 3
GB = 1e9


@dataclass(frozen=True)
class Measured:
    """The seconds of the fastest run, and the most bytes that were allocated at once besides those from before it.

    `peak` is None where PyTorch does not count them.
    """

    seconds: float
    peak: int | None

    def cells(self) -> str:
        """Word both for a table."""
        return f"{self.seconds:.2f} s | " + ("not counted" if self.peak is None else f"{self.peak / GB:.2f} GB")


def measure(run: Callable[[], Any], device: torch.device, turns: int = TURNS) -> Measured:
    """Measure a function once it has run before, which does not count: kernels are chosen and compiled then."""
    on_card = device.type == "cuda"
    run()
    times: list[float] = []
    before = 0
    if on_card:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    while len(times) < turns and sum(times) < ENOUGH:
        began = time.perf_counter()
        run()
        if on_card:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return Measured(min(times), torch.cuda.max_memory_allocated() - before if on_card else None)


def random_model(config: OviConfig, device: torch.device) -> OviModel:
    """Return Ovi as ComfyUI runs it, in bfloat16, with random weights that keep its numbers near unit size."""
    model = comfyui.ovi(config, device=device, dtype=torch.bfloat16)
    draw(model)
    return model.eval().requires_grad_(False)


def passes(config: OviConfig, device: torch.device, clips: Sequence[tuple[int, int, int]] = CLIPS) -> Iterator[str]:
    """Yield a row for each clip, and for one and for two of it in a batch."""
    model = random_model(config, device)
    for clip in clips:
        for batch in (1, 2):
            shapes = trace.latents(config, batch, *clip)
            x = [torch.randn(shape, device=device, dtype=torch.bfloat16) for shape in shapes]
            timestep = torch.full((batch,), 500.0, device=device)
            text = torch.randn(batch, config.text_len, config.text_dim, device=device, dtype=torch.bfloat16)
            measured = measure(lambda model=model, x=x, rest=(timestep, text): model(x, *rest), device)
            traced, _ = trace.peak(OviModel, config, shapes, attention=trace.flash, rotate=trace.fused_rotate)
            told = memory.activations(batch, clip)
            width, height, frames = clip
            yield (
                f"| {width} x {height} x {frames}, batch {batch} | {measured.cells()} | {traced / GB:.2f} GB | "
                f"{told / GB:.2f} GB |"
            )


def random_video_vae(device: torch.device) -> Any:
    """Return Wan 2.2's VAE at full size as ComfyUI loads it."""
    import comfy.sd
    from comfy.ldm.wan.vae2_2 import WanVAE

    sizes = {"dim": 160, "z_dim": geometry.VIDEO_CHANNELS, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}
    rest = {"attn_scales": [], "temperal_downsample": [False, True, True], "dropout": 0.0}
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in WanVAE(**sizes, **rest).state_dict().items()}
    return comfy.sd.VAE(sd={key: _drawn(shape, device) for key, shape in shapes.items()})


def random_audio_vae(device: torch.device) -> Any:
    """Return MMAudio's VAE and vocoder as ComfyUI loads them."""
    import comfy.sd

    vae = {key: _drawn(shape, device) for key, shape in audio_vae.vae_shapes().items()}
    vocoder = {key: _drawn(shape, device) for key, shape in audio_vae.vocoder_shapes().items()}
    return comfy.sd.VAE(sd=audio_vae.merge(vae, vocoder), dtype=torch.float32)


def _drawn(shape: Sequence[int], device: torch.device) -> Tensor:
    """Draw a weight that keeps the size of what it multiplies; on the CPU, as from a file."""
    scale = math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1
    return (torch.randn(shape, device=device) * scale).cpu()


def decoding(vae: Any, latent: Tensor, name: str, turns: int = TURNS) -> str:
    """Return the row of a VAE that decodes a latent."""
    measured = measure(lambda: vae.decode(latent), vae.device, turns)
    told = vae.memory_used_decode(latent.shape, vae.vae_dtype)
    dtype = str(vae.vae_dtype).removeprefix("torch.")
    return f"| {name} | {dtype} | {measured.cells()} | {told / GB:.2f} GB |"


def results(device: torch.device) -> Iterator[str]:
    """Yield the tables, line by line as they are measured."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    yield f"{name}; PyTorch {torch.__version__}, ComfyUI {comfyui.version()}."
    yield ""
    yield "| One pass | Time | Peak besides the weights | Traced | ComfyUI is told |"
    yield "|---|---|---|---|---|"
    yield from passes(OviConfig(), device)
    yield ""
    yield "| Decoding | Computed in | Time | Peak besides the weights | ComfyUI is told |"
    yield "|---|---|---|---|---|"
    width, height, frames = DECODED
    video, audio = trace.latents(OviConfig(), 1, *DECODED)
    yield decoding(random_video_vae(device), torch.randn(video), f"video, {width} x {height} x {frames}")
    yield decoding(random_audio_vae(device), torch.randn(audio), f"audio of {frames} frames")


def main() -> None:
    """Measure and print everything."""
    parser = argparse.ArgumentParser(prog="python -m bench.device", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    args = parser.parse_args()
    comfyui.start(args.device)
    with torch.inference_mode():
        for line in results(torch.device(args.device)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
