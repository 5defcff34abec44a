"""A pass that is shared out among devices, for which threads and processes of this CPU stand."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import trace
from ovi.config import OviConfig
from ovi.memory import activation_bytes
from ovi.model import OviModel
from ovi.parallel import Team, Threads, attend_with_sums, merge, parse_shares, split, teams
from support import golden_model
from support.parallel import Hollow, passes, predict, processes, threads
from support.sampling import assert_equal

PASSES = passes()
TOLERANCE = 5e-6  # of a pass
FULL = dataclasses.replace(OviConfig(), num_layers=2)
TARGET = 1, 960, 960, 121  # batch, width, height, frames


@pytest.fixture(scope="module")
def model():
    return golden_model.load()


@pytest.fixture(scope="module")
def alone(model):
    """What one device predicts, by pass."""
    return {name: predict(model, arguments) for name, arguments in PASSES.items()}


def check(ranks, expected):
    """All ranks have the same numbers, which are those of one device."""
    for got in ranks:
        assert_equal(got, ranks[0], 0.0)
    assert_equal(ranks[0], expected, TOLERANCE)


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_threads(model, alone, size, name):
    """With three heads: one device has two of them, or each has one, or one has none."""
    check(threads(size, lambda exchange: predict(model, PASSES[name], Team(exchange))), alone[name])


@pytest.mark.parametrize("weights", [(3, 2), (0.2, 1, 0.8), (9, 1)])
def test_unequal_shares(model, alone, weights):
    for name in ("one row", "odd edges"):
        work = [lambda exchange, name=name: predict(model, PASSES[name], Team(exchange, weights))]
        check(threads(len(weights), *work), alone[name])


def test_processes(tmp_path, alone):
    """Two and three, over gloo: the same numbers as from threads."""
    ranks = processes(3, tmp_path)
    for size in (2, 3):
        for name, expected in alone.items():
            check([rank[size, name] for rank in ranks[:size]], expected)


def test_without_a_team_nothing_is_exchanged_or_changed(model, monkeypatch):
    """One rank alone gives what no team gives, to the last bit but for the merge's own attention."""
    arguments = PASSES["one row"]
    (got,) = threads(1, lambda exchange: predict(model, arguments, Team(exchange)))
    assert_equal(got, predict(model, arguments), TOLERANCE)


def test_attention_sees_all_tokens_in_their_order(model):
    """So that what replaces it, and knows the frames of a clip, gives what it gives on one device."""
    seen = {}

    def attention(q, k, v, heads, **_):
        seen.setdefault(threading.get_ident(), []).append(k)
        return torch.zeros_like(q)

    def first_keys(team=None):
        other = golden_model.load()
        other.video_model.blocks[0].self_attn.attention = attention
        predict(other, PASSES["one row"], team)
        return seen[threading.get_ident()].pop()

    heads = threads(2, lambda exchange: first_keys(Team(exchange)))
    assert torch.equal(torch.cat(heads, dim=2), first_keys())


def test_a_frame_that_is_too_small(model):
    with pytest.raises(ValueError, match=r"A frame of 20 tokens is too small .* among 2 GPUs in these shares"):
        threads(2, lambda exchange: predict(model, PASSES["odd edges"], Team(exchange, (50, 1))))


def test_a_rank_that_fails(model):
    """Its own error is raised, and no rank waits."""
    errors = []

    def work(exchange):
        other = golden_model.load()
        if exchange.rank == 1:
            other.video_model.blocks[1].ffn[0].register_forward_pre_hook(lambda *_: 1 / 0)
        try:
            predict(other, PASSES["one row"], Team(exchange))
        except (ArithmeticError, threading.BrokenBarrierError) as error:
            errors.append(type(error))
            exchange.abort()

    threads(2, work, limit=60.0)
    assert set(errors) == {ZeroDivisionError, threading.BrokenBarrierError}


def test_a_rank_that_is_missing():
    first, _ = Threads.team(["cpu", "cpu"], limit=0.01)
    with pytest.raises(threading.BrokenBarrierError):
        first.all_gather(torch.zeros(1), [(1,), (1,)])


def shared(size, make=Hollow):
    """OviModel whose passes are those of the first of `size` ranks."""

    class First(OviModel):
        exchange = make(0, size)

        def forward(self, *args, **options):
            return super().forward(*args, team=Team(self.exchange), **options)

    return First


def meta(shapes):
    """Arguments of a pass at full size, without numbers."""
    latents = [torch.empty(shape, device="meta") for shape in shapes]
    return latents, torch.empty(1, device="meta"), torch.empty(1, FULL.text_len, FULL.text_dim, device="meta")


@pytest.mark.parametrize("size", [2, 4, 8])
def test_bytes_are_the_formula(size):
    """That of the module, at full size in float32."""
    first = shared(size)
    shapes = trace.latents(FULL, *TARGET)
    with torch.inference_mode():
        first(FULL, device="meta")(*meta(shapes))
    tokens, latents, dim = shapes[0][2] * shapes[0][3] * shapes[0][4] // 4, shapes[1][2], FULL.dim
    others = size - 1
    block = 4 * tokens * dim * others / size**2 + latents * (dim + FULL.num_heads) * others
    patches = tokens * 4 * FULL.video_channels * others / size
    # 900 tokens of a frame over 8 are 113 or 112.
    assert first.exchange.sent == pytest.approx(4 * (FULL.num_layers * block + patches), rel=5e-3 * (size == 8))


def test_work_is_shared():
    """At 4096 tokens of the video each of two devices has at most 0.56 of the work: audio and texts are on both."""
    arguments = meta([(1, 48, 16, 32, 32), (1, 20, 79)])

    def work(make):
        model = make(FULL, device="meta")
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            model(*arguments)
        return counter.get_total_flops()

    assert 0.5 < work(shared(2)) / work(OviModel) < 0.56


@pytest.mark.parametrize("size", [2, 4])
def test_memory_is_shared(size):
    """The peak is at most a device's share of the estimate, and 15 %."""
    shapes = trace.latents(FULL, *TARGET)
    video, audio = shapes
    peak, _ = trace.peak(shared(size), FULL, shapes, attention=trace.flash, rotate=trace.fused_rotate)
    assert peak < 1.15 * activation_bytes(FULL, 1, video[2:], audio[2], element_size=2) / size


def test_merging_is_the_whole_attention():
    """In float64, with scores too large for exponentials without a maximum."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, length, 12, generator=draw, dtype=torch.float64) for length in (70, 11, 11))
    k *= 500
    whole, _ = attend_with_sums(q, k, v, 3)
    parts = [attend_with_sums(q, *each, 3) for each in zip(k.split([2, 9], 1), v.split([2, 9], 1), strict=True)]
    merged = merge(*(torch.stack(each) for each in zip(*parts, strict=True)))
    torch.testing.assert_close(merged, whole, atol=1e-12, rtol=0.0)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.unflatten(2, (3, 4)).transpose(1, 2) for x in (q, k, v))
    )
    torch.testing.assert_close(whole, expected, atol=1e-12, rtol=0.0)


@pytest.mark.parametrize(
    ("total", "weights", "parts"),
    [
        (900, (1,) * 8, [113] * 4 + [112] * 4),
        (900, (3, 2), [540, 360]),
        (24, (3, 2), [14, 10]),
        (3, (1, 1, 1, 1), [1, 1, 1, 0]),
        (7, (0.1, 0.1, 0.1), [3, 2, 2]),
        (5, (1,), [5]),
    ],
)
def test_split(total, weights, parts):
    assert split(total, weights) == parts


@pytest.mark.parametrize(
    ("rows", "chunks", "weights", "count"),
    [
        (2, 2, (1, 1), 2),
        (1, 1, (1, 1), 1),
        (3, 3, (1, 1), 1),
        (3, 3, (1, 1, 1), 3),
        (2, 2, (1, 1, 1), 1),
        (2, 2, (1, 1, 1, 1), 2),
        (4, 2, (1, 1, 1, 1), 4),
        (2, 1, (1, 1, 1, 1), 2),
        (6, 3, (1, 1), 1),  # three prompts of two clips: two teams would cut a prompt's clips off the middle
        (2, 2, (3, 2), 1),
        (2, 2, (3, 2, 3, 2), 2),
        (2, 2, (3, 3, 2, 2), 1),
        (2, 2, (1,), 1),
    ],
)
def test_rows_come_before_tokens(rows, chunks, weights, count):
    assert teams(rows, chunks, weights) == count


@pytest.mark.parametrize(
    ("text", "shares"),
    [("auto", (1, 1)), (" Auto ", (1, 1)), ("3,2", (3, 2)), (" 1.5 , 1 ", (1.5, 1)), ("3 2", (3, 2))],
)
def test_shares(text, shares):
    assert parse_shares(text, 2) == shares


@pytest.mark.parametrize("text", ["", "3", "3,2,1", "3,0", "3,-2", "3,x", "nan,1", "1e9,1"])
def test_shares_that_are_none(text):
    with pytest.raises(ValueError, match=r"are not 2 numbers above 0, one for each GPU: write auto, or .* 3, 2\."):
        parse_shares(text, 2)
