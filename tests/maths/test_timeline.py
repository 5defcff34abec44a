"""Timelines: stretches, when they begin, and what is refused, each with its line."""

from __future__ import annotations

import math
import re

import pytest

from ovi import geometry
from ovi.timeline import Stretch, read

STYLE = "960x960_5s"

PAGE = """\
--- all
A pier at dusk.
--- from 0s
She walks. Audio: Steps.
--- FROM 5 s ---
She stops.
--- at 7,5 seconds
She laughs.
"""


def test_a_page_of_stretches():
    """Each lasts until the next one begins; the text for all is put in front of each."""
    timeline = read(PAGE, STYLE)
    assert timeline.stretches == (
        Stretch(3, "A pier at dusk.\nShe walks. Audio: Steps.", 0.0, 5.0),
        Stretch(5, "A pier at dusk.\nShe stops.", 5.0, 7.5),
        Stretch(7, "A pier at dusk.\nShe laughs.", 7.5, math.inf),
    )
    assert timeline.notes == ()
    assert timeline.summary == "3 prompts, from 0, 5, 7.5 s"


@pytest.mark.parametrize("opening", ["", "---\n", "--- from 0s\n", "\u2014- at 0 seconds\n"])
def test_the_first_stretch_begins_with_the_clip(opening):
    timeline = read(f"{opening}A pier.", STYLE)
    assert [(each.prompt, each.start, each.end) for each in timeline.stretches] == [("A pier.", 0.0, math.inf)]
    assert timeline.summary == "1 prompt, from 0 s"


def test_what_is_doubtful_has_its_line():
    notes = read("A pier.\n--- from 4s\n-- from 6s\nA <T>door<E>.", STYLE).notes
    assert [note.partition(":")[0] for note in notes] == ["Line 2"] * len(notes)
    assert "is read as text of this stretch: a line of three hyphens opens one" in notes[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The timeline has no prompt"),
        ("--- all\nA pier.", "The timeline has no prompt"),
        ("A\n--- 5s\nB", 'Line 2: "5s" could be when the stretch begins or how long it is: write from 5s'),
        ("A\n---\nB", "Line 2: The line does not say when the stretch begins: write from 5s"),
        ("--- from\nA", "Line 1: The line does not say when the stretch begins"),
        ("--- from 2s\nA", "Line 1: The first stretch begins at 2 s, but the clip at 0: write from 0s"),
        ("A\n--- from 5s\nB\n--- from 5s\nC", "Line 4: The stretch begins at 5 s, and the one before at 5 s"),
        ("A\n--- from 5s\nB\n--- from 3s\nC", "Line 4: The stretch begins at 3 s, and the one before at 5 s"),
        ("A\n--- from 5s\n", "Line 2: The stretch has no text"),
        ("A\n--- cut 5s\nB", 'Line 2: "cut" is no option of a stretch: write from 5s'),
        ("A\n--- from 5s from 6s\nB", 'Line 2: "from" says once more what "from" says'),
        ("A\n--- from 5s\n<S>Who", "Line 2: The speech tag before"),
        ("--- all\nA\n--- all\nB", 'Line 3: "all" stands alone, and once: its text is put in front of every stretch'),
    ],
)
def test_what_does_not_fit_is_said_for_its_line(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(text, STYLE)


@pytest.mark.parametrize(
    ("latents", "frame"),
    [
        (range(31), 59),  # frames 57 to 60, of latent 15
        (range(23, 54), 59 + 4 * 23),
        (range(4), 5),  # where latent 2 begins
        ([0], 0),
        ([12, 13, 0, 1, 2], 0),  # of a loop
    ],
)
def test_the_middle_of_a_window(latents, frame):
    assert geometry.middle(list(latents)) == pytest.approx(frame / 24)
