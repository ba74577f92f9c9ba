"""The charts of the report, each an inline SVG: metrics by model, judge scores, meta-judge bias, training curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from metareward.method.diagnostics import PositionStatistics
from metareward.report.facts import Curve, Evaluation, Iteration, Measure, PairSummary
from metareward.report.metrics_table import METRICS_BY_KEY, Form, show
from metareward.report.svg import AMBER, BLUE, INK, SOFT, drawing, ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawn chart with its texts. ``values`` are the main numbers, each with the colour of its line; ``legend`` names
    the colours where there are several."""

    title: str
    values: tuple[tuple[str, str], ...]
    note: str
    legend: tuple[tuple[str, str], ...]
    svg: Markup


@dataclass(frozen=True, slots=True)
class Trend:
    """One chart by model: one or two metrics on the same axis, and a reference line."""

    title: str
    note: str
    series: tuple[tuple[str, str], ...]
    reference: float | None = None


TRENDS = (
    Trend("Answer quality", "Oracle's score, 0 to 5", (("answer_quality", ""),)),
    Trend("Perfect answers", "Share with the oracle's full score", (("answer_perfect", ""),)),
    Trend("Answer length", "Characters", (("answer_chars", ""),)),
    Trend("Judgments equal to oracle", "Single judgments of M0's answers", (("judgment_exact", ""),)),
    Trend(
        "Judge's rank correlation",
        "Judge scores against oracle scores, M0's answers",
        (("judgment_mean_rank_correlation", "mean of N judgments"), ("judgment_rank_correlation", "one judgment")),
    ),
    Trend("Meta-judge accuracy", "On pairs of M0's judgments; dashed: chance", (("meta_accuracy", ""),), 0.5),
    Trend("Judgment length", "Characters", (("judgment_chars", ""),)),
    Trend(
        "Mean judge score",
        "M0's answers are the same for every model: a change there is drift of the judge",
        (("answer_self_score", "its own answers"), ("anchor_score", "M0's answers")),
    ),
    Trend(
        "Parsable outputs",
        "Share with a score or a verdict",
        (("judgment_valid", "judgments"), ("meta_valid", "meta-judgments")),
    ),
)

_COLOURS = (BLUE, AMBER)
_NAMES = ("blue", "amber")


def trend_charts(evaluations: Sequence[Evaluation]) -> tuple[Chart, ...]:
    """A chart for every trend that some model has a metric of."""
    drawn = []
    for trend in TRENDS:
        series = [(key, label) for key, label in trend.series if any(key in e.metrics for e in evaluations)]
        if series:
            drawn.append(_trend_chart(trend, series, evaluations))
    return tuple(drawn)


def _trend_chart(trend: Trend, series: Sequence[tuple[str, str]], evaluations: Sequence[Evaluation]) -> Chart:
    main = series[0][0]
    values = tuple((name, _means(key, evaluations)) for (key, _), name in zip(series, _NAMES, strict=False))
    with drawing(f"trend-{main}", f"{trend.title}: {', '.join(text for _, text in values)}", height=150) as chart:
        measures = []
        for (key, _), colour in zip(series, _COLOURS, strict=False):
            points = [(x, e.metrics[key]) for x, e in enumerate(evaluations) if key in e.metrics]
            measures += [measure for _, measure in points]
            _draw_points(chart.axes, points, colour)
        _set_value_range(chart.axes, measures, trend.reference, METRICS_BY_KEY[main].form)
        _label_models(chart.axes, [evaluation.model for evaluation in evaluations])
        chart.axes.yaxis.set_major_formatter(_formatter(METRICS_BY_KEY[main].form))
    legend = tuple((name, label) for (_, label), name in zip(series, _NAMES, strict=False) if label)
    return Chart(trend.title, values, trend.note, legend, chart.svg)


def _means(key: str, evaluations: Sequence[Evaluation]) -> str:
    return _first_to_last([METRICS_BY_KEY[key].show(e.metrics[key].mean) for e in evaluations if key in e.metrics])


def _draw_points(axes: Axes, points: Sequence[tuple[int, Measure]], colour: str) -> None:
    xs = [x for x, _ in points]
    axes.plot(xs, [m.mean for _, m in points], color=colour, linewidth=1.4, alpha=0.45, zorder=2)
    for x, measure in points:
        axes.plot(
            [x, x], [measure.low, measure.high], color=colour, linewidth=2, alpha=0.75, solid_capstyle="butt", zorder=3
        )
    axes.plot(xs, [m.mean for _, m in points], "o", color=colour, markersize=7, zorder=4)


# Lowest and highest possible value, and the smallest range an axis shows, so that noise never fills a chart.
_AXIS_LIMITS: Mapping[Form, tuple[float, float, float]] = {
    "share": (0.0, 1.0, 0.1),
    "correlation": (-1.0, 1.0, 0.1),
    "score": (-math.inf, math.inf, 0.5),
    "chars": (0.0, math.inf, 10.0),
}


def _set_value_range(axes: Axes, measures: Sequence[Measure], reference: float | None, form: Form) -> None:
    """Show every interval and the reference line, with a range well above the widest interval."""
    low, high = min(m.low for m in measures), max(m.high for m in measures)
    if reference is not None:
        low, high = min(low, reference), max(high, reference)
        axes.axhline(reference, color=SOFT, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
    widest = max(m.high - m.low for m in measures)
    lowest, highest, least = _AXIS_LIMITS[form]
    lowest = max(lowest, 0.0) if low >= 0 else lowest
    spare = max(0.12 * (high - low), (max(3 * widest, least) - (high - low)) / 2)
    bottom, top = max(low - spare, lowest), min(high + spare, highest)
    edge = 0.04 * (top - bottom)  # so that a dot at the limit is not cut
    axes.set_ylim(bottom - edge, top + edge)


def _label_models(axes: Axes, names: Sequence[str]) -> None:
    axes.set_xticks(range(len(names)), list(names))
    axes.set_xlim(-0.35, len(names) - 0.65)
    axes.yaxis.set_major_locator(ticks(5, steps=[1, 2, 5, 10]))


def _formatter(form: Form) -> Callable[[float, float], str]:
    def label(value: float, _: float) -> str:
        if form == "share":
            return f"{100 * value:.3g}\u202f%"
        return (f"{value:,g}" if form == "chars" else f"{value:.2g}").replace("-", "−")

    return label


def histogram_charts(evaluations: Sequence[Evaluation]) -> tuple[Chart, ...]:
    """For each model, the share of each score among its single judgments of its own answers and of M0's."""
    measured = [e for e in evaluations if any(counts for counts in e.histograms.values())]
    shares = [{kind: _binned(counts) for kind, counts in e.histograms.items() if counts} for e in measured]
    top = max((share for kinds in shares for bins in kinds.values() for share in bins.values()), default=1.0)
    return tuple(_histogram(e, kinds, top) for e, kinds in zip(measured, shares, strict=True))


def _binned(counts: Mapping[float, int]) -> dict[float, float]:
    """Shares by score, rounded to half points so that 4.75 and 4.8 share a bar."""
    total = sum(counts.values())
    bins: dict[float, float] = {}
    for score, count in sorted(counts.items()):
        bins[round(2 * score) / 2] = bins.get(round(2 * score) / 2, 0.0) + count / total
    return bins


def _histogram(evaluation: Evaluation, kinds: Mapping[str, Mapping[float, float]], top: float) -> Chart:
    counts = next(iter(evaluation.histograms.values()))
    mean = sum(score * count for score, count in counts.items()) / sum(counts.values())
    caption = f"Scores given by {evaluation.model}, mean {mean:.2f}"
    with drawing(f"scores-{evaluation.model}", caption, width=220, height=120, margins=(34, 6, 6, 20)) as chart:
        own, anchor = kinds.get("own", {}), kinds.get("anchor", {})
        chart.axes.bar(list(own), list(own.values()), width=0.42, color=BLUE, alpha=0.55, zorder=2)
        chart.axes.plot(
            list(anchor), list(anchor.values()), "_", color=AMBER, markersize=13, markeredgewidth=2, zorder=3
        )
        chart.axes.set(ylim=(0, top * 1.06), xlim=(-0.4, max(5.4, *own, *anchor)))
        chart.axes.xaxis.set_major_locator(ticks(6, integer=True))
        chart.axes.yaxis.set_major_locator(ticks(3))
        chart.axes.yaxis.set_major_formatter(_formatter("share"))
    return Chart(evaluation.model, (("blue", f"mean {mean:.2f}"),), "", (), chart.svg)


_Share = Callable[[PositionStatistics], float | None]


def position_charts(summaries: Sequence[PairSummary]) -> tuple[Chart, ...]:
    """Score bias and order flips over iterations (Meta-Rewarding Table 5)."""
    found = {s.iteration: s.position for s in summaries if s.position is not None and s.position.all.pairs}
    if not found:
        return ()
    wins: dict[str, _Share] = {"": lambda p: p.higher_score_wins}
    flips: dict[str, _Share] = {
        "same score": lambda p: p.same_score.flipped,
        "different": lambda p: p.different_score.flipped,
    }
    first: dict[str, _Share] = {"": lambda p: p.all.first_wins}
    consistent = "Among verdicts equal in both orders; dashed: chance"
    return (
        _shares_chart("Higher-scored judgment wins", consistent, found, wins, 0.5),
        _shares_chart("Verdicts that flip with the order", "Share of pairs of judgments", found, flips),
        _shares_chart("First-position win rate", "Dashed: no position bias", found, first, 0.5),
    )


def _shares_chart(
    title: str,
    note: str,
    by_iteration: Mapping[int, PositionStatistics],
    shares: Mapping[str, _Share],
    reference: float | None = None,
) -> Chart:
    lines = [[share(position) for position in by_iteration.values()] for share in shares.values()]
    known = [[show("share", value) for value in line if value is not None] for line in lines]
    values = tuple((name, _first_to_last(texts)) for texts, name in zip(known, _NAMES, strict=False))
    with drawing(f"position-{title[0]}", f"{title}: {', '.join(text for _, text in values)}", height=150) as chart:
        for line, colour in zip(lines, _COLOURS, strict=False):
            points = [(x, value) for x, value in enumerate(line) if value is not None]
            chart.axes.plot(*zip(*points, strict=True) if points else ((), ()), "-o", color=colour, linewidth=1.4)
        if reference is not None:
            chart.axes.axhline(reference, color=SOFT, linewidth=1, linestyle=(0, (3, 3)))
        prefix = "iteration " if len(by_iteration) < 4 else ""
        _label_models(chart.axes, [f"{prefix}{number}" for number in by_iteration])
        chart.axes.set_ylim(-0.02, 1.02)
        chart.axes.yaxis.set_major_formatter(_formatter("share"))
    legend = tuple((name, label) for label, name in zip(shares, _NAMES, strict=False) if label)
    return Chart(title, values, note, legend, chart.svg)


def _first_to_last(texts: Sequence[str]) -> str:
    """``2.41 → 3.81``, or the one value where both are the same."""
    return " → ".join(dict.fromkeys((texts[0], texts[-1]))) if texts else "–"


_TRAINING = (
    ("loss", "DPO loss", "Dashed: ln 2, the loss at the start", math.log(2), 0.1),
    ("margin", "Reward margin", "Chosen minus rejected, β × log-ratio", 0.0, 0.1),
    ("accuracy", "Reward accuracy", "Share of pairs with chosen above rejected; dashed: chance", 0.5, 0.2),
)
_FEW_STEPS = 4


def training_charts(iterations: Sequence[Iteration]) -> tuple[Chart, ...]:
    """A chart each of loss, margin and accuracy by step, with a line for every iteration that was logged."""
    trained = [iteration for iteration in iterations if iteration.training]
    drawn = []
    for key, title, note, reference, least in _TRAINING:
        curves = {i.model: i.training[key] for i in trained if key in i.training}
        if curves:
            drawn.append(_curves_chart(key, title, note, curves, reference, least))
    return tuple(drawn)


def _curves_chart(
    key: str, title: str, note: str, curves: Mapping[str, Curve], reference: float, least: float
) -> Chart:
    with drawing(f"training-{key}", f"{title} by training step", margins=(44, 34, 8, 24)) as chart:
        chart.axes.axhline(reference, color=SOFT, linewidth=1, linestyle=(0, (3, 3)))
        for place, curve in enumerate(curves.values(), start=1):
            # Later models are darker: one ordered hue needs no legend.
            strength = 0.25 + 0.75 * place / len(curves)
            marker = "o" if len(curve.steps) < _FEW_STEPS else ""
            chart.axes.plot(curve.steps, curve.values, marker=marker, color=BLUE, alpha=strength, markersize=5)
        _set_min_range(chart.axes, least)
        _label_line_ends(chart.axes, curves)
        chart.axes.yaxis.set_major_locator(ticks(4))
        chart.axes.xaxis.set_major_locator(ticks(5, integer=True, min_n_ticks=1))
        if key == "accuracy":
            chart.axes.yaxis.set_major_formatter(_formatter("share"))
    return Chart(title, (), f"{note}{_non_finite_note(curves)}", (), chart.svg)


def _non_finite_note(curves: Mapping[str, Curve]) -> str:
    """Names the first step with a value that is infinite or NaN, which no line can show."""
    first = {
        model: next(
            (step for step, value in zip(curve.steps, curve.values, strict=True) if not math.isfinite(value)), None
        )
        for model, curve in curves.items()
    }
    return "".join(f". {model}: not finite from step {step:g}" for model, step in first.items() if step is not None)


def _set_min_range(axes: Axes, least: float) -> None:
    """At least ``least`` from bottom to top, and two steps from left to right."""
    bottom, top = axes.get_ylim()
    spare = max(0.0, (least - (top - bottom)) / 2)
    axes.set_ylim(bottom - spare, top + spare)
    left, right = axes.get_xlim()
    spare = max(0.0, (2 - (right - left)) / 2)
    axes.set_xlim(left - spare, right + spare)


def _label_line_ends(axes: Axes, curves: Mapping[str, Curve]) -> None:
    """Each model's name beside its last finite point; names are moved apart where lines end together."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    ends = sorted(_ends(curves), key=lambda end: end[0][1])
    gap, floor = 0.085 * (high - low), -math.inf
    for (x, y), model in ends:
        height = max(y, floor)
        axes.annotate(model, (x, height), xytext=(5, -4), textcoords="offset points", color=INK, fontsize=10)
        floor = height + gap


def _ends(curves: Mapping[str, Curve]) -> Iterator[tuple[tuple[float, float], str]]:
    for model, curve in curves.items():
        finite = [(x, y) for x, y in zip(curve.steps, curve.values, strict=True) if math.isfinite(y)]
        if finite:
            yield finite[-1], model
