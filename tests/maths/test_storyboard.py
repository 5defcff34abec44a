"""Storyboards: shots, their options, and what is refused, each with its line."""

from __future__ import annotations

import re

import pytest
import torch

from ovi.storyboard import Defaults, Track, read

DEFAULTS = Defaults(frames=121, overlap=25, seed=10, style="960x960_5s")

PAGE = """\
A pier at dusk.

--- continue 4s
She laughs.
--- CUT, 4.5 s; Seed = 7 image=2 ---
A door.
  The door opens.
--- continue 121 frames
A room.
---
A street.
"""


def shots(text, images=(1, 2), **changes):
    return read(text, DEFAULTS._replace(**changes), images).shots


def test_a_page_of_shots():
    """Text in front of the first line is a shot; a bare line is a cut; a shot that continues has the next seed."""
    board = read(PAGE, DEFAULTS, (2,))
    assert [(shot.line, shot.prompt) for shot in board.shots] == [
        (1, "A pier at dusk."),
        (3, "She laughs."),
        (5, "A door.\n  The door opens."),
        (8, "A room."),
        (10, "A street."),
    ]
    assert [shot.frames for shot in board.shots] == [121, 97, 109, 121, 121]
    assert [shot.overlap for shot in board.shots] == [0, 25, 0, 25, 0]
    assert [shot.seed for shot in board.shots] == [10, 11, 7, 8, 10]
    assert [shot.image for shot in board.shots] == [None, None, 2, None, None]
    assert board.starts == [0, 96, 193, 277, 398, 519]
    assert board.frames == 519
    assert board.notes == ()


def test_text_for_all_shots_is_put_in_front_of_each():
    (one, two) = shots("--- all\nAnna, in a red coat.\n--- 5s\nShe walks.\n--- continue\nShe stops.")
    assert [one.prompt, two.prompt] == ["Anna, in a red coat.\nShe walks.", "Anna, in a red coat.\nShe stops."]
    assert [one.line, two.line] == [3, 5]


@pytest.mark.parametrize(
    "options", ["5s", "5 s", "5.0sec", "5,0 seconds", "121f", "121 frames", "cut 5S", "5s,cut", "cut,5s"]
)
def test_ways_to_write_a_length(options):
    (shot,) = shots(f"--- {options}\nA pier.", frames=49)
    assert shot.frames == 121


@pytest.mark.parametrize("dashes", ["---", "-----", "\u2014-", "\u2014\u2014\u2014", "\u2013\u2013\u2013"])
def test_hyphens_that_became_dashes(dashes):
    """Text programs replace two or three hyphens as they are typed."""
    (one, two) = shots(f"A pier.\n{dashes} continue 4s {dashes}\nShe laughs.")
    assert (one.prompt, two.prompt, two.frames, two.overlap) == ("A pier.", "She laughs.", 97, 25)


@pytest.mark.parametrize("line", ["-- cut 5s", "- continue", "\u2014 cut", "--all"])
def test_a_line_that_almost_opens_a_shot_is_said(line):
    (note,) = read(f"A pier.\n{line}\nA door.", DEFAULTS).notes
    assert note == f'Line 1: "{line}" is read as text of this shot: a line of three hyphens opens one'


def test_start_images_that_no_shot_uses_are_said():
    board = read("--- image=2\nA", DEFAULTS, (1, 2, 3))
    assert board.notes == ('No shot begins with image1, image3: write "image=1" in the line of one',)
    assert read("--- image=2\nA", DEFAULTS, (2,)).notes == ()


def test_a_long_line_is_read_at_once():
    """In time that grows with its length: one that grew with the square took minutes."""
    with pytest.raises(ValueError, match="no option"):
        shots(f"---{' -' * 50_000}x\nA")
    with pytest.raises(ValueError, match="no option"):
        shots(f"---{' ' * 100_000}x\nA")


def test_keys_name_prompts_not_places():
    """A shot in front changes no other's key; two with the same prompt have different ones."""
    before = [shot.key for shot in shots("A pier.\n--- cut\nA door.\n--- cut\nA door.")]
    after = [shot.key for shot in shots("A cat.\n--- cut\nA pier.\n--- cut seed=5 9f\nA door.\n---\nA door.")]
    assert after[1:] == before
    assert len({*after}) == 4


def test_speech_has_to_fit_the_time_that_a_shot_adds():
    """Ten words, 4.0 s: they fit 5 s, but not the 3 s that 4 s with an overlap of 1 s add."""
    speech = "She says, <S>one two three four five six seven eight nine ten<E>"
    board = read(f"{speech}\n--- continue 4s\n{speech} <A>", DEFAULTS)
    assert len(board.notes) == 1
    assert board.notes[0].startswith("Line 2: Speech: 10 words, about 4.0 s of the clip's 3.0 s: too many")


def test_what_is_doubtful_in_a_prompt_has_its_line():
    (note,) = read("A pier.\n---\nA door. <E>", DEFAULTS).notes
    assert note.startswith('Line 2: "<E>" closes no speech')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("--- lenght=5\nA pier.", 'Line 1: "lenght=5" is no option of a shot: write cut or continue, and 5s'),
        ("A\n--- 5s 4s\nB", 'Line 2: "4s" says once more what "5" says'),
        ("A\n--- cut continue\nB", 'Line 2: "continue" says once more what "cut" says'),
        ("--- 5s 121f\nA", "Line 1: The length is given in seconds and in frames"),
        ("--- 120f\nA", "Line 1: The length must be 4n + 1 frames, got 120: use 117 or 121"),
        ("--- 0s\nA", "Line 1: A shot has 1 to 16384 frames, not 0"),
        (f"--- {'9' * 400}s\nA", 'Line 1: "9999'),
        (f"--- seed={'9' * 5000}\nA", 'Line 1: "seed=9999'),
        ("--- image=0\nA", 'Line 1: "image=0" is no option of a shot'),
        ("---\nA\n" * 101, "The storyboard has 101 shots, but may have 100"),
        ("--- 9000s\nA", "Line 1: A shot has 1 to 16384 frames, not 216001"),
        ("--- continue\nA", "Line 1: The first shot has none before it to continue: write cut"),
        ("A\n--- continue 1s\nB", "Line 2: The overlap is 25 frames, but this shot or the one before has 25"),
        ("--- 1s\nA\n--- continue\nB", "Line 3: The overlap is 25 frames, but this shot or the one before has 25"),
        ("--- image=3\nA", "Line 1: image=3 is asked for, but image1, image2 is connected: connect image3"),
        ("A\n--- continue image=1\nB", "Line 2: A shot that continues begins with the frames before it, not with an"),
        (f"--- seed={2**64}\nA", f"Line 1: The seed {2**64} is too large"),
        ("A\n---\n\n--- cut\nB", "Line 2: The shot has no text"),
        ("A\n--- cut\n", "Line 2: The shot has no text"),
        ("A\n---\nHe says, <S>Hello.", 'Line 2: The speech tag before "Hello." is not closed'),
        ("--- all 5s\nA\n---\nB", 'Line 1: "all" stands alone, and once'),
        ("--- all\nA\n--- all\nB\n---\nC", 'Line 3: "all" stands alone, and once'),
        ("", "The storyboard has no shot"),
        ("--- all\nA", "The storyboard has no shot"),
    ],
)
def test_what_does_not_fit_is_said_for_its_line(text, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        shots(text)


def test_a_default_length_that_no_latent_holds():
    with pytest.raises(ValueError, match=r"Line 2: The length must be 4n \+ 1 frames, got 120"):
        shots("\n--- cut\nA", frames=120)


def test_everything_that_does_not_fit_is_said_at_once():
    with pytest.raises(ValueError, match="no option") as refusal:
        shots("--- x\nA\n--- continue\nB\n--- y\nC")
    assert [line.split(":")[0] for line in str(refusal.value).splitlines()] == ["Line 1", "Line 5"]
    with pytest.raises(ValueError, match="image=9") as refusal:
        shots("\n".join(f"--- image=9\nshot {number}" for number in range(8)))
    assert str(refusal.value).splitlines()[5:] == ["… and 3 more"]


def test_lines_are_counted_as_in_an_editor():
    """From a byte order mark on, and not at the separators of other systems."""
    with pytest.raises(ValueError, match=r"^Line 3: "):
        shots("\ufeff--- 9f\r\nA\u2028B\x0cC\r\n--- x\r\nD")
    assert [shot.prompt for shot in shots("\ufeff--- 9f\r\nA\r\nB")] == ["A\nB"]


FOUR = "A\n--- continue\nB\n--- cut\nC\n--- continue\nD"


def test_shots_end_in_the_pauses_of_a_track():
    """In the last pause that a shot reaches with half of its length or more; the last shot is as long as it may be."""
    track = Track(frames=400, pauses=((50, 55), (100, 110), (111, 112), (185, 192), (250, 251)))
    board = read(FOUR, DEFAULTS, track=track)
    assert [shot.frames for shot in board.shots] == [109, 105, 61, 121]
    assert board.starts == [0, 84, 189, 225, 346]
    assert board.notes == ("The audio lasts 16.67 s: the first 14.42 s are used",)


def test_the_last_shot_ends_with_the_track():
    """It holds what is left of it; a length that is given stays."""
    board = read(FOUR, DEFAULTS, track=Track(390, ()))
    assert ([shot.frames for shot in board.shots], board.frames, board.notes) == ([121, 121, 121, 77], 390, ())
    board = read(f"{FOUR}\n--- 4s\nE", DEFAULTS, track=Track(500, ((5, 500),)))
    assert [shot.frames for shot in board.shots] == [121, 121, 121, 121, 97]


def test_shots_behind_the_end_of_a_track_follow_nothing():
    board = read(FOUR, DEFAULTS, track=Track(150, ()))
    assert [board.follows(shot, begin) for shot, begin in zip(board.shots, board.starts, strict=False)] == [
        True,
        True,
        False,
        False,
    ]
    assert board.notes == ("Line 4: The audio lasts 6.25 s, and ends before this shot: it is silent",)


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2)])
def test_a_track_is_read_from_audio(rate, channels):
    wave = 0.01 * torch.randn(channels, 3 * rate, generator=torch.Generator().manual_seed(0))
    wave[:, :rate] *= 50
    wave[:, 2 * rate :] *= 50
    track = Track.of({"waveform": wave[None], "sample_rate": rate})
    assert track.frames == 72
    assert track.pauses == (pytest.approx((24, 48), abs=0.6),)


def test_a_track_too_short_to_follow_is_refused():
    with pytest.raises(ValueError, match=r"The audio lasts 0\.05 s, but shots follow at least 0\.08 s"):
        Track.of({"waveform": torch.zeros(1, 1, 800), "sample_rate": 16000})
