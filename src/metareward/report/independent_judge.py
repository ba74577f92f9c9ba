"""What independent judges said of a run, in sentences: the answers' scores, whether the model's judge got better."""

from __future__ import annotations

from collections.abc import Iterator

from metareward.evaluation.base import figure
from metareward.evaluation.independent_judge.agreement import CHANGES
from metareward.evaluation.independent_judge.run import IndependentJudge, noise_notes
from metareward.report.facts import BenchmarkResult, Run


def independent_judges(run: Run) -> tuple[tuple[IndependentJudge, tuple[BenchmarkResult, ...]], ...]:
    """The recipe's independent judges, each with its results by model."""
    return tuple(
        (judge, tuple(r for each in run.iterations for r in each.benchmarks if r.benchmark == judge.name))
        for judge in run.recipe.benchmarks
        if isinstance(judge, IndependentJudge)
    )


def judge_sentences(run: Run) -> tuple[str, ...]:
    """For each independent judge, whether the last model's judgments are better than M0's or only more confident."""
    found = []
    for judge, results in independent_judges(run):
        change = figure(results[-1].results[0], "judge_change") if results else None
        if change is not None:
            said = f"{results[-1].model} as a judge, held to the independent judge {judge.judge}: {CHANGES[change]}."
            found.append(" ".join([said, *noise_notes(results[-1].results)]))
    return tuple(found)


def pending_lines(run: Run) -> tuple[str, ...]:
    """A line for each benchmark and reason for which results lack verdicts, with the models."""
    models: dict[tuple[str, str], list[str]] = {}
    for each in (pending for iteration in run.iterations for pending in iteration.pending):
        models.setdefault((each.benchmark, each.reason), []).append(each.model)
    return tuple(
        f"{name}: not all of {', '.join(found)} is judged: {reason}; the same `metareward run` asks again"
        for (name, reason), found in models.items()
    )


def judge_lines(run: Run) -> tuple[str, ...]:
    """A line for each independent judge for the terminal: scores by model, counts, change, cost."""
    lines = []
    for judge, results in independent_judges(run):
        scores = [(each.model, figure(each.results[0], "metrics.score.mean")) for each in results]
        shown = ", ".join(f"{model} {'-' if score is None else format(score, '.2f')}" for model, score in scores)
        change = figure(results[-1].results[0], "judge_change") if len(results) > 1 else None
        parts = [f"{judge.name} ({judge.judge}): {shown or 'nothing judged yet'}"]
        parts += [f"judging: {change} since M0"] if change else []
        parts += [f"{count:,} {word}" for word, count in _left_out(results) if count]
        lines.append("; ".join([*parts, *costs(run, judge)]))
    return tuple(lines)


def _left_out(results: tuple[BenchmarkResult, ...]) -> Iterator[tuple[str, int]]:
    for word in ("unreadable", "refused"):
        yield f"answers {word}", sum(int(each.results[0][f"n_{word}"]) for each in results)


def costs(run: Run, judge: IndependentJudge) -> tuple[str, ...]:
    """What the judge's tokens have cost so far, where its price is known and a server counted them."""
    if judge.price is None:
        return ()
    used = [each for each in run.server_usage if each.client == f"judge {judge.judge}"]
    tokens = [sum(each.prompt_tokens for each in used), sum(each.completion_tokens for each in used)]
    return (judge.price.of(*tokens),) if used else ()
