"""Prompts that change over time, in ComfyUI's context windows: which window reads which, and what they blend to."""

from __future__ import annotations

import pytest
import torch

from ovi import geometry
from ovi.model import References
from support import golden_model
from support.sampling import (
    assert_equal,
    counted_passes,
    empty,
    error,
    guide,
    ksampler,
    noise,
    prompts,
    scaled,
    windowed,
    with_persons,
)

pytestmark = [pytest.mark.comfyui, pytest.mark.usefixtures("inference")]

SHAPES = ((1, 48, 13, 4, 6), (1, 20, 64))  # 49 frames, 2.04 s
WINDOWS = [range(5), range(3, 8), range(6, 11), range(8, 13)]  # five video latents each, two or three in common
MIDDLES = [0.29, 0.79, 1.29, 1.62]
PYRAMID, FLAT = [1.0, 2.0, 3.0, 2.0, 1.0], [1.0] * 5
FUSED = {"pyramid": PYRAMID, "flat": FLAT}
CUT = {"transformer_options": {"a2v_cross_attn": False, "v2a_cross_attn": False}}
TEXT = "A pier.\n--- from 0.5s\nA door.\n--- from 1.5s\nA boat."
READ = [0, 1, 1, 2]  # the prompt of each window


def texts(count):
    """Random texts, padded as UMT5's."""
    draw = torch.Generator().manual_seed(3)
    return [golden_model.pad(torch.randn(9 + i, 64, generator=draw), 32) for i in range(count)]


def timed(given, starts=(0.0, 0.5, 1.5), ends=(0.5, 1.5, float("inf"))):
    """A positive prompt that changes over time, as Ovi Timeline makes it."""
    return [[text, {"ovi_seconds": span}] for text, span in zip(given, zip(starts, ends, strict=True), strict=True)]


def audio_of(window):
    """The audio latents of a window's time."""
    spans = [geometry.latents_during_frame(index) for index in window]
    return range(spans[0][0], min(spans[-1][1], SHAPES[1][2]))


def weights(window, weight):
    """The weights of a window's audio latents, of the same form over its length."""
    count = len(audio_of(window))
    return [1.0] * count if weight is FLAT else [float(min(i, count - 1 - i) + 1) for i in range(count)]


def blended(x, predict, weight):
    """The velocities of a long clip: those of its windows, each with its prompt, in plain PyTorch."""
    sums, totals = [torch.zeros(shape) for shape in SHAPES], [torch.zeros(shape[2]) for shape in SHAPES]
    for number, window in enumerate(WINDOWS):
        indices = list(window), list(audio_of(window))
        parts = [whole[:, :, index] for whole, index in zip(x, indices, strict=True)]
        start = geometry.audio_offset(0) if number else 0.0
        velocities = predict(number, parts, start)
        shares = weight, weights(window, weight)
        for i, index in enumerate(indices):
            share = torch.tensor(shares[i])
            sums[i][:, :, index] += velocities[i] * share.view(-1, *[1] * (velocities[i].ndim - 3))
            totals[i][index] += share
    return [whole / total.view(-1, *[1] * (whole.ndim - 3)) for whole, total in zip(sums, totals, strict=True)]


def test_the_middles():
    assert [geometry.middle(list(window)) for window in WINDOWS] == pytest.approx(MIDDLES, abs=0.01)


@pytest.mark.parametrize(
    ("cfg", "sync", "referring", "fuse"),
    [
        (1.0, 0.0, False, "flat"),
        (1.0, 0.0, False, "pyramid"),
        (4.0, 0.0, False, "pyramid"),
        (4.0, 2.0, False, "flat"),
        (4.0, 2.0, True, "pyramid"),
    ],
)
def test_each_window_reads_the_prompt_of_its_middle(comfy, model, reference, loop, cfg, sync, referring, fuse):
    """As in plain PyTorch: alone, with a negative prompt and a cfg for each modality, with synchrony and persons."""
    given, x = texts(3), noise(shapes=SHAPES)
    negative = loop["cond.video_negative"][None], loop["cond.audio_negative"][None]
    draw = torch.Generator().manual_seed(4)
    face, voice = torch.randn(1, 48, 1, *SHAPES[0][3:], generator=draw), torch.randn(1, 20, 5, generator=draw)
    conds = timed(given), prompts(loop)[1]
    references = None
    if referring:
        conds, references = with_persons(conds, [face], [voice]), References([face], [voice])

    def predict(number, parts, start):
        def run(*texts, **options):
            return reference(parts, torch.tensor([1000.0]), *texts, references=references, audio_start=start, **options)

        positive = run(given[READ[number]])
        below = run(*negative, skip_blocks=(1,)) if cfg != 1.0 else positive
        cut = run(given[READ[number]], **CUT) if sync else positive
        scales = cfg, 3.0 if cfg != 1.0 else 1.0
        terms = zip(positive, below, cut, scales, strict=True)
        return [b + scale * (p - b) + sync * (p - c) for p, b, c, scale in terms]

    guided = guide(comfy, model, 3.0 if cfg != 1.0 else 1.0, sync_scale=sync)
    in_windows = windowed(comfy, guided, causal_window_fix=False, fuse_method=fuse)
    got = ksampler(comfy, in_windows, conds, empty(shapes=SHAPES), steps=1, cfg=cfg)
    expected = blended(x, predict, FUSED[fuse])
    assert error([scaled(got[0]), got[1]], [a - v for a, v in zip(x, expected, strict=True)]) < 2e-6


def test_it_costs_no_pass_more(comfy, model, loop):
    passes = []
    for positive in (timed(texts(3)), prompts(loop)[0]):
        with counted_passes(model) as counted:
            conds = positive, prompts(loop)[1]
            ksampler(comfy, windowed(comfy, model), conds, empty(shapes=SHAPES), steps=2, cfg=4.0)
        passes.append(len(counted))
    assert passes[0] == passes[1]


@pytest.mark.parametrize("beside", [0, 1])
def test_prompts_that_all_say_the_same_are_one(comfy, model, loop, beside):
    """Alone, and beside a prompt without a time, which every window reads."""
    text, *others = texts(1 + beside)
    whole, split = (
        ksampler(
            comfy,
            windowed(comfy, model),
            ([*positive, *([other, {}] for other in others)], prompts(loop)[1]),
            empty(shapes=SHAPES),
            steps=1,
        )
        for positive in ([[text, {}]], timed([text] * 3))
    )
    assert_equal(split, whole, 0.0)


@pytest.mark.parametrize("schedule", ["standard_static", "standard_uniform", "looped_uniform", "batched"])
def test_schedules(comfy, model, loop, schedule):
    """All of core's, over several steps."""
    in_windows = windowed(comfy, model, context_schedule=schedule)
    conds = timed(texts(2), (0.0, 0.9), (0.9, float("inf"))), prompts(loop)[1]
    for part in ksampler(comfy, in_windows, conds, empty(shapes=SHAPES), steps=3, cfg=1.0):
        assert torch.isfinite(part).all()


@pytest.mark.parametrize("windows", [None, 13])
def test_without_windows_it_is_refused(comfy, model, loop, windows):
    """Before anything is sampled: in one piece only one prompt could be read."""
    if windows:
        model = windowed(comfy, model, context_length=windows)
    with (
        counted_passes(model) as passes,
        pytest.raises(ValueError, match=r"sampled in one piece.*below the 13 latents"),
    ):
        ksampler(comfy, model, (timed(texts(3)), prompts(loop)[1]), empty(shapes=SHAPES), steps=1)
    assert not passes


@pytest.mark.parametrize("start", [1.7, 30.0])
def test_a_prompt_that_no_window_reads_is_refused(comfy, model, loop, start):
    conds = timed(texts(2), (0.0, start), (start, float("inf"))), prompts(loop)[1]
    message = f"No context window reads the prompt from {start:g} s.*at 0.29, 0.79, 1.29, 1.62 s"
    with counted_passes(model) as passes, pytest.raises(ValueError, match=message):
        ksampler(comfy, windowed(comfy, model), conds, empty(shapes=SHAPES), steps=1)
    assert not passes


def test_a_time_without_a_prompt_is_refused(comfy, model, loop):
    """Core's own choice by equal parts leaves one prompt, which may be for another time."""
    starts, ends = (0.0, 1.0, 1.5), (1.0, 1.5, float("inf"))
    conds = timed(texts(3), starts, ends), prompts(loop)[1]
    with pytest.raises(ValueError, match=r"No prompt is for the context window around .* s.*split_conds_to_windows"):
        ksampler(comfy, windowed(comfy, model, split_conds_to_windows=True), conds, empty(shapes=SHAPES), steps=1)


# The node


def encode(comfy, clip, text, style="as written"):
    output = comfy.node["OviTimeline"].execute(
        clip=clip, prompt=text, video_negative="blur", audio_negative="a bell", prompt_style=style
    )
    (note,) = output.ui.as_dict()["text"]
    return *output.args, note.splitlines()


def test_the_node_encodes_as_ovi_text_encode(comfy, clip):
    """Each prompt, with its time, and the same negative prompts."""
    positive, negative, notes = encode(comfy, clip, TEXT)
    expected = [
        comfy.run(
            "OviTextEncode",
            clip=clip,
            prompt=text,
            video_negative="blur",
            audio_negative="a bell",
            prompt_style="as written",
        )
        for text in ("A pier.", "A door.", "A boat.")
    ]
    assert len(positive) == 3
    assert_equal([text for text, _ in positive], [each[0][0][0] for each in expected], 0.0)
    assert [values["ovi_seconds"] for _, values in positive] == [(0.0, 0.5), (0.5, 1.5), (1.5, float("inf"))]
    assert {values["ovi_prompt_style"] for _, values in (*positive, *negative)} == {"as written"}
    assert_equal([negative[0][0]], [expected[0][1][0][0]], 0.0)
    assert notes == ["3 prompts, from 0, 0.5, 1.5 s"]


def test_a_single_prompt_needs_no_windows(comfy, clip):
    ((_, values),), _, _ = encode(comfy, clip, "A pier.")
    assert "ovi_seconds" not in values


def test_the_node_says_what_it_changed_and_in_which_line(comfy, clip):
    _, _, notes = encode(comfy, clip, "A pier.\n--- from 1s\nA door. <AUDCAP>A bell.<ENDAUDCAP>", "960x960_5s")
    assert notes[0] == "2 prompts, from 0, 1 s"
    assert any(note.startswith("Line 2: ") and "was rewritten as" in note for note in notes)


def test_a_long_prompt_is_said_first(comfy, clip):
    _, _, notes = encode(comfy, clip, "A pier.\n--- from 1s\n" + "door " * 600)
    assert notes[0].startswith("Line 2: ")
    assert "were truncated" in notes[0]
