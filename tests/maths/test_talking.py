"""The numbers of the talking world's table: intervals, what is harmless, and the picture."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from bench import talking
from support.verdicts import result


def test_the_interval_of_a_share():
    """That of a share of 10 % of independent clips is its standard error's, about; equal clips have none."""
    parts = torch.zeros(400)
    parts[:40] = 1
    got = talking.share(parts, torch.ones(400))
    assert got.value == pytest.approx(0.1)
    assert got.low == pytest.approx(0.1 - 1.96 * 0.015, abs=0.006)
    assert got.high == pytest.approx(0.1 + 1.96 * 0.015, abs=0.006)
    assert talking.share(torch.ones(9), torch.full((9,), 4.0)) == talking.Interval(0.25, 0.25, 0.25)


def test_differences_are_paired():
    """One more error in each clip is exactly that, however much the clips differ."""
    few, more = result([0, 1, 2, 3] * 8), result([1, 2, 3, 4] * 8)
    difference = more.more_errors(few)
    assert (difference.value, difference.low, difference.high) == (0.25, 0.25, 0.25)
    assert difference.percent(signed=True) == "+25.0 (+25.0 to +25.0)"
    assert dataclasses.replace(few, syllables=torch.full((32,), 8.0)).more_errors(more) is None


def test_a_row_of_the_table():
    first = result([0, 0, 2, 2])
    cells = first.cells(first)
    assert len(cells) == talking.HEAD.splitlines()[0].count("|") - 1
    assert cells[1].startswith("25.0% (")
    assert cells[2] == ""
    assert cells[3:] == ["0%", "100%", "100%", "100%", "0.80", "0 ms", "10 ms", "20 ms", "1.00", "2.0", "1 s"]
    chance = talking.by_chance(first).split(" | ")
    assert chance == [
        "by chance",
        "75.0%",
        "",
        "50%",
        "50%",
        "50%",
        "4%",
        "0.30",
        "100 ms",
        "70 ms",
        "60 ms",
        "",
        "",
        "",
    ]
    read = talking.Result.read("row", json.loads(json.dumps(first.saved())))
    assert read.cells(read) == cells
    assert read.more_errors(first) == talking.Interval(0.0, 0.0, 0.0)


def test_the_largest_harmless_threshold():
    """It ends at the first that harms, by errors or by lips; one that was not measured is not harmless."""
    first = result([0] * 20)
    names = {0.1: "a", 0.2: "b", 0.4: "c"}
    same, worse = result([0] * 20), result([0, 1] * 10)
    assert talking.harmless({"a": same, "b": same, "c": same}, first, names) == 0.4
    assert talking.harmless({"a": same, "b": worse, "c": same}, first, names) == 0.1
    assert talking.harmless({"a": same, "b": result([0] * 20, correlation=0.7)}, first, names) == 0.1
    assert talking.harmless({"b": same}, first, names) is None


def test_comparisons_name_both_rows():
    rows = {"2 steps": result([1, 1]), "4 steps": result([0, 0])}
    said = list(talking.comparisons(rows, [("2 steps", "4 steps"), ("1 step", "4 steps")]))
    assert said == ["2 steps against 4 steps: +25.0 (+25.0 to +25.0) points of syllable errors"]


def test_the_picture_has_a_line_for_each_row():
    """The dot of a row without errors is at the left end of its axis, that of a row with half at its middle."""
    rows = [result([0] * 4), result([2] * 4)]
    page = talking.picture(rows)
    assert page.height == talking.LINE * 4
    start, width = talking.NAMES + 10, talking.AXIS - 30
    for i, x in enumerate((start, start + width // 2)):
        assert page.getpixel((x, int(talking.LINE * (i + 1.5)))) == talking.LINES[0]
