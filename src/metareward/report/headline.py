"""The headline of the report: sentences computed from the run's metrics, and what an unfinished run still lacks.

A change is only called a rise or a fall when the two 95 % intervals do not overlap. Without an oracle, a sentence says
that a model's score of its own answers is no evidence of quality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metareward.report.facts import Evaluation, Iteration, Run
from metareward.report.metrics_table import METRICS_BY_KEY, Metric


@dataclass(frozen=True, slots=True)
class _Subject:
    """A metric as the subject of a sentence; ``unit`` follows the last number."""

    key: str
    words: str
    unit: str = ""


_SELF_SCORE = _Subject("answer_self_score", "The mean score the model gives its own answers", " of 5")
_SUBJECTS = (
    _Subject("answer_quality", "Mean answer quality", " of 5"),
    _Subject("judgment_rank_correlation", "The rank correlation of single judgments with the oracle's scores"),
    _Subject("meta_accuracy", "Meta-judge accuracy"),
    _Subject("answer_chars", "Mean answer length", " characters"),
)


def sentences(run: Run) -> tuple[str, ...]:
    """The headline first, then one sentence for each further metric that the first and the last model have."""
    evaluated = run.evaluations
    if not evaluated:
        return ("No model of this run has been evaluated yet.",)
    if len(evaluated) == 1:
        return (f"Only {evaluated[0].model} has been evaluated so far, so there is nothing to compare yet.",)
    subjects = _SUBJECTS if "answer_quality" in evaluated[-1].metrics else (_SELF_SCORE, *_SUBJECTS[1:])
    found = [sentence for subject in subjects if (sentence := _sentence(subject, evaluated)) is not None]
    if subjects[0] is _SELF_SCORE and _SELF_SCORE.key in evaluated[-1].metrics:
        found.append("No oracle scored this run: the score a model gives its own answers is no evidence of quality.")
    return tuple(found) or ("The first and the last model share no metric to compare.",)


def _sentence(subject: _Subject, evaluated: Sequence[Evaluation]) -> str | None:
    first, last = evaluated[0], evaluated[-1]
    before, after = first.metrics.get(subject.key), last.metrics.get(subject.key)
    if before is None or after is None:
        return None
    metric = METRICS_BY_KEY[subject.key]
    start, end = metric.show(before.mean), metric.show(after.mean)
    if start == end:
        return f"{subject.words} is {end}{subject.unit} at {first.model} and at {last.model}."
    if not after.apart_from(before):
        values = f"{start} ({first.model}) and {end}{subject.unit} ({last.model})"
        return f"{subject.words}: {values}; the 95 % intervals overlap, so there is no evidence of a change."
    numbers = f"from {start} ({first.model}) to {end}{subject.unit} ({last.model})"
    verb = "rose" if after.mean > before.mean else "fell"
    return f"{subject.words} {verb} {numbers}; the 95 % intervals do not overlap.{_peak(subject, metric, evaluated)}"


def _peak(subject: _Subject, metric: Metric, evaluated: Sequence[Evaluation]) -> str:
    """A sentence when the last model is below an earlier one and their intervals do not overlap; else empty."""
    if metric.better != "higher":
        return ""
    candidates = [(e.metrics[subject.key], e.model) for e in evaluated if subject.key in e.metrics]
    best, model = max(candidates, key=lambda candidate: candidate[0].mean)
    last = evaluated[-1].metrics[subject.key]
    if not best.apart_from(last):
        return ""
    return f" It was highest at {model}, {metric.show(best.mean)}, and fell again."


def unfinished(run: Run) -> tuple[str, ...]:
    """One line for each iteration that is not finished; empty for a finished run."""
    lines = [line for iteration in run.iterations if (line := _missing(iteration)) is not None]
    pending = [i for i in run.iterations[1:] if not i.generated]
    if len(pending) > 1:
        line = f"Iterations {pending[0].number} to {pending[-1].number}: not started."
        return (*(text for text in lines if not text.endswith("not started.")), line)
    return tuple(lines)


def _missing(iteration: Iteration) -> str | None:
    if iteration.number == 0:
        return (
            None if iteration.evaluation is not None else "M0 is not evaluated yet, so there is nothing to compare to."
        )
    prefix = f"Iteration {iteration.number}:"
    if not iteration.generated:
        return f"{prefix} not started."
    if iteration.summary is None:
        return f"{prefix} answers and judgments are being generated; its pairs are not built yet."
    if not iteration.training:
        return f"{prefix} its pairs are built, but {iteration.model} is not trained yet."
    if iteration.evaluation is None:
        return f"{prefix} {iteration.model} has a training log, but is not evaluated yet."
    return None
