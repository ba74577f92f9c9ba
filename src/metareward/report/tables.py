"""What the run shows, in sentences computed from its numbers.

A change is only called a rise or a fall when the two 95 % intervals share no point. Where they overlap the
sentence says that nothing was shown, and where no oracle measured, that a model's own score is its opinion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from metareward.evaluation.win_rates import Duel
from metareward.report.facts import Evaluation, Iteration, Run
from metareward.report.metrics_table import BY_KEY, Metric


@dataclass(frozen=True, slots=True)
class _Subject:
    """A metric as the subject of a sentence; ``unit`` follows the last number."""

    key: str
    words: str
    unit: str = ""


_OPINION = _Subject("answer_self_score", "The mean score the model gives its own answers", " of 5")
_SUBJECTS = (
    _Subject("answer_quality", "Mean answer quality", " of 5"),
    _Subject("judgment_rank_correlation", "A single judgment's rank correlation with the truth"),
    _Subject("meta_accuracy", "The meta-judge's accuracy"),
    _Subject("answer_chars", "Mean answer length", " characters"),
)


def sentences(run: Run) -> tuple[str, ...]:
    """The headline first, then one sentence for each further subject that was measured on the first and last model."""
    measured = run.evaluations
    if not measured:
        return ("No model of this run has been measured yet.",)
    if len(measured) == 1:
        return (f"Only {measured[0].model} has been measured so far, so there is nothing to compare yet.",)
    subjects = _SUBJECTS if "answer_quality" in measured[-1].metrics else (_OPINION, *_SUBJECTS[1:])
    found = [sentence for subject in subjects if (sentence := _sentence(subject, measured)) is not None]
    return (*found, *_caveats(run, subjects)) or ("The first and the last model share no metric to compare.",)


def _sentence(subject: _Subject, measured: Sequence[Evaluation]) -> str | None:
    first, last = measured[0], measured[-1]
    before, after = first.metrics.get(subject.key), last.metrics.get(subject.key)
    if before is None or after is None:
        return None
    metric = BY_KEY[subject.key]
    start, end = metric.show(before.mean), metric.show(after.mean)
    if start == end:
        return f"{subject.words} is {end}{subject.unit} at {first.model} and at {last.model}."
    numbers = f"from {start} ({first.model}) to {end}{subject.unit} ({last.model})"
    if not after.apart_from(before):
        return f"{subject.words} went {numbers}, but the 95 % intervals overlap: no change is shown."
    verb = "rose" if after.mean > before.mean else "fell"
    return f"{subject.words} {verb} {numbers}; the 95 % intervals do not overlap.{_peak(subject, metric, measured)}"


def _peak(subject: _Subject, metric: Metric, measured: Sequence[Evaluation]) -> str:
    """Said when the last model is clearly below an earlier one."""
    if metric.better != "higher":
        return ""
    candidates = [(e.metrics[subject.key], e.model) for e in measured if subject.key in e.metrics]
    best, model = max(candidates, key=lambda candidate: candidate[0].mean)
    last = measured[-1].metrics[subject.key]
    if not best.apart_from(last):
        return ""
    return f" It was higher at {model}, {metric.show(best.mean)}, and fell again."


def _caveats(run: Run, subjects: Sequence[_Subject]) -> tuple[str, ...]:
    if subjects[0] is _OPINION and "answer_self_score" in run.evaluations[-1].metrics:
        return (
            "No oracle measured this run: a model's score for its own answers is its opinion, not evidence of quality.",
        )
    return ()


def unfinished(run: Run) -> tuple[str, ...]:
    """What is still missing, one line for each iteration that isn't whole; empty for a finished run."""
    lines = [line for iteration in run.iterations if (line := _missing(iteration)) is not None]
    waiting = [i for i in run.iterations[1:] if not i.generated]
    if len(waiting) > 1:
        line = f"Iterations {waiting[0].number} to {waiting[-1].number}: not begun."
        return (*(text for text in lines if not text.endswith("not begun.")), line)
    return tuple(lines)


def _missing(iteration: Iteration) -> str | None:
    if iteration.number == 0:
        return None if iteration.evaluation is not None else "M0 is not measured yet, so nothing can be compared to it."
    prefix = f"Iteration {iteration.number}:"
    if not iteration.generated:
        return f"{prefix} not begun."
    if iteration.summary is None:
        return f"{prefix} answers and judgments are under way; its pairs are not built yet."
    if not iteration.training:
        return f"{prefix} its pairs are built, but {iteration.model} is not trained yet."
    if iteration.evaluation is None:
        return f"{prefix} {iteration.model} has a training log, but is not measured yet."
    return None


# --- Model against model: one row to a duel, as both the page and the terminal show it.


COLUMNS = ("", "judged by", "win rate", "at equal lengths", "won", "drawn", "lost", "left out", "sign test")


def contests(evaluations: Sequence[Evaluation]) -> tuple[tuple[str, ...], ...]:
    """The cells of every duel under `COLUMNS`, in the order of the models."""
    return tuple(_row(evaluation.model, duel) for evaluation in evaluations for duel in evaluation.duels)


def contests_text(evaluations: Sequence[Evaluation]) -> Table | None:
    """The win rates against M0 for the terminal; None when no model was compared."""
    rows = [row for row in contests(evaluations) if row[0].endswith("M0")]
    if not rows:
        return None
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), caption=_CAPTION, caption_justify="left")
    for number, name in enumerate(COLUMNS[:7]):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row[:7])
    return table


_CAPTION = "Answers to the same held-out prompts. Win rates in percent, draws half, with 95 % intervals."


def _row(model: str, duel: Duel) -> tuple[str, ...]:
    judge = "the oracle" if duel.judge == "oracle" else f"{model} itself"
    counts = (f"{count:,}" for count in (duel.wins, duel.draws, duel.losses, duel.left_out))
    rate = f"{duel.win_rate:.1f} ({duel.low:.1f}–{duel.high:.1f})"
    return (f"{model} against {duel.against}", judge, rate, _adjusted(duel), *counts, _chance(duel.p_value))


def _adjusted(duel: Duel) -> str:
    if duel.length_adjusted is None:
        return "–"
    error = "" if duel.length_adjusted_error is None else f" ± {duel.length_adjusted_error:.1f}"
    return f"{duel.length_adjusted:.1f}{error}"


def _chance(p_value: float | None) -> str:
    if p_value is None:
        return "–"
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
