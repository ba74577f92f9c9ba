"""The report's tables: metrics by model, win rates between models, and what became of each iteration's prompts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from metareward.report.facts import Evaluation, Measure, PairSummary
from metareward.report.labels import drop_label

Form = Literal["score", "share", "chars", "correlation", "points"]
Better = Literal["higher", "lower", "neither"]
NO_INTERVAL = "all values equal"
PERCENT = "\u202f%"  # a narrow space that doesn't break


def show(form: Form, value: float | None) -> str:
    """Print a value: shares in percent, their differences in points, long lengths without decimals; None as a dash."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not a number"
    if form == "share":
        return f"{100 * value:.1f}{PERCENT}".replace("-", "−")
    if form == "points":
        return f"{100 * value:+.1f}".replace("-", "−")
    digits = 2 if form != "chars" else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}".replace("-", "−")


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table. ``better`` is ``neither`` where a change alone is no improvement, such as a length."""

    group: str
    key: str
    label: str
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

    def show_changes(self, low: float, high: float) -> str:
        """``+0.5 to +5.7 points``."""
        return f"{self.show_change(low).removesuffix(' points')} to {self.show_change(high)}"


_CORRELATION = "Spearman correlation with the oracle's scores, on M0's answers."
_DRIFT = "The answers are the same for every model, so a change is drift of the judge."
_NEARER = "Share of comparisons won by the judgment nearer to the oracle's score."
_FIRST = "Share of verdicts for the judgment shown first; 50 % is unbiased."
_INDEPENDENT = "Spearman correlation of single judgments with the independent judge's scores, on M0's answers."
_DISATTENUATED = (
    "The same divided by the root of the model's own reliability: what a less noisy judge alone doesn't change."
)
_PASSES = "All constraints met, all guards passed"
_SURE = "Two judgments of an answer give the same score. A rise alone is confidence, not quality."
_METRICS: Mapping[str, Sequence[tuple[str, str, Form, Better, str]]] = {
    "Answers": (
        ("answer_quality", "Answer quality (oracle)", "score", "higher", "Mean oracle score."),
        ("answer_perfect", "Perfect answers", "share", "higher", "Share with the oracle's full score."),
        ("answer_self_score", "Self-assigned score", "score", "neither", "Mean score by the model."),
        ("answer_chars", "Answer length (characters)", "chars", "neither", "Mean length."),
        ("answer_truncated", "Truncated answers", "share", "lower", "Share that hit the token limit."),
    ),
    "Judge": (
        ("judgment_exact", "Judgments equal to oracle", "share", "higher", "Score equal to the oracle's."),
        ("judgment_rank_correlation", "Rank correlation, single judgments", "correlation", "higher", _CORRELATION),
        (
            "judgment_mean_rank_correlation",
            "Rank correlation, mean of N judgments",
            "correlation",
            "higher",
            _CORRELATION,
        ),
        ("judgment_valid", "Readable judgments", "share", "higher", "Share with a score inside the scale."),
        ("judgment_chars", "Judgment length (characters)", "chars", "neither", "Mean length."),
        ("anchor_score", "Mean score given to M0's answers", "score", "neither", _DRIFT),
    ),
    "Constraint world": (
        ("passes_topic", "Passes: new topics", "share", "higher", f"{_PASSES}; the topic is not trained on."),
        (
            "passes_combination",
            "Passes: new combinations",
            "share",
            "higher",
            f"{_PASSES}; families are new together.",
        ),
        ("passes_family", "Passes: new families", "share", "higher", f"{_PASSES}; a family is not trained on."),
        ("constraints_met", "All constraints met", "share", "higher", "Without the guards."),
        ("guard_topic", "On its topic", "share", "higher", "It names its topic and isn't mostly the prompt."),
        ("guard_length", "Long enough", "share", "higher", "At least 8 words."),
        ("guard_finished", "Finished", "share", "higher", "It ends as a text ends."),
        ("guard_no_loops", "Without loops", "share", "higher", "It doesn't repeat itself."),
    ),
    "Meta-judge": (
        ("meta_accuracy", "Meta-judge accuracy", "share", "higher", _NEARER),
        ("meta_valid", "Readable verdicts", "share", "higher", "Share naming a winner or a tie."),
        ("meta_first_position", "First-position win rate", "share", "neither", _FIRST),
    ),
    "Independent judge": (
        ("independent_score", "Independent judge's score of answers", "score", "higher", "Mean score."),
        (
            "independent_exact",
            "Judgments equal to the independent judge's",
            "share",
            "higher",
            "Within half a point, on M0's answers.",
        ),
        (
            "independent_rank_correlation",
            "Rank correlation with independent judge",
            "correlation",
            "higher",
            _INDEPENDENT,
        ),
        ("independent_disattenuated", "Same, without the judge's own noise", "correlation", "higher", _DISATTENUATED),
        ("independent_self_agreement", "Judgments equal to its own others", "share", "neither", _SURE),
    ),
}
METRICS = {fields[0]: Metric(group, *fields) for group, members in _METRICS.items() for fields in members}
_DETAILS = {
    "independent_exact",
    "answer_truncated",
    "guard_topic",
    "guard_length",
    "guard_finished",
    "guard_no_loops",
    "judgment_valid",
    "judgment_chars",
    "meta_valid",
    "meta_first_position",
}
_MAIN = METRICS.keys() - _DETAILS  # the metrics of the terminal table


def metric_for(key: str) -> Metric:
    """The entry of METRICS, or a default one for an unknown metric."""
    return METRICS.get(key) or Metric("Other", key, key.replace("_", " "), "correlation", "neither", "")


@dataclass(frozen=True, slots=True)
class Cell:
    """One metric of one model. ``change`` is the difference to the first model; None for that model itself.

    ``paired``: the same on the same prompts, with its interval, where it is known. ``clear``: that interval excludes
    zero, or where there is none, the two models' intervals don't overlap.
    """

    measure: Measure
    change: float | None
    clear: bool
    paired: Measure | None = None

    def verdict(self, metric: Metric) -> str:
        """``better``, ``worse``, or ``clear`` if neither is meant, when the change is clear. Else empty."""
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
    keys = [*(key for key in METRICS if key in present), *sorted(present - METRICS.keys())]
    found = []
    for key in keys:
        base = evaluations[0].metrics.get(key) if evaluations[0].model == "M0" else None
        cells: list[Cell | None] = []
        for place, evaluation in enumerate(evaluations):
            measure = evaluation.metrics.get(key)
            if measure is None:
                cells.append(None)
            elif base is None or place == 0:
                cells.append(Cell(measure, None, False))
            else:
                paired = evaluation.differences.get(key)
                clear = measure.apart_from(base) if paired is None else paired.excludes_zero
                cells.append(Cell(measure, measure.mean - base.mean, clear, paired))
        found.append(Row(metric_for(key), tuple(cells)))
    return tuple(found)


def paired_rows(table: Sequence[Row]) -> tuple[Row, ...]:
    """The rows with a paired difference to M0 of some model."""
    return tuple(row for row in table if any(cell is not None and cell.paired for cell in row.cells))


def metrics_text(evaluations: Sequence[Evaluation]) -> Table:
    """The main metrics M0..MT for the terminal, at most 80 columns: means above their 95 % intervals."""
    caption = "Below each mean its 95 % interval. Bold: a clear difference to M0's."
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), caption=caption, caption_justify="left")
    table.add_column("held-out prompts")
    for evaluation in evaluations:
        table.add_column(evaluation.model, justify="right", no_wrap=True)
    for row in rows(evaluations):
        if row.metric.key not in _MAIN:
            continue
        texts = []
        for cell in row.cells:
            if cell is None:
                texts.append(Text("–"))
                continue
            mean = (row.metric.show(cell.measure.mean), "bold" if cell.clear else "")
            interval = row.metric.show_interval(cell.measure.low, cell.measure.high).removesuffix(PERCENT)
            interval = "–" if interval == NO_INTERVAL else interval.replace(" to ", "–")
            texts.append(Text.assemble(mean, "\n", (interval, "dim")))
        table.add_row(row.metric.label, *texts)
    return table


WIN_RATE_COLUMNS = ("models", "judge", "win rate", "length-adjusted", "wins", "ties", "losses", "excluded", "sign test")
_TERMINAL_COLUMNS = 7


def win_rate_rows(evaluations: Sequence[Evaluation]) -> tuple[tuple[str, ...], ...]:
    """The cells under `WIN_RATE_COLUMNS`, a row for each comparison of two models, in the order of the models."""
    found = []
    for model, rate in ((each.model, rate) for each in evaluations for rate in each.win_rates):
        # Outcomes that are all equal have no interval: resampling them gives the mean again.
        interval = "all equal" if rate.low == rate.high else f"{rate.low:.1f}–{rate.high:.1f}"
        adjusted = "–" if rate.length_adjusted is None else f"{rate.length_adjusted:.1f}"
        if rate.length_adjusted is not None and rate.length_adjusted_error is not None:
            adjusted += f" ± {rate.length_adjusted_error:.1f}"
        p_value = "–" if rate.p_value is None else "p < 0.001" if rate.p_value < 0.001 else f"p = {rate.p_value:.3f}"
        names = (f"{model} vs. {rate.against}", "oracle" if rate.judge == "oracle" else model)
        counts = (f"{count:,}" for count in (rate.wins, rate.draws, rate.losses, rate.left_out))
        found.append((*names, f"{rate.win_rate:.1f} ({interval})", adjusted, *counts, p_value))
    return tuple(found)


def win_rates_text(evaluations: Sequence[Evaluation]) -> Table | None:
    """The win rates against M0 for the terminal; None when no model was compared with M0."""
    rows = [row for row in win_rate_rows(evaluations) if row[0].endswith("M0")]
    if not rows:
        return None
    caption = "Answers to the same held-out prompts. Win rates in percent, a tie is half a win, with 95 % intervals."
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), caption=caption, caption_justify="left")
    for number, name in enumerate(WIN_RATE_COLUMNS[:_TERMINAL_COLUMNS]):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row[:_TERMINAL_COLUMNS])
    return table


_LAST_SHADE = 6


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a bar. ``shade`` 0 is a pair; every drop reason has the same shade in all bars."""

    label: str
    count: int
    percent: float
    shade: int


@dataclass(frozen=True, slots=True)
class Bar:
    """One kind of pair in one iteration; the segments add up to all prompts."""

    iteration: int
    label: str
    built: int
    prompts: int
    segments: tuple[Segment, ...]


def pair_bars(summaries: Sequence[PairSummary]) -> tuple[Bar, ...]:
    """A bar of actor pairs and one of judge pairs for each iteration; none where an iteration builds no judge pairs."""
    totals: Counter[str] = Counter()
    for summary in summaries:
        for dropped in summary.dropped.values():
            totals.update(dropped)
    # The most frequent reasons have a shade of their own, the rest share the last.
    ordered = sorted(totals, key=lambda reason: (-totals[reason], reason))
    shades = {reason: min(place, _LAST_SHADE) for place, reason in enumerate(ordered, start=1)}
    bars = []
    for summary in summaries:
        for kind, built in (("actor", summary.actor_pairs), ("judge", summary.judge_pairs)):
            dropped = summary.dropped.get(kind, {})
            if not built and not dropped:
                continue
            reasons = sorted(dropped, key=lambda reason: shades[reason])
            counts = [("pair", built, 0), *((drop_label(each), dropped[each], shades[each]) for each in reasons)]
            accounted = built + sum(dropped.values())
            total = max(summary.prompts, accounted, 1)
            if total > accounted:
                counts.append(("generation failed", total - accounted, _LAST_SHADE))
            segments = tuple(Segment(label, count, 100 * count / total, shade) for label, count, shade in counts)
            bars.append(Bar(summary.iteration, f"{kind} pairs", built, summary.prompts, segments))
    return tuple(bars)
