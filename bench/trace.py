"""Peak memory of a forward pass, traced with fake tensors: full size in a second, without weights, on any machine.

PyTorch's own memory tracker follows every tensor that the pass makes on a fake CUDA device. Attention is the flash
kernel, which allocates its output and one number for each row and head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from ovi import geometry
from ovi.config import OviConfig

LAYERS = 2  # the peak is the same at 2 layers as at 30: blocks keep only their output


class Tracker(MemTracker):
    """MemTracker that also notes the number of elements of the largest tensor."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        for made in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(made, Tensor):
                self.largest = max(self.largest, made.numel())
        return out


def flash(q: Tensor, k: Tensor, v: Tensor, heads: int, **_: Any) -> Tensor:
    """Run the CUDA flash attention on [B, L, heads * head_dim], by name: without a GPU PyTorch would not pick it."""
    q, k, v = (rearrange(t, "b l (h d) -> b h l d", h=heads) for t in (q, k, v))
    return rearrange(torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0], "b h l d -> b l (h d)")


def fused_rotate(x: Tensor, table: Tensor) -> Tensor:
    """Allocate what comfy-kitchen's CUDA kernel does: its output."""
    return torch.empty_like(x)


def plain_rotate(x: Tensor, table: Tensor) -> Tensor:
    """Allocate what ComfyUI does without that kernel: a float32 copy and a float32 result."""
    pairs = x.to(table.dtype).unflatten(-1, (-1, 1, 2))
    out = table[..., 0] * pairs[..., 0]
    out.addcmul_(table[..., 1], pairs[..., 1])
    return out.flatten(-2).type_as(x)


def latents(config: OviConfig, batch: int, width: int, height: int, frames: int) -> list[tuple[int, ...]]:
    """Return the shapes of a clip's video and audio latents; its size is in pixels."""
    video = (geometry.video_latents(frames), height // 16, width // 16)
    return [
        (batch, config.video_channels, *video),
        (batch, config.audio_channels, geometry.audio_latents(frames)),
    ]


def peak(
    make: Callable[..., torch.nn.Module],
    config: OviConfig,
    shapes: Sequence[tuple[int, ...] | None],
    dtype: torch.dtype = torch.bfloat16,
    **options: Any,
) -> tuple[int, int]:
    """Return the peak in bytes besides weights and inputs, and the number of elements of the largest tensor.

    `make(config, device=, dtype=, **options)` returns a model that is called as OviModel is. A shape is None where the
    model has no such latent.
    """
    device = torch.device("cuda", 0)
    batch = next(shape for shape in shapes if shape)[0]
    with FakeTensorMode(), torch.inference_mode():
        model = make(dataclasses.replace(config, num_layers=LAYERS), device=device, dtype=dtype, **options)
        x = [shape and torch.empty(shape, device=device, dtype=dtype) for shape in shapes]
        timestep = torch.empty(batch, device=device)
        context = torch.empty(batch, config.text_len, config.text_dim, device=device, dtype=dtype)
        tracker = Tracker()
        tracker.track_external(model, *filter(torch.is_tensor, x), timestep, context)
        before = tracker.get_tracker_snapshot("current")[device]["Total"]
        with tracker:
            model(x, timestep, context)
    return tracker.get_tracker_snapshot("peak")[device]["Total"] - before, tracker.largest
