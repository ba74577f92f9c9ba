"""Metrics × models with 95 % intervals and differences to M0: one set of rows for the page and the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from metareward.report.facts import Evaluation, Measure

# --- The metrics a reader may meet: their names in plain words, how to print them, and which way is better.


Form = Literal["score", "share", "chars", "correlation"]
Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table. ``better`` is ``neither`` where a change alone is no gain, such as a length."""

    key: str
    label: str
    group: str
    form: Form
    better: Better
    meaning: str

    def show(self, value: float) -> str:
        """``value`` with the digits its form deserves; only shares carry a unit."""
        return show(self.form, value)

    def show_interval(self, low: float, high: float) -> str:
        """``2.28 to 2.54``; the unit is said once."""
        return f"{show(self.form, low).removesuffix(PERCENT)} to {show(self.form, high)}"

    def show_change(self, change: float) -> str:
        """A difference, always with its sign. Shares differ by percentage points, which are not per cent."""
        sign = "−" if change < 0 else "+"
        size = show(self.form, abs(change))
        return f"{sign}{size.removesuffix(PERCENT)} points" if self.form == "share" else f"{sign}{size}"


PERCENT = "\u202f%"  # a narrow space that doesn't break


def show(form: Form, value: float) -> str:
    """Print a value: shares as percentages, long lengths without decimals, the rest with two."""
    if not math.isfinite(value):
        return "not a number"
    if form == "share":
        return f"{100 * value:.1f}{PERCENT}".replace("-", "−")
    digits = 2 if form != "chars" else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}".replace("-", "−")


CATALOGUE = (
    Metric("answer_quality", "Answer quality (0–5)", "Answers", "score", "higher", "Mean score the oracle gives."),
    Metric("answer_perfect", "Perfect answers", "Answers", "share", "higher", "Share with the oracle's full score."),
    Metric(
        "answer_self_score", "Own mean score", "Answers", "score", "neither", "What the model scores its own answers."
    ),
    Metric("answer_chars", "Answer length, characters", "Answers", "chars", "neither", "Mean length."),
    Metric("answer_truncated", "Answers cut off", "Answers", "share", "lower", "Share that hit the token limit."),
    Metric("judgment_exact", "Judgments exactly right", "Judge", "share", "higher", "Equal to the oracle's score."),
    Metric(
        "judgment_rank_correlation",
        "Rank correlation, one judgment",
        "Judge",
        "correlation",
        "higher",
        "With the oracle.",
    ),
    Metric(
        "judgment_mean_rank_correlation",
        "Rank correlation, mean of N",
        "Judge",
        "correlation",
        "higher",
        "With the oracle.",
    ),
    Metric(
        "judgment_valid", "Judgments readable", "Judge", "share", "higher", "Share ending in a score inside the scale."
    ),
    Metric("judgment_chars", "Judgment length, characters", "Judge", "chars", "neither", "Mean length."),
    Metric(
        "anchor_score", "Mean score of M0's answers", "Judge", "score", "neither", "The same answers each time: drift."
    ),
    Metric(
        "meta_accuracy", "Meta-judge right", "Meta-judge", "share", "higher", "Picks the judgment nearer to the oracle."
    ),
    Metric("meta_valid", "Verdicts readable", "Meta-judge", "share", "higher", "Share naming a winner or a tie."),
    Metric("meta_first_position", "Wins of the first shown", "Meta-judge", "share", "neither", "50 % is unbiased."),
)

# What the terminal shows: the three roles' skill, and the two things that drift.
MAIN = frozenset(
    {
        "answer_quality",
        "answer_perfect",
        "answer_self_score",
        "answer_chars",
        "judgment_exact",
        "judgment_rank_correlation",
        "judgment_mean_rank_correlation",
        "anchor_score",
        "meta_accuracy",
    }
)

BY_KEY = {metric.key: metric for metric in CATALOGUE}


def metric_for(key: str) -> Metric:
    """The catalogue's entry, or a plain one for a metric it has not heard of."""
    return BY_KEY.get(key) or Metric(key, key.replace("_", " "), "Other", "correlation", "neither", "")


@dataclass(frozen=True, slots=True)
class Cell:
    """One metric of one model. ``change`` is the difference to the first model; None for that model itself."""

    measure: Measure
    change: float | None
    clear: bool

    def verdict(self, metric: Metric) -> str:
        """When the intervals are apart: ``better``, ``worse``, or ``clear`` if neither side is good. Else empty."""
        if self.change is None or not self.clear:
            return ""
        if metric.better == "neither":
            return "clear"
        return "better" if (self.change > 0) == (metric.better == "higher") else "worse"


@dataclass(frozen=True, slots=True)
class Row:
    """One metric over all models; a model that was not measured on it has None."""

    metric: Metric
    cells: tuple[Cell | None, ...]

    @property
    def n(self) -> int | None:
        """The number of values behind every cell, when it is the same for all of them."""
        counts = {cell.measure.n for cell in self.cells if cell is not None}
        return counts.pop() if len(counts) == 1 else None


def rows(evaluations: Sequence[Evaluation]) -> tuple[Row, ...]:
    """A row for every metric that any model has, known ones first, in the catalogue's order; none without models."""
    present = {key for evaluation in evaluations for key in evaluation.metrics}
    known = [metric for metric in CATALOGUE if metric.key in present]
    others = [metric_for(key) for key in sorted(present - {metric.key for metric in known})]
    return tuple(_row(metric, evaluations) for metric in (*known, *others))


def _row(metric: Metric, evaluations: Sequence[Evaluation]) -> Row:
    measures = [evaluation.metrics.get(metric.key) for evaluation in evaluations]
    base = measures[0] if evaluations[0].model == "M0" else None
    return Row(metric, tuple(_cell(m, None if i == 0 else base) for i, m in enumerate(measures)))


def _cell(measure: Measure | None, base: Measure | None) -> Cell | None:
    if measure is None:
        return None
    if base is None:
        return Cell(measure, None, False)
    return Cell(measure, measure.mean - base.mean, measure.apart_from(base))
