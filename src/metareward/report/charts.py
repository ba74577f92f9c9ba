"""The charts of the report, each an inline SVG: metrics by model, judge scores, meta-judge bias, training curves."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from metareward.evaluation.comparison import ModelComparison
from metareward.method.diagnostics import PositionStatistics
from metareward.report.facts import Curve, Evaluation, Iteration, Measure, PairSummary
from metareward.report.svg import AMBER, BLUE, INK, SOFT, drawing, ticks
from metareward.report.tables import METRICS, Form, show

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
    Trend("Independent judge's score", "Of each model's own answers", (("independent_score", ""),)),
    Trend(
        "Agreement with the independent judge",
        "Rank correlation on M0's answers",
        (
            ("independent_disattenuated", "without the model's own noise"),
            ("independent_rank_correlation", "one judgment"),
        ),
    ),
    Trend(
        "Judge agrees with itself",
        "Pairs of its judgments of one of M0's answers: confidence, not accuracy",
        (("independent_self_agreement", ""),),
    ),
    Trend("Judgment length", "Characters", (("judgment_chars", ""),)),
    Trend(
        "Mean judge score",
        "M0's answers are the same for every model: a change there is drift of the judge",
        (("answer_self_score", "its own answers"), ("anchor_score", "M0's answers")),
    ),
    Trend(
        "Readable outputs",
        "Share with a score or a verdict",
        (("judgment_valid", "judgments"), ("meta_valid", "meta-judgments")),
    ),
)

_DASHED: dict[str, Any] = {"color": SOFT, "linewidth": 1, "linestyle": (0, (3, 3))}
_COLOURS = {"blue": BLUE, "amber": AMBER}


def _colour_names(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Each text with the colour of its line; lines without a text are left out."""
    return tuple((name, text) for name, text in zip(_COLOURS, texts, strict=False) if text)


def _first_to_last(texts: Sequence[str]) -> str:
    """``2.41 → 3.81``, or the one value where both are the same."""
    return " → ".join(dict.fromkeys((texts[0], texts[-1]))) if texts else "–"


def trend_charts(evaluations: Sequence[Evaluation]) -> tuple[Chart, ...]:
    """A chart for every trend that some model has a metric of."""
    drawn = []
    for trend in TRENDS:
        series = [(key, label) for key, label in trend.series if any(key in e.metrics for e in evaluations)]
        if series:
            drawn.append(_trend_chart(trend, series, evaluations))
    return tuple(drawn)


def _trend_chart(trend: Trend, series: Sequence[tuple[str, str]], evaluations: Sequence[Evaluation]) -> Chart:
    main = METRICS[series[0][0]]
    lines = [
        (label, [(x, e.metrics[key]) for x, e in enumerate(evaluations) if key in e.metrics]) for key, label in series
    ]
    models = [evaluation.model for evaluation in evaluations]
    return line_chart(f"trend-{main.key}", trend.title, trend.note, main.form, lines, models, trend.reference)


def line_chart(
    name: str,
    title: str,
    note: str,
    form: Form,
    lines: Sequence[tuple[str, Sequence[tuple[int, Measure]]]],
    models: Sequence[str],
    reference: float | None = None,
) -> Chart:
    """One or two lines over the models, with 95 % intervals; each line has a label and (model number, value) points."""
    points = [line for _, line in lines]
    means = [_first_to_last([show(form, measure.mean) for _, measure in line]) for line in points]
    described = [
        f"{label}{': ' if label else ''}{', '.join(f'{models[x]} {show(form, measure.mean)}' for x, measure in line)}"
        for label, line in lines
    ]
    with drawing(name, f"{title}: {'; '.join(described)}", height=150) as chart:
        axes = chart.axes
        for line, colour in zip(points, _COLOURS.values(), strict=False):
            xs, ys = [x for x, _ in line], [measure.mean for _, measure in line]
            axes.plot(xs, ys, color=colour, linewidth=1.4, alpha=0.45, zorder=2)
            bar: dict[str, Any] = {"color": colour, "linewidth": 2, "alpha": 0.75, "solid_capstyle": "butt"}
            for x, measure in line:
                axes.plot([x, x], [measure.low, measure.high], zorder=3, **bar)
            axes.plot(xs, ys, "o", color=colour, markersize=7, zorder=4)
        _set_value_range(axes, [measure for line in points for _, measure in line], reference, form)
        _label_models(axes, models)
        axes.yaxis.set_major_formatter(_formatter(form))
    return Chart(title, _colour_names(means), note, _colour_names(label for label, _ in lines), chart.svg)


# Lowest and highest possible value, and the smallest range an axis shows, so that noise never fills a chart.
_AXIS_LIMITS: Mapping[Form, tuple[float, float, float]] = {
    "share": (0.0, 1.0, 0.1),
    "correlation": (-1.0, 1.0, 0.1),
    "points": (-1.0, 1.0, 0.1),
    "score": (-math.inf, math.inf, 0.5),
    "chars": (0.0, math.inf, 10.0),
}


def _set_value_range(axes: Axes, measures: Sequence[Measure], reference: float | None, form: Form) -> None:
    """Show every interval and the reference line, with a range well above the widest interval."""
    low, high = min(m.low for m in measures), max(m.high for m in measures)
    if reference is not None:
        low, high = min(low, reference), max(high, reference)
        axes.axhline(reference, **_DASHED, zorder=1)
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
        if form == "points":
            return f"{100 * value:.3g}".replace("-", "−")
        return (f"{value:,g}" if form == "chars" else f"{value:.2g}").replace("-", "−")

    return label


def histogram_charts(evaluations: Sequence[Evaluation]) -> tuple[Chart, ...]:
    """For each model, the share of each score among its single judgments of its own answers and of M0's."""
    measured = [e for e in evaluations if any(counts for counts in e.histograms.values())]
    shares = [{kind: _binned(counts) for kind, counts in e.histograms.items() if counts} for e in measured]
    top = max((share for kinds in shares for bins in kinds.values() for share in bins.values()), default=1.0)
    drawn = []
    for evaluation, kinds in zip(measured, shares, strict=True):
        counts = next(iter(evaluation.histograms.values()))
        total = sum(counts.values())
        mean = f"mean {sum(s * n for s, n in counts.items()) / total:.2f}" if total else "no score of its own answers"
        caption = f"Scores given by {evaluation.model}, {mean}{''.join(map(_shares_text, kinds.items()))}"
        with drawing(f"scores-{evaluation.model}", caption, width=220, height=120, margins=(34, 6, 6, 20)) as chart:
            own, anchor = kinds.get("own", {}), kinds.get("anchor", {})
            marks: dict[str, Any] = {"color": AMBER, "markersize": 13, "markeredgewidth": 2}
            chart.axes.bar(list(own), list(own.values()), width=0.42, color=BLUE, alpha=0.55, zorder=2)
            chart.axes.plot(list(anchor), list(anchor.values()), "_", zorder=3, **marks)
            chart.axes.set(ylim=(0, top * 1.06), xlim=(min(0, *own, *anchor) - 0.4, max(5, *own, *anchor) + 0.4))
            chart.axes.xaxis.set_major_locator(ticks(6, integer=True))
            chart.axes.yaxis.set_major_locator(ticks(3))
            chart.axes.yaxis.set_major_formatter(_formatter("share"))
        drawn.append(Chart(evaluation.model, (("blue", mean),), "", (), chart.svg))
    return tuple(drawn)


def _shares_text(shares: tuple[str, Mapping[float, float]]) -> str:
    """The shares of one kind of answers, for the chart's text."""
    kind, bins = shares
    whose = "its own answers" if kind == "own" else "M0's answers"
    texts = (f"{score:g} {show('share', share)}" for score, share in bins.items())
    return f"; of {whose}: {', '.join(texts)}"


def _binned(counts: Mapping[float, int]) -> dict[float, float]:
    """Shares by score, rounded to half points so that 4.75 and 4.8 share a bar."""
    total = sum(counts.values())
    bins: dict[float, float] = defaultdict(float)
    for score, count in sorted(counts.items()):
        bins[round(2 * score) / 2] += count / total
    return bins


# Title, note, reference line, and the lines by label; the labels of a single line are empty.
_POSITION_CHARTS: tuple[tuple[str, str, float | None, dict[str, Callable[[PositionStatistics], float | None]]], ...] = (
    (
        "Higher-scored judgment wins",
        "Among verdicts equal in both orders; dashed: chance",
        0.5,
        {"": lambda p: p.higher_score_wins},
    ),
    (
        "Verdicts that flip with the order",
        "Share of pairs of judgments",
        None,
        {"same score": lambda p: p.same_score.flipped, "different": lambda p: p.different_score.flipped},
    ),
    ("First-position win rate", "Dashed: no position bias", 0.5, {"": lambda p: p.all.first_wins}),
)


def position_charts(summaries: Sequence[PairSummary]) -> tuple[Chart, ...]:
    """Score bias and order flips over iterations (Meta-Rewarding Table 5)."""
    found = {s.iteration: s.position for s in summaries if s.position is not None and s.position.all.pairs}
    if not found:
        return ()
    prefix = "iteration " if len(found) < 4 else ""
    drawn = []
    for title, note, reference, shares in _POSITION_CHARTS:
        values = [[share(position) for position in found.values()] for share in shares.values()]
        points = [[(x, value) for x, value in enumerate(line) if value is not None] for line in values]
        texts = [_first_to_last([show("share", value) for _, value in line]) for line in points]
        described = (f"{label}{': ' if label else ''}{text}" for label, text in zip(shares, texts, strict=True))
        with drawing(f"position-{title[0]}", f"{title}: {'; '.join(described)}", height=150) as chart:
            for line, colour in zip(points, _COLOURS.values(), strict=False):
                chart.axes.plot(*zip(*line, strict=True) if line else ((), ()), "-o", color=colour, linewidth=1.4)
            if reference is not None:
                chart.axes.axhline(reference, **_DASHED)
            _label_models(chart.axes, [f"{prefix}{number}" for number in found])
            chart.axes.set_ylim(-0.02, 1.02)
            chart.axes.yaxis.set_major_formatter(_formatter("share"))
        drawn.append(Chart(title, _colour_names(texts), note, _colour_names(shares), chart.svg))
    return tuple(drawn)


def comparison_chart(name: str, comparisons: Sequence[ModelComparison]) -> Chart:
    """A row to each comparison: the paired difference with its 95 % interval, coloured where the models differ."""
    title = f"{name}: paired differences"
    differ = sum(each.differ for each in comparisons)
    differences = ", ".join(f"{each.b} minus {each.a} {each.found.difference:+.2f}" for each in comparisons)
    caption = f"{title}: {differ} of {len(comparisons)} pairs of models differ; {differences}"
    with drawing(f"paired-{name}", caption, height=40 + 18 * len(comparisons), margins=(80, 12, 8, 24)) as chart:
        for place, each in enumerate(comparisons):
            found, colour = each.found, BLUE if each.differ else SOFT
            ends = [found.difference if end is None else end for end in (found.low, found.high)]
            chart.axes.plot(ends, [place, place], color=colour, linewidth=1.4)
            chart.axes.plot([found.difference], [place], "o", color=colour)
        chart.axes.axvline(0, **_DASHED)
        chart.axes.set_yticks(range(len(comparisons)), [f"{each.b} - {each.a}" for each in comparisons])
        chart.axes.invert_yaxis()
    return Chart(title, (), "Second model minus first, 95 % intervals; grey: no difference shown", (), chart.svg)


# Key, title, note, reference line, and the smallest range of the axis.
_TRAINING = (
    ("loss", "DPO loss", "Dashed: ln 2, the loss at the start", math.log(2), 0.1),
    ("margin", "Reward margin", "Chosen minus rejected, β × log-ratio", 0.0, 0.1),
    ("accuracy", "Reward accuracy", "Share of pairs with chosen above rejected; dashed: chance", 0.5, 0.2),
)
_FEW_STEPS = 4


def training_charts(iterations: Sequence[Iteration]) -> tuple[Chart, ...]:
    """A chart each of loss, margin and accuracy by step, with a line for every iteration that was logged."""
    drawn = []
    for key, title, note, reference, least in _TRAINING:
        curves = {i.model: i.training[key] for i in iterations if key in i.training}
        if not curves:
            continue
        notes = note
        ends = ", ".join(f"{m} {curve.values[0]:.3g} to {curve.values[-1]:.3g}" for m, curve in curves.items())
        with drawing(f"training-{key}", f"{title} by step: {ends}", margins=(44, 34, 8, 24)) as chart:
            axes = chart.axes
            axes.axhline(reference, **_DASHED)
            for place, (model, curve) in enumerate(curves.items(), start=1):
                # Later models are darker: one ordered hue needs no legend.
                strength = 0.25 + 0.75 * place / len(curves)
                marker = "o" if len(curve.steps) < _FEW_STEPS else ""
                axes.plot(curve.steps, curve.values, marker=marker, color=BLUE, alpha=strength, markersize=5)
                infinite = [step for step, y in zip(curve.steps, curve.values, strict=True) if not math.isfinite(y)]
                if infinite:  # no line can show it
                    notes += f". {model}: not finite from step {infinite[0]:g}"
            (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
            wider, higher = max(0.0, (2 - (right - left)) / 2), max(0.0, (least - (top - bottom)) / 2)
            axes.set(xlim=(left - wider, right + wider), ylim=(bottom - higher, top + higher))
            _label_line_ends(axes, curves)
            axes.yaxis.set_major_locator(ticks(4))
            axes.xaxis.set_major_locator(ticks(5, integer=True, min_n_ticks=1))
            if key == "accuracy":
                axes.yaxis.set_major_formatter(_formatter("share"))
        drawn.append(Chart(title, (), notes, (), chart.svg))
    return tuple(drawn)


def _label_line_ends(axes: Axes, curves: Mapping[str, Curve]) -> None:
    """Each model's name beside its last finite point; names are moved apart where lines end together."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    points = {model: list(zip(curve.steps, curve.values, strict=True)) for model, curve in curves.items()}
    finite = {model: [(x, y) for x, y in line if math.isfinite(y)] for model, line in points.items()}
    ends = [(line[-1], model) for model, line in finite.items() if line]
    gap, floor = 0.085 * (high - low), -math.inf
    for (x, y), model in sorted(ends, key=lambda end: end[0][1]):
        height = max(y, floor)
        axes.annotate(model, (x, height), xytext=(5, -4), textcoords="offset points", color=INK, fontsize=10)
        floor = height + gap
