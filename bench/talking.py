"""The quality of the talking world's clips: a table, intervals, and a picture, for `python -m bench.quality --talking`.

Syllable errors are the share of the syllables that are wrong, missing or too many. Every row has the prompts and the
noise of the first one, so that differences from it are paired: their 95 % intervals come from drawing clips again.
With `--saving` the first third of the prompts is there to choose settings by, and the table has the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from miniature import WEIGHTS, judge
from miniature.figures import GRID, INK, LINES, PAPER

MODEL = WEIGHTS / "ovi_talking.safetensors"

STEPS, CFG = 20, 2.0  # of the first row
CACHES, THRESHOLDS = ("EasyCache", "LazyCache"), (0.05, 0.1, 0.2, 0.4)
DRAWS = 2000  # bootstrap samples
HARM = 0.03  # more syllable errors, or less correlation, than a cache may be shown to bring for being harmless
COLUMNS: Mapping[str, str] = {
    "vowels": "{:.0%}",
    "voice": "{:.0%}",
    "pace": "{:.0%}",
    "look": "{:.0%}",
    "correlation": "{:.2f}",
    "lag_ms": "{:.0f} ms",
    "to_vowel_ms": "{:.0f} ms",
    "to_opening_ms": "{:.0f} ms",
    "openings": "{:.2f}",
}
NAMES, AXIS, LINE = 300, 300, 16  # pixels: the width of the rows' names and of an axis, and the height of a row
HEAD = (
    "| | Syllable errors | Against the first | Vowels | Voice | Pace | Look | Correlation | Lag | To a vowel "
    "| To an opening | Openings | Passes | Time |\n|" + "---|" * 14
)


def name_of(steps: int, cfg: float) -> str:
    """Return the name of the row with these steps and this cfg."""
    return f"{steps} steps, cfg {cfg:g}"


def cache_name(cache: str, threshold: float) -> str:
    """Return the name of the row with a cache."""
    return f"{cache}, threshold {threshold:g}"


# Rows whose errors are compared, the first with the second.
PAIRS = [
    *((name_of(2, cfg), name_of(4, cfg)) for cfg in (1.0, CFG, 3.0)),
    *((name_of(steps, 1.0), name_of(steps, CFG)) for steps in (4, STEPS)),
]


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def percent(self, *, signed: bool = False) -> str:
        """Word it in percent, or in points with a sign."""
        numbers = (f"{100 * each:{'+' if signed else ''}.1f}" for each in (self.value, self.low, self.high))
        value, low, high = numbers
        return f"{value}{'' if signed else '%'} ({low} to {high})"


@dataclass(frozen=True)
class Result:
    """What a row's clips are judged to be, the passes of the model for each clip, and the seconds of sampling them.

    Of each clip there are the syllable errors, the syllables of its prompt and the correlation, [N] each.
    """

    name: str
    summary: Mapping[str, float]  # of `judge`
    errors: Tensor
    syllables: Tensor
    correlations: Tensor
    passes: float
    seconds: float

    @classmethod
    def of(cls, name: str, verdicts: Sequence[judge.Verdict], passes: float, seconds: float) -> Result:
        """Sum up the verdicts on clips."""
        each = (
            torch.tensor([float(one.words.errors) for one in verdicts]),
            torch.tensor([float(one.syllables) for one in verdicts]),
            torch.tensor([round(one.sync.correlation, 4) for one in verdicts]),
        )
        return cls(name, judge.summary(verdicts), *each, passes, seconds)

    @classmethod
    def read(cls, name: str, saved: Mapping[str, Any]) -> Result:
        """Return what `saved` returned."""
        clips = {name: torch.tensor(values) for name, values in saved["clips"].items()}
        return cls(name, saved["summary"], passes=saved["passes"], seconds=saved["seconds"], **clips)

    @property
    def lips_ms(self) -> float:
        """The mean of the distances from an opening to a vowel and back."""
        return (self.summary["to_vowel_ms"] + self.summary["to_opening_ms"]) / 2

    def error_rate(self) -> Interval:
        """Return the share of the syllables that are errors."""
        return share(self.errors, self.syllables)

    def more_errors(self, than: Result) -> Interval | None:
        """Return how many more they are than another row's, where the prompts are the same."""
        if not torch.equal(self.syllables, than.syllables):
            return None
        return share(self.errors - than.errors, self.syllables)

    def more_correlation(self, than: Result) -> Interval:
        """Return how much larger the mean correlation is than another row's."""
        return share(self.correlations - than.correlations, torch.ones_like(self.correlations))

    def cells(self, first: Result) -> list[str]:
        """Word it for the table."""
        more = None if self is first else self.more_errors(first)
        return [
            self.name,
            self.error_rate().percent(),
            more.percent(signed=True) if more else "",
            *(form.format(self.summary[name]) for name, form in COLUMNS.items()),
            f"{self.passes:.1f}",
            f"{self.seconds:.0f} s",
        ]

    def saved(self) -> dict[str, Any]:
        """Return it for a JSON file, with what each clip is compared by."""
        clips = {name: getattr(self, name).tolist() for name in ("errors", "syllables", "correlations")}
        return {"summary": dict(self.summary), "passes": self.passes, "seconds": self.seconds, "clips": clips}


@dataclass(frozen=True)
class Measured:
    """The rows that were measured, by name; of `choosing` are the clips that settings are chosen by."""

    rows: dict[str, Result] = field(default_factory=dict)
    choosing: dict[str, Result] = field(default_factory=dict)


def share(parts: Tensor, wholes: Tensor) -> Interval:
    """Return the sum of parts [N] as a share of that of wholes [N], with its interval over clips."""
    drawn = torch.randint(len(parts), (DRAWS, len(parts)), generator=torch.Generator().manual_seed(0))
    shares = parts[drawn].sum(1) / wholes[drawn].sum(1)
    low, high = shares.quantile(torch.tensor([0.025, 0.975])).tolist()
    return Interval((parts.sum() / wholes.sum()).item(), low, high)


def by_chance(first: Result) -> str:
    """Word the measures of the first row by chance, for the table."""
    summary = first.summary
    cells = [form.format(summary.get(f"{name}_chance", math.nan)) for name, form in COLUMNS.items()]
    return " | ".join(["by chance", f"{summary['syllables_chance']:.1%}", "", *cells, "", ""]).replace("nan", "")


def comparisons(results: Mapping[str, Result], pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Say how many more errors the first of each pair of rows has than the second, where both were measured."""
    for more, than in pairs:
        if more in results and than in results:
            difference = results[more].more_errors(results[than])
            if difference:
                yield f"{more} against {than}: {difference.percent(signed=True)} points of syllable errors"


def harmless(results: Mapping[str, Result], first: Result, names: Mapping[float, str]) -> float | None:
    """Return the largest of thresholds, with the `names` of their rows, up to which a cache does no harm.

    Both intervals, of the difference in errors and in correlation, exclude a harm of more than `HARM`.
    """
    best = None
    for threshold, name in sorted(names.items()):
        row = results.get(name)
        more = row.more_errors(first) if row else None
        if row is None or more is None or more.high > HARM or row.more_correlation(first).low < -HARM:
            break
        best = threshold
    return best


def picture(results: Sequence[Result]) -> Image.Image:
    """Draw the syllable errors of rows with their intervals, and the correlation of lips and loudness beside them."""
    page = Image.new("RGB", (NAMES + 2 * AXIS, LINE * (len(results) + 2)), PAPER)
    pen = ImageDraw.Draw(page)

    def place(panel: int, value: float) -> float:
        return NAMES + panel * AXIS + 10 + max(0.0, min(value, 1.0)) * (AXIS - 30)

    for panel, title in enumerate(("syllable errors, %", "correlation")):
        for tick in range(0, 11, 2):
            x = place(panel, tick / 10)
            pen.line([(x, LINE), (x, page.height - LINE)], fill=GRID)
            pen.text((x - 6, page.height - LINE + 2), str(10 * tick if panel == 0 else tick / 10), fill=INK)
        pen.text((place(panel, 0), 1), title, fill=INK)
    for i, result in enumerate(results):
        y = LINE * (i + 1.5)
        pen.text((4, y - 6), result.name, fill=INK)
        of_correlation = share(result.correlations, torch.ones_like(result.correlations))
        for panel, interval in enumerate((result.error_rate(), of_correlation)):
            pen.line([(place(panel, interval.low), y), (place(panel, interval.high), y)], fill=LINES[panel], width=2)
            x = place(panel, interval.value)
            pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=LINES[panel])
    return page
