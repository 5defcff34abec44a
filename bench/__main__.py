"""Speed and memory of the model, as ratios measured in one run: `python -m bench` writes them to RESULTS.md.

A mid-size model with random weights on the CPU. Candidates take turns. A ratio is that of their fastest turns; next to
it stand the lowest and the highest ratio of one round, since a shared machine's speed changes within a run.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import comfyui, parallel, trace
from bench.floor import floor
from bench.transcription import Transcription
from bench.weights import CONFIG, draw
from ovi import geometry
from ovi.config import OviConfig
from ovi.model import OviModel

RESULTS = Path(__file__).parent / "RESULTS.md"
ROUNDS = 10
TOKENS_PER_FRAME = 256  # 16 x 16: a latent frame of 32 x 32
TARGET = (torch.float32, 4096)
ROWS = [(torch.float32, 1024), TARGET, (torch.float32, 8192), (torch.bfloat16, 1024), (torch.bfloat16, 4096)]
CLIPS = [(704, 704, 121), (1280, 704, 121), (960, 960, 121), (960, 960, 241)]  # that are traced: width, height, frames

Times = Mapping[Any, list[float]]


def models(dtype: torch.dtype, layers: int = CONFIG.num_layers) -> dict[str, Any]:
    """Return the candidates by name, all with the same random weights."""
    config = dataclasses.replace(CONFIG, num_layers=layers)
    torch.manual_seed(0)
    plain = OviModel(config, dtype=dtype)
    draw(plain)
    ovi = comfyui.ovi(config, dtype=dtype)
    ovi.load_state_dict(plain.state_dict())
    transcription = Transcription(dataclasses.replace(config, num_layers=0), dtype=dtype)
    transcription.ovi = plain
    wan = comfyui.Wan(config, dtype=dtype)
    wan.load(plain.video_model)
    candidates = {"plain": plain, "ovi": ovi, "transcription": transcription, "wan": wan}
    return {name: model.eval().requires_grad_(False) for name, model in candidates.items()}


def inputs(tokens: int, dtype: torch.dtype, batch: int = 1) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return random latents [video, audio] of a clip of `tokens` video tokens, a timestep [B], and a text."""
    torch.manual_seed(1)
    frames = tokens // TOKENS_PER_FRAME
    video = torch.randn(batch, CONFIG.video_channels, frames, 32, 32, dtype=dtype)
    audio = torch.randn(batch, CONFIG.audio_channels, geometry.audio_latents(geometry.frames(frames)), dtype=dtype)
    text = torch.randn(batch, CONFIG.text_len, CONFIG.text_dim, dtype=dtype)
    return [video, audio], torch.full((batch,), 500.0), text


def take_turns(candidates: Mapping[Any, Callable[[], Any]]) -> Times:
    """Return the seconds that each candidate took in each round, after a first round that does not count."""
    times: dict[Any, list[float]] = {name: [] for name in candidates}
    for turn in range(ROUNDS + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times: Times, name: Any, to: Any, scale: float = 1.0) -> str:
    """Word the ratio of the minima, and the lowest and highest ratio of a round."""
    rounds = [scale * a / b for a, b in zip(times[name], times[to], strict=True)]
    return f"{scale * min(times[name]) / min(times[to]):.2f} ({min(rounds):.2f} to {max(rounds):.2f})"


def speed(tokens: int, dtype: torch.dtype, compiled: bool) -> str:
    """Measure a row of the table of speed."""
    made = models(dtype)
    x, *rest = inputs(tokens, dtype)
    alone = [x[0], None]
    bound = 1e-5 if dtype == torch.float32 else 3e-2
    assert_same(made["ovi"](x, *rest), made["plain"](x, *rest), bound)
    assert_same(made["ovi"](x, *rest), made["transcription"](x, *rest), bound)
    assert_same(made["ovi"](alone, *rest), made["wan"](alone, *rest), bound)
    candidates = {
        "ovi": lambda: made["ovi"](x, *rest),
        "floor": floor(made["plain"], x, *rest),
        "transcription": lambda: made["transcription"](x, *rest),
        "video": lambda: made["ovi"](alone, *rest),
        "wan": lambda: made["wan"](alone, *rest),
    }
    if compiled:
        candidates["compiled"] = partial(torch.compile(made["ovi"]), x, *rest)
        assert_same(candidates["compiled"](), made["ovi"](x, *rest), bound)
    times = take_turns(candidates)
    cells = [
        f"{tokens}, {str(dtype).removeprefix('torch.')}",
        f"{min(times['ovi']):.2f} s",
        ratio(times, "ovi", "floor"),
        ratio(times, "compiled", "floor") if compiled else "",
        ratio(times, "ovi", "transcription"),
        ratio(times, "video", "wan"),
    ]
    return "| " + " | ".join(cells) + " |"


def assert_same(got: list[Tensor | None], expected: list[Tensor | None], bound: float) -> None:
    """Raise RuntimeError where the outputs of two candidates differ by more than a relative RMS of `bound`."""
    for a, b in zip(got, expected, strict=True):
        if a is not None and (a - b).norm() > bound * b.norm():
            raise RuntimeError(f"Two candidates differ by {(a - b).norm() / b.norm():.1e}, beyond {bound:.0e}.")


def memory(config: OviConfig, batch: int, clip: tuple[int, int, int]) -> str:
    """Trace a row of the table of memory: peaks, in bf16, of a clip (width, height, frames)."""
    shapes = trace.latents(config, batch, *clip)
    video = [shapes[0], None]
    flash = {"attention": trace.flash}
    ovi, _ = trace.peak(OviModel, config, shapes, rotate=trace.fused_rotate, **flash)
    plain, _ = trace.peak(Transcription, config, shapes, **flash)
    alone, _ = trace.peak(OviModel, config, video, rotate=trace.fused_rotate, **flash)
    wan, _ = trace.peak(comfyui.Wan, config, video, **flash)
    width, height, frames = clip
    return (
        f"| {width} x {height} x {frames}, batch {batch} | {ovi / 1e9:.2f} GB | {ovi / plain:.2f} | {alone / wan:.2f} |"
    )


def growth_with_tokens() -> str:
    """Fit a n + b n^2 to the time of one layer on n tokens."""
    model = models(torch.float32, layers=1)["ovi"]
    counts = [1024, 2048, 4096, 8192]
    times = take_turns({n: partial(model, *inputs(n, torch.float32)) for n in counts})
    best = torch.tensor([min(times[n]) for n in counts], dtype=torch.float64)
    n = torch.tensor(counts, dtype=torch.float64)
    terms = torch.stack([n, n**2], dim=1)
    (a, b), *_ = torch.linalg.lstsq(terms / best[:, None], torch.ones_like(best))  # of relative errors
    off = ((a * n + b * n**2) / best - 1).abs().max()
    return (
        f"One layer at {', '.join(map(str, counts))} tokens, n in thousands: {a * 1e3:.3f} n + {b * 1e6:.4f} n^2 "
        f"seconds; no point is further than {off:.0%} from it."
    )


def growth_with_layers() -> str:
    """Fit a line to the time at 1024 tokens."""
    counts = [1, 2, 4, 8]
    x, *rest = inputs(1024, torch.float32)
    made = {n: models(torch.float32, n)["ovi"] for n in counts}
    times = take_turns({n: partial(model, x, *rest) for n, model in made.items()})
    best = torch.tensor([min(times[n]) for n in counts], dtype=torch.float64)
    n = torch.tensor(counts, dtype=torch.float64)
    terms = torch.stack([torch.ones_like(n), n], dim=1)
    (fixed, each), *_ = torch.linalg.lstsq(terms / best[:, None], torch.ones_like(best))
    off = ((fixed + each * n) / best - 1).abs().max()
    return (
        f"1024 tokens at {', '.join(map(str, counts))} layers: {fixed:.2f} + {each:.2f} for each layer seconds; "
        f"no point is further than {off:.0%} from it."
    )


def guidance_pair() -> str:
    """Compare both halves of classifier-free guidance in one batch with one after the other."""
    model = models(torch.float32)["ovi"]
    candidates = {batch: partial(model, *inputs(1024, torch.float32, batch)) for batch in (1, 2)}
    return ratio(take_turns(candidates), 2, 1, scale=0.5)


def cpu() -> str:
    """Name the processor, its cores, and the threads in use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def results() -> Iterator[str]:
    """Yield RESULTS.md, part by part as it is measured."""
    yield f"""# Speed and memory

Written by `nox -s bench`; random weights. A ratio is that of the fastest of {ROUNDS} interleaved runs each; \
in brackets the lowest and the highest ratio of one round.

{cpu()}; PyTorch {torch.__version__}, ComfyUI {comfyui.version()}. Everything ran on the CPU; \
`docs/costs.md` has what the full-size model takes on a GPU.

## Speed

A model {CONFIG.dim} wide with {CONFIG.num_heads} heads, {CONFIG.num_layers} layers and the ratios of the Ovi \
release. *Floor*: its own matrix products with bias, convolutions and attentions, back to back. *Transcription*: the \
formulas of the Ovi release step by step, with a modulation for each token and rotations in float64. *Wan*: ComfyUI's \
Wan 2.2 of the video tower's size.

| Video tokens, dtype | Forward | / floor | Compiled / floor | / transcription | Video alone / Wan |
|---|---|---|---|---|---|"""
    for dtype, tokens in ROWS:
        yield speed(tokens, dtype, compiled=(dtype, tokens) == TARGET)
    yield "| target at 4096, float32 | | 1.30 | 1.15 | 0.85 | 1.05 |"
    yield ""
    yield f"- Growth with tokens. {growth_with_tokens()}"
    yield f"- Growth with layers. {growth_with_layers()}"
    yield f"- Both halves of guidance in one batch / one after the other, 1024 tokens: {guidance_pair()}."
    yield """
## Memory

Peak of a forward pass besides the weights, of the full-size model in bf16, traced with fake tensors \
(`bench/trace.py`). The target at 960 x 960 x 121 is 1.6 GB, and 0.5 of the transcription.

| Clip | Peak | / transcription | Video alone / Wan |
|---|---|---|---|"""
    for clip in CLIPS:
        for batch in (1, 2):
            yield memory(OviConfig(), batch, clip)
    yield ""
    yield from parallel.rows()


def main() -> None:
    """Measure everything; print the results as they come and, once all are there, write them to RESULTS.md."""
    argparse.ArgumentParser(prog="python -m bench", description=__doc__).parse_args()
    comfyui.start()
    parts = []
    with torch.inference_mode():
        for part in results():
            print(part, flush=True)
            parts.append(part)
    RESULTS.write_text("\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
