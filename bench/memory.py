"""The memory that a run needs, and the weights that stay on each card: `python -m bench.memory` prints both tables.

Everything is computed, nothing measured. Weights are counted on the full-size model. Activations come from
`ovi.memory.activation_bytes`, which a test compares with a trace of the full-size model, and the decoder's need from
ComfyUI's own estimate. 1 GB is 10^9 bytes.
"""

from __future__ import annotations

import math

import torch

from bench import trace
from ovi.config import OviConfig
from ovi.memory import activation_bytes
from ovi.model import OviModel
from ovi.tools.convert import MATRIX

CONFIG = OviConfig()
CLIPS = [(704, 704, 121), (1280, 704, 121), (960, 960, 121), (1280, 704, 241), (960, 960, 241)]
CARDS = (8, 12, 16, 24, 32, 80)  # GiB
MATRIX_BITS = {"bf16": 16, "fp8": 8, "nvfp4": 4.5}  # bits of a number in a block's matrix; everything else is bf16
RESERVE = 1.0e9  # bytes: CUDA's own context, and what ComfyUI keeps free


def weight_bytes(file: str) -> float:
    """Return the bytes of a whole model's weights with its matrices stored as `file` (a key of MATRIX_BITS)."""
    state = OviModel(CONFIG, device="meta", dtype=torch.bfloat16).state_dict()
    bits = sum(t.numel() * (MATRIX_BITS[file] if MATRIX.fullmatch(name) else 16) for name, t in state.items())
    return bits / 8


def activations(batch: int, clip: tuple[int, int, int]) -> int:
    """Return the bytes that a forward pass on a batch of clips (width, height, frames) needs in bf16."""
    video, audio = trace.latents(CONFIG, batch, *clip)
    return activation_bytes(CONFIG, batch, video[2:], audio[2], element_size=2)


def decode_bytes(width: int, height: int) -> float:
    """Return ComfyUI's estimate in bytes for the Wan 2.2 VAE in bf16; the number of frames does not matter."""
    return 8000.0 * (height // 16) * (width // 16) * 16 * 16 * 2


def needs() -> list[str]:
    """Return the table of what a run needs besides the weights."""
    rows = [
        "| Clip | One pass | Both passes of cfg at once | Decoding whole | Decoding in tiles of 512 |",
        "|---|---|---|---|---|",
    ]
    for clip in CLIPS:
        width, height, frames = clip
        sizes = (activations(1, clip), activations(2, clip), decode_bytes(width, height), decode_bytes(512, 512))
        rows.append(f"| {width} x {height} x {frames} | " + " | ".join(f"{size / 1e9:.1f} GB" for size in sizes) + " |")
    return rows


def cards(clip: tuple[int, int, int] = (960, 960, 121)) -> list[str]:
    """Return the table of how much of each file stays in RAM while a card samples one clip, one pass at a time."""
    weights = {file: weight_bytes(file) for file in MATRIX_BITS}
    rows = [
        "| Card | " + " | ".join(f"{file}, {size / 1e9:.1f} GB" for file, size in weights.items()) + " |",
        "|---" * (1 + len(weights)) + "|",
    ]
    for card in CARDS:
        room = card * 2**30 - RESERVE - activations(1, clip)
        in_ram = [math.ceil(max(0.0, size - room) / 1e8) / 10 for size in weights.values()]
        cells = [f"{gigabytes:.1f} GB in RAM" if gigabytes else "all on the card" for gigabytes in in_ram]
        rows.append(f"| {card} GB | " + " | ".join(cells) + " |")
    return rows


if __name__ == "__main__":
    print("\n".join([*needs(), "", *cards()]))
