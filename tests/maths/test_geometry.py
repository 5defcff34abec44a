"""Lengths and sizes against the release's (golden F), and the sentences about bad ones."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest

from ovi import geometry

VARIANTS = geometry.VARIANTS.items()


@pytest.fixture(scope="module")
def published(golden):
    return json.loads((golden / "F_text.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=lambda value: value if isinstance(value, str) else "")
def test_variants_have_the_published_lengths_and_areas(published, name, variant):
    assert list(geometry.VARIANTS) == list(published["model_specs"])
    spec = published["model_specs"][name]
    assert variant.area == spec["video_area"]
    assert geometry.video_latents(variant.frames) == spec["video_latent_length"]
    assert geometry.audio_latents(variant.frames) == spec["audio_latent_length"]
    assert geometry.frames(spec["video_latent_length"]) == variant.frames


def test_video_and_audio_of_a_clip_last_equally_long():
    """At any length they differ by less than one video frame; at 12 fps the audio is twice as long."""
    for frames in range(1, 1001, 4):
        audio = geometry.audio_samples(geometry.audio_latents(frames)) / geometry.SAMPLE_RATE
        assert abs(audio - geometry.seconds(frames)) < 1 / geometry.FPS
        assert geometry.frames(geometry.video_latents(frames)) == frames
    assert geometry.audio_samples(157) == 80384
    assert geometry.audio_latents(121, fps=12) == 314
    assert geometry.seconds(121, fps=12) == 121 / 12


def test_nearest_size_is_the_published_one(published):
    snapped = published["snap_hw_to_multiple_of_32"]
    assert len(snapped) == 88
    for case in snapped:
        assert geometry.nearest_size(case["w"], case["h"], case["area"]) == tuple(reversed(case["out"])), case


@pytest.mark.parametrize("size", [(5, 0), (8, -3)])
def test_nearest_size_refuses_what_is_not_positive(size):
    with pytest.raises(ValueError, match=f"^Width and height must be positive, got {size[0]}x{size[1]}\\.$"):
        geometry.nearest_size(*size)


@pytest.mark.parametrize("size", [(32, 32), (1280, 704), (704, 1280)])
def test_good_sizes_pass(size):
    geometry.check_size(*size)


@pytest.mark.parametrize(
    ("width", "height", "advice"),
    [
        (1280, 720, "use width 1280 and height 704 or 736."),
        (1279, 704, "use width 1248 or 1280 and height 704."),
        (0, 33, "use width 32 or 64 and height 32 or 64."),
    ],
)
def test_bad_size_names_the_nearest_good_ones(width, height, advice):
    sentence = f"Width and height must be multiples of 32, got {width}x{height}: {advice}"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        geometry.check_size(width, height)


@pytest.mark.parametrize("frames", [1, 5, 121, 241])
def test_good_lengths_pass(frames):
    geometry.check_length(frames)


@pytest.mark.parametrize(("frames", "advice"), [(120, "117 or 121"), (122, "121 or 125"), (-3, "1 or 5")])
def test_bad_length_names_the_nearest_good_ones(frames, advice):
    sentence = f"The length must be 4n + 1 frames, got {frames}: use {advice}."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        geometry.check_length(frames)


def test_audio_spans_cover_a_clip_without_gaps():
    """Each video latent's audio begins where the one before ends: 1 frame, then 4 each, at 31.25 latents per second."""
    spans = [geometry.latents_during_frame(index) for index in range(31)]
    assert spans[0] == (0, 1)
    assert all(before[1] == after[0] for before, after in pairwise(spans))
    assert spans[-1][1] >= geometry.audio_latents(121)


@pytest.mark.parametrize(
    ("clip", "note"),
    [
        ((1280, 704, 121), "Fits 960x960_5s and 960x960_10s"),
        ((960, 960, 125), "Fits 960x960_10s"),
        ((704, 704, 121), "Fits 720x720_5s"),
        ((512, 992, 1), "Fits 720x720_5s"),
        ((704, 704, 125), "Over 121 frames: needs context windows"),
        ((1280, 704, 245), "Over 241 frames: needs context windows"),
        ((832, 448, 121), "832x448 fits no checkpoint: try 992x512"),
        ((64, 96, 9), "64x96 fits no checkpoint: try 576x896"),
        ((1920, 1088, 121), "1920x1088 fits no checkpoint: try 1280x736"),
    ],
)
def test_one_line_says_which_checkpoints_fit(clip, note):
    assert geometry.fit_note(*clip) == note
    assert len(note) <= 45


@pytest.mark.parametrize("variant", geometry.VARIANTS.values(), ids=list(geometry.VARIANTS))
@pytest.mark.parametrize("clip", [(100, 100), (832, 448), (1920, 1088), (4096, 32), (2048, 512)])
def test_what_the_note_says_to_try_fits(clip, variant):
    said = geometry.fit_note(*clip, variant.frames)
    width, height = said.rsplit(" ", 1)[1].split("x")
    assert "no checkpoint" not in geometry.fit_note(int(width), int(height), 121)


@pytest.mark.parametrize(("seconds", "frames"), [(0.2, 5), (0.5, 13), (1.0, 25), (1.04, 25), (2.0, 49), (5.0, 121)])
def test_seconds_are_the_nearest_frames_that_latents_hold(seconds, frames):
    assert geometry.nearest_frames(seconds) == frames
