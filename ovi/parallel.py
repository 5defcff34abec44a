"""One forward pass on several devices: the video's tokens are shared out, the audio tower runs on each.

Every device, a *rank* of a team, holds all weights and calls the model with the same inputs and a `Team`; each gets the
whole result. A rank's share is a slice of every latent frame, so that what each frame has of its own (modulation,
timestep) holds unchanged, and a frame of an odd number of tokens needs no padding. What is exchanged in a block, for L
video tokens, L' audio tokens, N ranks of equal shares and B clips:

- video to itself: queries, keys, values and results, from a rank's tokens to all tokens of a rank's heads and back
  ("DeepSpeed Ulysses", arXiv 2309.14509): each rank sends 4 B L D (N - 1) / N^2 numbers;
- audio to the video: each rank attends to its share of keys and values; the results are merged by the logarithms of
  their softmax's sums: B L' (D + heads) (N - 1) numbers, in float32;
- everything else: nothing. Text and audio are on each rank.

After the blocks the head's patches are gathered, 4 * 48 numbers for each token: B L 192 (N - 1) / N numbers.
"""

from __future__ import annotations

import math
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

from .quote import quoted

AUTO = "auto"  # equal shares
LIMIT = 600.0  # seconds that a rank waits for the others: the first pass may compile, or read weights from a disk
QUERIES = 64  # for which a merged attention holds float32 scores at a time: 171 MB at 27,900 keys of 24 heads

Attention = Callable[..., Tensor]
Shape = Sequence[int]


class Exchange(ABC):
    """What the ranks of a team swap tensors through, as one of them sees it.

    All ranks call the same methods in the same order. `sent` counts the bytes that this one has given to others.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.sent = 0

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """Give parts[j] to rank j; return what each rank gave, of the given shapes, to be read only."""
        self.sent += sum(part.nbytes for rank, part in enumerate(parts) if rank != self.rank)
        return self._swap(parts, shapes)

    def all_gather(self, x: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        """Give x to every rank; return what each rank gave, of the given shapes, to be read only."""
        return self.all_to_all([x] * self.size, shapes)

    @abstractmethod
    def _swap(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """Do what `all_to_all` says."""


class Threads(Exchange):
    """Between the threads of one process, each with a device of its own: every rank copies what it gets to its device.

    On CUDA the copies are in order with the work of both devices as long as each thread keeps its default stream.
    """

    def __init__(
        self, rank: int, table: list[Sequence[Tensor]], barrier: threading.Barrier, device: torch.device | str
    ) -> None:
        super().__init__(rank, len(table))
        self.device = device
        self._table, self._barrier = table, barrier

    @classmethod
    def team(cls, devices: Sequence[torch.device | str], limit: float = LIMIT) -> list[Threads]:
        """Return the exchanges of all ranks of a team; `limit` is in seconds."""
        table: list[Sequence[Tensor]] = [()] * len(devices)
        barrier = threading.Barrier(len(devices), timeout=limit)
        return [cls(rank, table, barrier, device) for rank, device in enumerate(devices)]

    def abort(self) -> None:
        """Make the other ranks raise BrokenBarrierError instead of waiting for this one."""
        self._barrier.abort()

    def _swap(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        self._table[self.rank] = [x if rank == self.rank else x.contiguous() for rank, x in enumerate(parts)]
        self._barrier.wait()
        received = [theirs[self.rank].to(self.device) for theirs in self._table]
        self._barrier.wait()  # until all have read
        self._table[self.rank] = ()
        return received


class Processes(Exchange):
    """Between processes by torch.distributed, which has to be initialised: NCCL between GPUs, gloo between CPUs."""

    def __init__(self, group: Any = None) -> None:
        super().__init__(torch.distributed.get_rank(group), torch.distributed.get_world_size(group))
        self.group = group

    def _swap(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        given = torch.cat([part.flatten() for part in parts])
        sizes = [torch.Size(shape).numel() for shape in shapes]
        received = given.new_empty(sum(sizes))
        torch.distributed.all_to_all_single(received, given, sizes, [part.numel() for part in parts], self.group)
        return [part.view(*shape) for part, shape in zip(received.split(sizes), shapes, strict=True)]


@dataclass(frozen=True)
class Unshared:
    """The tokens of a tower that are all on each device."""

    def cut(self, x: Tensor) -> Tensor:
        """Return this device's tokens of x [B, L, ...], which has all."""
        return x

    def join(self, x: Tensor) -> Tensor:
        """Undo `cut`, on each device."""
        return x

    def to_heads(self, x: Tensor) -> Tensor:
        """Return all tokens with this device's heads for this device's tokens with all heads, [B, l, D]."""
        return x

    def attend_self(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, heads: int, **options: Any) -> Tensor:
        """Attend as `attention` does, on what `to_heads` returned; return this device's tokens with all heads."""
        return attention(q, k, v, heads, **options)

    def attend_from_all(
        self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, heads: int, **options: Any
    ) -> Tensor:
        """Attend as `attention` does, with q [B, L', D] of all devices to k and v [B, l, D] of this one's tokens."""
        return attention(q, k, v, heads, **options)


UNSHARED = Unshared()


@dataclass(frozen=True)
class Share(Unshared):
    """A slice of every latent frame on each device. Where attention sees all tokens, they are in their usual order."""

    exchange: Exchange
    frames: int
    columns: tuple[int, ...]  # by rank: its tokens of a frame
    heads: tuple[int, ...]  # by rank: its heads; a rank may have none
    head_dim: int

    def cut(self, x: Tensor) -> Tensor:
        """See `Unshared`."""
        return self._in_frames(x).split(self.columns, dim=2)[self.exchange.rank].flatten(1, 2)

    def join(self, x: Tensor) -> Tensor:
        """See `Unshared`."""
        x = self._in_frames(x)
        shapes = [(len(x), self.frames, columns, x.shape[3]) for columns in self.columns]
        return torch.cat(self.exchange.all_gather(x, shapes), dim=2).flatten(1, 2)

    def to_heads(self, x: Tensor) -> Tensor:
        """See `Unshared`."""
        widths = self._widths()
        shapes = [(len(x), self.frames, columns, widths[self.exchange.rank]) for columns in self.columns]
        parts = self._in_frames(x).split(widths, dim=3)
        return torch.cat(self.exchange.all_to_all(parts, shapes), dim=2).flatten(1, 2)

    def attend_self(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, heads: int, **options: Any) -> Tensor:
        """See `Unshared`."""
        rank = self.exchange.rank
        own = self.heads[rank]
        out = attention(q, k, v, own, **options) if own else q
        shapes = [(len(q), self.frames, self.columns[rank], width) for width in self._widths()]
        parts = self._in_frames(out).split(self.columns, dim=2)
        return torch.cat(self.exchange.all_to_all(parts, shapes), dim=3).flatten(1, 2)

    def attend_from_all(
        self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, heads: int, **options: Any
    ) -> Tensor:
        """See `Unshared`. PyTorch does it, since `attention` does not return the sums of its softmaxes."""
        found, sums = attend_with_sums(q, k, v, heads)
        packed = torch.cat([found, sums], dim=-1)
        packed = torch.stack(self.exchange.all_gather(packed, [packed.shape] * self.exchange.size))
        return merge(packed[..., :-1], packed[..., -1:]).transpose(1, 2).flatten(2).to(q.dtype)

    def _in_frames(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.frames, -1))

    def _widths(self) -> list[int]:
        return [heads * self.head_dim for heads in self.heads]


class Team(NamedTuple):
    """Devices that share out a pass, as one of them sees it: each gives the model one of its own.

    `weights` are the shares of all ranks, in any unit; empty is equal shares.
    """

    exchange: Exchange
    weights: tuple[float, ...] = ()

    def share(self, frames: int, columns: int, heads: int, head_dim: int) -> Share:
        """Share out `columns` tokens of each frame, and the heads. Raises ValueError for a rank without tokens."""
        weights = self.weights or (1.0,) * self.exchange.size
        parts = split(columns, weights)
        if 0 in parts:
            raise ValueError(
                f"A frame of {columns} tokens is too small to be shared out among {len(parts)} GPUs in these shares: "
                "take fewer GPUs, or generate a larger video."
            )
        return Share(self.exchange, frames, tuple(parts), tuple(split(heads, weights)), head_dim)


def attend_with_sums(q: Tensor, k: Tensor, v: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Attend with q [B, L', D] to k and v [B, l, D]; return what is found and the logarithms of the softmaxes' sums.

    These are [B, heads, L', head_dim] and [B, heads, L', 1], in float32 or wider.
    """
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    found, sums = [], []
    for queries in q.split(QUERIES, dim=2):
        scores = queries @ k.transpose(2, 3)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * q.shape[3] ** -0.5
        sums.append(scores.logsumexp(3, keepdim=True))
        found.append(((scores - sums[-1]).exp().to(v.dtype) @ v).to(scores.dtype))
    return torch.cat(found, dim=2), torch.cat(sums, dim=2)


def merge(found: Tensor, sums: Tensor) -> Tensor:
    """Merge attentions of the same queries to parts of the keys [N, ..., head_dim], by `attend_with_sums`.

    With s the sum of each part's exponentials, that of the whole is sum(s * found) / sum(s): found, weighted by
    softmax(log s). All ranks add up in the same order, so that they get the same numbers.
    """
    return (found * sums.softmax(0)).sum(0)


def split(total: int, weights: Sequence[float]) -> list[int]:
    """Split a number into whole parts by weights, each within one of its exact part: 900 by 3, 2 → 540, 360."""
    exact = [total * weight / sum(weights) for weight in weights]
    parts = [math.floor(part) for part in exact]
    largest = sorted(range(len(parts)), key=lambda i: parts[i] - exact[i])  # of the remainders; else the first ones
    for i in largest[: total - sum(parts)]:
        parts[i] += 1
    return parts


def teams(rows: int, chunks: int, weights: Sequence[float]) -> int:
    """Return how many teams of devices next to each other share the rows of a batch, before each shares the tokens.

    weights: the shares of all devices. chunks: the parts of the batch, of equal size, that belong to one prompt each;
    a team gets whole chunks, or an equal part of one. Teams are of one size and, since they get as many rows, of equal
    weight: as many as that allows, because rows need no exchange.
    """
    devices = len(weights)
    for count in range(devices, 1, -1):
        if devices % count or rows % count or (chunks % count and count % chunks):
            continue
        size = devices // count
        if len({sum(weights[i * size : (i + 1) * size]) for i in range(count)}) == 1:
            return count
    return 1


def parse_shares(text: str, devices: int) -> tuple[float, ...]:
    """Parse the shares of devices, such as "3, 2"; "auto" is equal ones. Raises ValueError for anything else."""
    if text.strip().lower() == AUTO:
        return (1.0,) * devices
    words = re.split(r"[\s,]+", text.strip())
    shares = [float(word) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", word) else 0.0 for word in words]
    if len(shares) != devices or not all(shares):
        raise ValueError(
            f"The shares {quoted(text)} are not {devices} numbers above 0, one for each GPU: write {AUTO}, or numbers "
            f"such as {', '.join(['3', *['2'] * (devices - 1)])}."
        )
    return tuple(shares)
