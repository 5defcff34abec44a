"""What a LoRA for few steps says of its sampling: written, read back, and never trusted."""

from __future__ import annotations

import dataclasses
import json

import pytest

from ovi import turbo

FOUR = turbo.Sampling(steps=4, shift=5.0, cfg=1.0, audio_cfg=3.0, sampler="euler")
SAID = {"steps": 4, "shift": 5, "cfg": 1.0, "audio_cfg": 3, "sampler": "euler"}


def test_what_is_written_is_read():
    assert turbo.read({"format": "pt", **FOUR.metadata()}) == FOUR
    assert turbo.read({"ovi_sampling": json.dumps(SAID | {"later": [1]})}) == FOUR
    assert json.loads(FOUR.metadata()["ovi_sampling"]) == SAID


def test_the_note():
    assert turbo.note(FOUR.metadata()) == ["Made for 4 steps of euler, shift 5, cfg 1, audio cfg 3; solver dpm++"]
    one = dataclasses.replace(FOUR, steps=1, shift=2.5, sampler="dpmpp_2m")
    assert turbo.note(one.metadata()) == ["Made for 1 step of dpmpp_2m, shift 2.5, cfg 1, audio cfg 3; solver dpm++"]
    wan2gp = dataclasses.replace(FOUR, steps=6, shift=6, audio_cfg=1, sampler="unipc")
    assert turbo.note(wan2gp.metadata()) == ["Made for 6 steps of unipc, shift 6, cfg 1, audio cfg 1; solver unipc"]


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}])
def test_other_files_say_nothing(metadata):
    assert turbo.read(metadata) is None
    assert turbo.note(metadata) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is no JSON"),
        ("{", "it is no JSON"),
        ("[" * 1000, "it is no JSON"),
        ("3", "it is no JSON object"),
        ("null", "it is no JSON object"),
        (json.dumps([SAID]), "it is no JSON object"),
        (json.dumps(SAID) + " " * 1000, "it must be a text of at most 1000 characters"),
        (4, "it must be a text of at most 1000 characters"),
        ("{}", "steps, shift, cfg, audio_cfg, sampler missing"),
        (json.dumps({"steps": 4, "shift": 5, "sampler": "euler"}), "cfg, audio_cfg missing"),
        *[
            (json.dumps(SAID | {"steps": steps}), "steps must be a whole number from 1 to 1000")
            for steps in (0, -4, 1001, 4.0, "4", True, None, [4])
        ],
        *[
            (json.dumps(SAID | {name: value}), f"{name} must be a number from {low} to 100")
            for name, low in (("shift", 0.1), ("cfg", 0), ("audio_cfg", 0))
            for value in (-1, 101, float("nan"), float("inf"), "5", False, None)
        ],
        *[
            (json.dumps(SAID | {"sampler": sampler}), "sampler must be a name of at most 40 small letters, digits")
            for sampler in (7, None, "", "x" * 41, "two words", "line\nbreak", "euler\n", "\u202eeuler", "Euler")
        ],
    ],
)
def test_what_cannot_be_read_is_said_in_a_short_note(text, why):
    with pytest.raises(ValueError, match=f"^{why}"):
        turbo.read({"ovi_sampling": text})
    (line,) = turbo.note({"ovi_sampling": text})
    assert line.startswith(f"How it is to be sampled (ovi_sampling) cannot be read: {why}")
    assert line.isprintable()
    assert len(line) < 200


@pytest.mark.parametrize("change", [{"steps": 0}, {"steps": 2.0}, {"shift": 0}, {"cfg": -1}, {"sampler": "a b"}])
def test_only_what_can_be_read_is_written(change):
    with pytest.raises(ValueError, match="must be"):
        dataclasses.replace(FOUR, **change)
