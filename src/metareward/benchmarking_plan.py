"""What a recipe's benchmarks ask for, counted before anything is asked: completions by role, and their longest texts.

Upper bounds, but for Arena-Hard's second tries. What is counted from answers and judgments that are there asks nothing.
A judge that is another model than M_t counts here, and the time that it takes does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from metareward.benchmarking_answers import questions_of
from metareward.benchmarking_entries import Entry, entries
from metareward.benchmarks import arena_judge, label_judge, mt_bench_judge
from metareward.benchmarks.judge_files import read_pairs, read_rankings
from metareward.experiment import Experiment
from metareward.progress import ANSWERS, JUDGMENTS
from metareward.recipe import BenchmarkSettings, Recipe
from metareward.rundir import RunDir
from metareward.types import Sampling

_GAMES = 2  # each pair is shown in both orders
_OUTPUTS = 2  # the model's and the one that it is compared with


@dataclass(frozen=True, slots=True)
class Asking:
    """So many completions of one role, at most ``limit`` tokens each, of M_t itself or of another judge.

    ``like_the_run``: they are what the run asks in this role, so what is known of those holds for them.
    """

    role: str
    calls: int
    limit: int
    itself: bool = True
    like_the_run: bool = True


def askings(recipe: Recipe, t: int, held_out: int) -> tuple[Asking, ...]:
    """What all benchmarks ask of M_t and about it, with so many held-out prompts.

    Raises `UserError` for a file of questions that can't be read or isn't there.
    """
    every = entries(Experiment(RunDir(Path(recipe.name)), recipe), t)
    return tuple(asking for entry in every for asking in _of(entry, held_out))


def _of(entry: Entry, held_out: int) -> list[Asking]:
    asked, recipe = entry.asked, entry.of.recipe
    if not entry.due and not entry.answering:
        return []
    outputs = _outputs(entry.local, held_out)
    found = [Asking(ANSWERS, outputs, recipe.answers.max_tokens)] if entry.answering else []
    if entry.due and not entry.graded and asked.judge != "oracle":
        found.append(_judging(entry, outputs))
    return found


def _outputs(asked: BenchmarkSettings, held_out: int) -> int:
    """Texts of one model; of a benchmark of judges, responses to be graded, or pairs where they are compared."""
    if asked.questions is None:
        return held_out
    if asked.kind != "judge":
        return sum(_turns(asked, len(each.messages)) for each in questions_of(asked))
    path = Path(asked.questions)
    if asked.form == "pairs":
        pairs = len(read_pairs(path))
        return pairs if asked.prompt else pairs * _OUTPUTS
    return sum(len(item.responses) for item in read_rankings(path))


def _turns(asked: BenchmarkSettings, messages: int) -> int:
    return messages if asked.kind == "mt-bench" else 1


def _judging(entry: Entry, outputs: int) -> Asking:
    asked, itself = entry.asked, entry.asked.judge == "itself"
    if asked.prompt is not None and (asked.kind, asked.form) != ("judge", "rankings"):
        games, sampling = _questions(asked)
        return Asking(JUDGMENTS, outputs * games, sampling.max_tokens, itself, like_the_run=False)
    judged = entry.of.recipe.judgments
    each = asked.judgments if judged.temperature > 0 else 1
    shown = _OUTPUTS if asked.kind in ("alpaca", "arena") else 1
    return Asking(JUDGMENTS, outputs * shown * each, judged.max_tokens, itself)


def _questions(asked: BenchmarkSettings) -> tuple[int, Sampling]:
    """How often a judge with the benchmark's own prompt is asked about each output, and how."""
    if asked.kind == "arena":
        return _GAMES, arena_judge.SAMPLING
    if asked.kind == "mt-bench":
        return 1, mt_bench_judge.SAMPLING
    return (1 if asked.kind == "alpaca" else _GAMES), label_judge.SAMPLING
