"""Where to save passes: the best settings of the talking world at most so many passes, for `bench.quality --saving`.

A pass is one of the model; a step that a cache answers is none. Settings are chosen by the syllable errors on some
prompts, among equals by the distance of lips and voice, and what is said of them is measured on others: else the
luckiest of forty would look better than it is. Caches decide for all clips of a batch at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from PIL import Image, ImageDraw

from bench.talking import Interval, Measured, Result
from miniature.figures import GRID, INK, LINES, PAPER

BUDGETS = 100, 50, 25, 12, 8, 4, 2  # passes
LORA = "LoRA"  # begins the names of the rows with distillation
HEAD = (
    "| | Passes at most | Setting | Passes | Syllable errors | Against the first | To a vowel | To an opening "
    "| Correlation |\n|" + "---|" * 9
)
SIZE, MARGIN = (420, 280), 44  # pixels of a panel, and of the room for its axes
MOST, LEAST = 128, 2  # passes at the ends of an axis, which is logarithmic


class Best(NamedTuple):
    """The best setting of at most so many passes, on the prompts that it was not chosen by."""

    budget: int
    result: Result


def best(measured: Measured, names: Iterable[str]) -> list[Best]:
    """Return the best of some settings for each budget that has one."""
    among = [measured.choosing[name] for name in names]
    found = []
    for budget in BUDGETS:
        fitting = [one for one in among if one.passes <= budget]
        if fitting:
            chosen = min(fitting, key=lambda one: (one.errors.sum().item(), one.lips_ms, one.passes))
            found.append(Best(budget, measured.rows[chosen.name]))
    return found


def series(measured: Measured) -> Mapping[str, list[Best]]:
    """Return the best settings without distillation and, where there are such rows, with it."""
    plain = [name for name in measured.rows if not name.startswith(LORA)]
    found = {"without distillation": best(measured, plain)}
    if len(plain) < len(measured.rows):
        found["with distillation"] = best(measured, measured.rows)
    return found


def lines(measured: Measured) -> Iterator[str]:
    """Word the best settings as a table, and then what distillation changes with as many passes."""
    yield HEAD
    found = series(measured)
    first = next((row for each in found.values() for _, row in each), None)
    for what, each in found.items():
        for budget, row in each:
            more = None if first is None or row is first else row.more_errors(first)
            cells = [
                what,
                str(budget),
                row.name,
                f"{row.passes:.1f}",
                row.error_rate().percent(),
                more.percent(signed=True) if more else "",
                *(f"{row.summary[key]:.0f} ms" for key in ("to_vowel_ms", "to_opening_ms")),
                f"{row.summary['correlation']:.2f}",
            ]
            yield f"| {' | '.join(cells)} |"
    plain, distilled = (dict(each) for each in (*found.values(), [])[:2])
    for budget in sorted(plain.keys() & distilled.keys(), reverse=True):
        before, after = plain[budget], distilled[budget]
        more = after.more_errors(before)
        if more and after is not before:
            yield f"{budget} passes, {after.name} against {before.name}: {more.percent(signed=True)} points"


def curve(measured: Measured) -> Image.Image:
    """Draw the passes of the best settings against their syllable errors, with intervals, and their lip sync.

    Small dots are all settings.
    """
    page = Image.new("RGB", (2 * SIZE[0], SIZE[1]), PAPER)

    def errors(row: Result) -> Interval:
        rate = row.error_rate()
        return Interval(*(100 * each for each in (rate.value, rate.low, rate.high)))

    def lips(row: Result) -> Interval:
        return Interval(row.lips_ms, row.lips_ms, row.lips_ms)

    _panel(page, 0, "syllable errors, %", measured, errors)
    _panel(page, SIZE[0], "lips to voice, ms", measured, lips)
    return page


def _panel(page: Image.Image, left: int, title: str, measured: Measured, value: Callable[[Result], Interval]) -> None:
    """Draw one measure over the passes."""
    pen = ImageDraw.Draw(page)
    found = series(measured)
    shown = [value(row).high for each in found.values() for _, row in each]
    step = _step(max([*filter(math.isfinite, shown), 1e-9]))
    top = 5 * step
    right, bottom = left + SIZE[0] - 12, SIZE[1] - 36

    def place(passes: float, height: float) -> tuple[float, float]:
        across = (math.log(passes) - math.log(LEAST)) / (math.log(MOST) - math.log(LEAST))
        return left + MARGIN + across * (right - left - MARGIN), bottom - min(height, top) / top * (bottom - MARGIN)

    for tick in range(6):
        pen.line([place(LEAST, tick * step), place(MOST, tick * step)], fill=GRID)
        pen.text((left + 6, place(LEAST, tick * step)[1] - 6), f"{tick * step:g}", fill=INK)
    for budget in BUDGETS:
        x, y = place(budget, 0)
        pen.text((x - 6, y + 6), str(budget), fill=INK)
    pen.text((right - 100, bottom + 20), "passes of the model", fill=INK)
    pen.text((left + MARGIN, 4), title, fill=INK)
    for row in measured.rows.values():
        _dot(pen, place(row.passes, value(row).value), 1, INK)
    for i, (what, each) in enumerate(found.items()):
        pen.text((left + MARGIN + 150 * i, 20), what, fill=LINES[i])
        points = []
        for row in {row.name: row for _, row in each}.values():
            interval = value(row)
            pen.line([place(row.passes, interval.low), place(row.passes, interval.high)], fill=LINES[i])
            points.append(place(row.passes, interval.value))
            _dot(pen, points[-1], 3, LINES[i])
        pen.line(points, fill=LINES[i], width=2)


def _step(most: float) -> float:
    """Return a round fifth of an axis that reaches up to this."""
    unit = 10.0 ** math.floor(math.log10(most / 5))
    return next(unit * times for times in (1, 2, 5, 10) if 5 * unit * times >= most)


def _dot(pen: ImageDraw.ImageDraw, at: tuple[float, float], radius: int, colour: tuple[int, int, int]) -> None:
    x, y = at
    pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
