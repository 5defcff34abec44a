"""What a pass that is shared out costs on each device: `python -m bench.parallel` prints it as a part of RESULTS.md.

On GPUs, where there are several: the full-size model, seconds of a pass. On a CPU, which stands for all devices: the
CPU time of each rank, which leaves out what the ranks wait for each other.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

from bench import trace
from bench.weights import CONFIG, draw
from ovi.config import OviConfig
from ovi.model import OviModel
from ovi.parallel import Team, Threads

RANKS = (1, 2, 4)
PASSES = 1  # that are measured, the fastest of them, after one that does not count
CPU = dataclasses.replace(CONFIG, num_layers=1)
CPU_SHAPES = [(1, 48, 16, 32, 32), (1, 20, 79)]  # 4096 tokens of the video


class Cost(NamedTuple):
    """The cost of a pass on one device: seconds, bytes given to others, and the peak of a GPU's memory in bytes."""

    seconds: float
    sent: int
    peak: int


def cost(devices: Sequence[torch.device], config: OviConfig, shapes: Sequence[tuple[int, ...]]) -> list[Cost]:
    """Run passes that are shared out among devices; return each one's cost."""
    with ThreadPoolExecutor(len(devices)) as pool:
        return list(pool.map(lambda exchange: _rank(exchange, config, shapes), Threads.team(devices)))


def _rank(exchange: Threads, config: OviConfig, shapes: Sequence[tuple[int, ...]]) -> Cost:
    device = torch.device(exchange.device)
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    try:
        torch.manual_seed(0)
        model = OviModel(config, device=device, dtype=dtype).eval().requires_grad_(False)
        draw(model)
        latents = [torch.randn(shape, device=device, dtype=dtype) for shape in shapes]
        text = torch.randn(1, config.text_len, config.text_dim, device=device, dtype=dtype)
        seconds = []
        for turn in range(PASSES + 1):
            exchange.sent = 0
            if on_gpu:
                torch.cuda.synchronize(device)
                if turn == 1:
                    torch.cuda.reset_peak_memory_stats(device)
            start = time.perf_counter() if on_gpu else time.thread_time()
            with torch.inference_mode():
                model(latents, torch.full((1,), 500.0, device=device), text, team=Team(exchange))
            if on_gpu:
                torch.cuda.synchronize(device)
            seconds.append((time.perf_counter() if on_gpu else time.thread_time()) - start)
        return Cost(min(seconds[1:]), exchange.sent, torch.cuda.max_memory_allocated(device) if on_gpu else 0)
    except BaseException:
        exchange.abort()
        raise


def rows() -> Iterator[str]:
    """Yield the part of RESULTS.md."""
    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    yield """## Several devices

A pass shared out by its tokens, without a negative pass, in equal shares: the slowest device of each, against one. On \
a CPU that stands for all devices it is the CPU time of each, so that nobody's waiting is counted.

| Devices | Clip | A pass on one of them | / one device | Sent by each | Peak of each |
|---|---|---|---|---|---|"""
    with_gpus = len(gpus) > 1
    config, shapes = (OviConfig(), trace.latents(OviConfig(), 1, 960, 960, 121)) if with_gpus else (CPU, CPU_SHAPES)
    clip = "960 x 960 x 121, bf16" if with_gpus else "4096 tokens, float32, the small model"
    torch.set_num_threads(1)  # of a rank on a CPU: the time of others would not be counted
    alone = 0.0
    for ranks in RANKS:
        if with_gpus and ranks > len(gpus):
            break
        devices = gpus[:ranks] if with_gpus else [torch.device("cpu")] * ranks
        costs = cost(devices, config, shapes)
        slowest = max(each.seconds for each in costs)
        alone = alone or slowest
        sent, peak = max(each.sent for each in costs) / 1e6, max(each.peak for each in costs) / 1e9
        cells = [f"{ranks} {'GPUs' if with_gpus else 'on the CPU'}", clip, f"{slowest:.2f} s", f"{slowest / alone:.2f}"]
        yield "| " + " | ".join([*cells, f"{sent:.0f} MB", f"{peak:.1f} GB" if with_gpus else ""]) + " |"


if __name__ == "__main__":
    for row in rows():
        print(row, flush=True)
