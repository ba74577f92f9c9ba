"""Metrics × models with 95 % intervals and differences to M0: one set of rows for the page and the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metareward.report.facts import Evaluation, Measure
from metareward.report.metrics import CATALOGUE, Metric, metric_for


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
