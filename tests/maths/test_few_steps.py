"""What the bench of few passes says of its rows, and rows that several processes measured."""

from __future__ import annotations

import json
from argparse import Namespace
from types import SimpleNamespace

import pytest

from bench import saving, shards, turbo
from bench.talking import Measured
from support.verdicts import result

ARGS = Namespace(prompts=2, reference_prompts=64, seed=0, named="", rows=None, shard=(0, 1))


def measured(rows):
    """Rows by name: their passes, the errors that they are chosen by, and the others."""
    of = [{name: result(each[part], name, passes=each[0]) for name, each in rows.items()} for part in (1, 2)]
    return Measured(choosing=of[0], rows=of[1])


def test_the_best_is_chosen_by_some_prompts_and_shown_by_others():
    """With at most so many passes; among equals it is the one with fewer passes, where lips are as good."""
    found = measured(
        {
            "slow": (40.0, [0, 0], [1, 0]),
            "equal": (24.0, [0, 0], [1, 1]),
            "lucky later": (8.0, [2, 2], [0, 0]),
            "few": (4.0, [1, 1], [2, 2]),
            "LoRA": (4.0, [0, 1], [0, 1]),
        }
    )
    series = saving.series(found)
    plain = [(100, "equal"), (50, "equal"), (25, "equal"), (12, "few"), (8, "few"), (4, "few")]  # none with 2 passes
    assert [(each.budget, each.result.name) for each in series["without distillation"]] == plain
    assert [each.result.name for each in series["with distillation"]] == ["equal"] * 3 + ["LoRA"] * 3
    assert series["without distillation"][0].result.errors.tolist() == [1, 1]
    said = list(saving.lines(found))
    assert len(said) == 1 + 12 + 3
    assert all(line.count("|") == said[0].splitlines()[0].count("|") for line in said[1:13])
    assert [line.partition(":")[0] for line in said[13:]] == [f"{each} passes, LoRA against few" for each in (12, 8, 4)]
    assert "| few | 4.0 | 50.0%" in said[4]
    page = saving.curve(found)
    assert page.getpixel((saving.SIZE[0] // 2, 2)) == saving.PAPER
    assert {colour for _, colour in page.getcolors(10**6)} >= set(saving.LINES[:2])


def test_what_a_student_closes():
    """Of a gap of half of the syllables, half; nothing is said of a gap that may be none."""
    rows = {
        turbo.TEACHER: result([0, 0, 0, 0]),
        turbo.undistilled(2): result([2, 2, 2, 2], turbo.undistilled(2)),
        turbo.student(2, 1.0): result([1, 1, 1, 1], turbo.student(2, 1.0)),
    }
    said = list(turbo.talking_lines(rows))
    assert len(said) == 3
    assert "against the teacher: +25.0 (+25.0 to +25.0) points of syllable errors, +0.0 ms to a vowel" in said[1]
    assert said[2].endswith("closed 50.0% (50.0 to 50.0) of the gap of +50.0 (+50.0 to +50.0) points")
    rows[turbo.undistilled(2)] = result([0, 1, 0, 0], turbo.undistilled(2))
    assert "closed" not in list(turbo.talking_lines(rows))[2]


def test_first_bounces_agree():
    """Their correlation and spread, over clips in which both have one; one that is far away is another bounce."""
    times = [0.1, 0.15, 0.2, None, 0.7, 0.9]
    found = [0.2, 0.3, 0.4, 0.1, None, 0.4]
    assert turbo.agreement(found, times) == (pytest.approx(1), pytest.approx(2), 3, 1)
    rows = {turbo.TEACHER: {"first_bounces": times}, "student": {"first_bounces": found}}
    said = "student: 3 first bounces correlate 1.00 with the teacher's, sd 2.00 times; 1 more than 0.2 s away"
    assert list(turbo.ball_lines(rows)) == [said]


def test_rows_are_shared_among_processes(tmp_path):
    """Each is measured once; what they print, among other lines, is put in the order of the table."""
    rows = [SimpleNamespace(name=name) for name in ("a", "b", "c", "other", "d")]
    ARGS.named = "^.$"
    paths = []
    for which in range(2):
        ARGS.shard = shards.shard(f"{which}/2")
        lines = [shards.written(ARGS, shards.Line(i, row.name, {})) for i, row in shards.chosen(rows, ARGS)]
        paths.append(tmp_path / f"{which}.json")
        paths[-1].write_text("\n".join(["loaded", *lines]))
    assert [(line.place, line.name) for line in shards.merged(paths)] == [(0, "a"), (1, "b"), (2, "c"), (4, "d")]
    other = json.loads(lines[-1]) | {"seed": 1}
    paths[-1].write_text(json.dumps(other))
    with pytest.raises(SystemExit, match="other prompts or another seed"):
        shards.merged(paths)
    for wrong in ("2/2", "a", "1"):
        with pytest.raises(ValueError, match=wrong):
            shards.shard(wrong)
