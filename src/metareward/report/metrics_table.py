"""The table of metrics by model with 95 % intervals and differences to M0, for the page and for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from metareward.report.facts import Evaluation, Measure

Form = Literal["score", "share", "chars", "correlation"]
Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table. ``better`` is ``neither`` where a change alone is no improvement, such as a length."""

    key: str
    label: str
    group: str
    form: Form
    better: Better
    meaning: str

    def show(self, value: float) -> str:
        """``value`` formatted; only shares have a unit."""
        return show(self.form, value)

    def show_interval(self, low: float, high: float) -> str:
        """``2.28 to 2.54``. Values that are all equal have no interval: resampling them gives the mean again."""
        if low == high:
            return NO_INTERVAL
        return f"{show(self.form, low).removesuffix(PERCENT)} to {show(self.form, high)}"

    def show_change(self, change: float) -> str:
        """A difference with its sign; differences of shares are in percentage points."""
        sign = "−" if change < 0 else "+"
        size = show(self.form, abs(change))
        return f"{sign}{size.removesuffix(PERCENT)} points" if self.form == "share" else f"{sign}{size}"


NO_INTERVAL = "all values equal"
PERCENT = "\u202f%"  # a narrow space that doesn't break


def show(form: Form, value: float) -> str:
    """Print a value: shares as percentages, long lengths without decimals, the rest with two."""
    if not math.isfinite(value):
        return "not a number"
    if form == "share":
        return f"{100 * value:.1f}{PERCENT}".replace("-", "−")
    digits = 2 if form != "chars" else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}".replace("-", "−")


_JUDGE_CORRELATION = "Spearman correlation with the oracle's scores, on M0's answers."
METRICS = (
    Metric("answer_quality", "Answer quality (oracle, 0–5)", "Answers", "score", "higher", "Mean oracle score."),
    Metric("answer_perfect", "Perfect answers", "Answers", "share", "higher", "Share with the oracle's full score."),
    Metric("answer_self_score", "Self-assigned score", "Answers", "score", "neither", "Mean score by the model."),
    Metric("answer_chars", "Answer length (characters)", "Answers", "chars", "neither", "Mean length."),
    Metric("answer_truncated", "Truncated answers", "Answers", "share", "lower", "Share that hit the token limit."),
    Metric("judgment_exact", "Judgments equal to oracle", "Judge", "share", "higher", "Score equal to the oracle's."),
    Metric(
        "judgment_rank_correlation",
        "Rank correlation, single judgments",
        "Judge",
        "correlation",
        "higher",
        _JUDGE_CORRELATION,
    ),
    Metric(
        "judgment_mean_rank_correlation",
        "Rank correlation, mean of N judgments",
        "Judge",
        "correlation",
        "higher",
        _JUDGE_CORRELATION,
    ),
    Metric("judgment_valid", "Parsable judgments", "Judge", "share", "higher", "Share with a score inside the scale."),
    Metric("judgment_chars", "Judgment length (characters)", "Judge", "chars", "neither", "Mean length."),
    Metric(
        "anchor_score",
        "Mean score given to M0's answers",
        "Judge",
        "score",
        "neither",
        "The answers are the same for every model, so a change is drift of the judge.",
    ),
    Metric(
        "meta_accuracy",
        "Meta-judge accuracy",
        "Meta-judge",
        "share",
        "higher",
        "Share of comparisons won by the judgment nearer to the oracle's score.",
    ),
    Metric("meta_valid", "Parsable verdicts", "Meta-judge", "share", "higher", "Share naming a winner or a tie."),
    Metric(
        "meta_first_position",
        "First-position win rate",
        "Meta-judge",
        "share",
        "neither",
        "Share of verdicts for the judgment shown first; 50 % is unbiased.",
    ),
)

# The metrics of the terminal table.
_MAIN = frozenset(
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

METRICS_BY_KEY = {metric.key: metric for metric in METRICS}


def metric_for(key: str) -> Metric:
    """The entry of METRICS, or a default one for an unknown metric."""
    return METRICS_BY_KEY.get(key) or Metric(key, key.replace("_", " "), "Other", "correlation", "neither", "")


@dataclass(frozen=True, slots=True)
class Cell:
    """One metric of one model. ``change`` is the difference to the first model; None for that model itself."""

    measure: Measure
    change: float | None
    clear: bool

    def verdict(self, metric: Metric) -> str:
        """``better``, ``worse``, or ``clear`` if neither is meant, when the intervals do not overlap. Else empty."""
        if self.change is None or not self.clear:
            return ""
        if metric.better == "neither":
            return "clear"
        return "better" if (self.change > 0) == (metric.better == "higher") else "worse"


@dataclass(frozen=True, slots=True)
class Row:
    """One metric over all models; None for a model without it."""

    metric: Metric
    cells: tuple[Cell | None, ...]

    @property
    def n(self) -> int | None:
        """The number of values behind every cell, when it is the same for all of them."""
        counts = {cell.measure.n for cell in self.cells if cell is not None}
        return counts.pop() if len(counts) == 1 else None


def rows(evaluations: Sequence[Evaluation]) -> tuple[Row, ...]:
    """A row for every metric that any model has, known ones first, in the order of METRICS."""
    present = {key for evaluation in evaluations for key in evaluation.metrics}
    known = [metric for metric in METRICS if metric.key in present]
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


def metrics_text(evaluations: Sequence[Evaluation]) -> Table:
    """The main metrics M0..MT for the terminal, at most 80 columns: means above their 95 % intervals."""
    caption = "Below each mean its 95 % interval. Bold: the interval does not overlap with M0's."
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), caption=caption, caption_justify="left")
    table.add_column("held-out prompts")
    for evaluation in evaluations:
        table.add_column(evaluation.model, justify="right", no_wrap=True)
    for row in rows(evaluations):
        if row.metric.key in _MAIN:
            table.add_row(row.metric.label, *(_cell_text(row, cell) for cell in row.cells))
    return table


def _cell_text(row: Row, cell: Cell | None) -> Text:
    if cell is None:
        return Text("–")
    mean = (row.metric.show(cell.measure.mean), "bold" if cell.clear else "")
    interval = row.metric.show_interval(cell.measure.low, cell.measure.high).removesuffix(PERCENT)
    interval = "–" if interval == NO_INTERVAL else interval.replace(" to ", "–")
    return Text.assemble(mean, "\n", (interval, "dim"))
