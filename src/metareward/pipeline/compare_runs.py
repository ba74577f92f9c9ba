"""``metareward compare``: two runs by recipe and by outcome, model by model on the same prompts. No judge.

Differences are the second run's minus the first's, paired by prompt, with intervals and p-values of
`metareward.method.paired`: of the answers' figures on held-out prompts and on the prompts of each iteration, and of the
benchmarks that both runs have. Figures of the judge, pairs and times stand side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from metareward.config.schema import Recipe
from metareward.errors import UserError
from metareward.evaluation.base import Column, ResultTable
from metareward.evaluation.comparison import (
    ModelComparison,
    PromptScores,
    compare_models,
    comparison_table,
    has_run_scores,
    plot_differences,
    read_run_scores,
)
from metareward.evaluation.held_out import HeldOut, Oracle, answer_values, held_out_records
from metareward.evaluation.worlds import oracle_of
from metareward.method.gates import GATES
from metareward.pipeline.changes import differences, read_json
from metareward.report.facts import Run, evaluated_digest, gather, read_figures
from metareward.report.tables import metric_for
from metareward.storage.records import find_record
from metareward.storage.run_dir import RunDir
from metareward.storage.run_log import stage_seconds
from metareward.storage.serialization import flatten
from metareward.storage.store import RecordStore

_Pair = tuple[str, list[PromptScores], str, list[PromptScores]]


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Runs called ``first`` and ``second``; ``recipe`` lists the settings and inputs that differ.

    ``outcomes`` are paired comparisons by metric or benchmark; ``beside`` has figures of both runs by table, row and
    run; ``notes`` say what could not be compared.
    """

    first: str
    second: str
    recipe: tuple[str, ...]
    outcomes: Mapping[str, tuple[ModelComparison, ...]]
    beside: Mapping[str, Mapping[str, Mapping[str, float | None]]]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        outcomes = {name: [each.as_dict() for each in found] for name, found in self.outcomes.items()}
        return {**asdict(self), "outcomes": outcomes}

    def tables(self) -> tuple[ResultTable, ...]:
        """The outcomes, then what stands side by side."""
        columns = (Column(self.first, "first"), Column(self.second, "second"))
        paired = (comparison_table(name, found) for name, found in self.outcomes.items())
        plain = (
            ResultTable(name, columns, tuple(rows.items()), first="") for name, rows in self.beside.items() if rows
        )
        return (*paired, *plain)


def compare_runs(first: RunDir, second: RunDir) -> RunComparison:
    """Compare two runs, finished or not. Raises `UserError` for a folder that is no run or can't be read."""
    if first.path.resolve() == second.path.resolve():
        raise UserError(f"{first.path}: both are the same run; fix: name two")
    runs = (first, second)
    facts = (gather(first), gather(second))
    settings = [flatten(each.recipe.resolved()) | _inputs(run) for each, run in zip(facts, runs, strict=True)]
    names = _names(first, second)
    same, other = _evaluated(runs, facts)
    notes = [f"The same in both runs: {', '.join(f'M{t}' for t in same)}."] if same else []
    outcomes = _held_out(runs, facts, names, other, notes)
    outcomes |= _annotated(runs, facts, names, notes)
    outcomes |= _benchmarks(runs, facts, names, other, notes)
    return RunComparison(
        *names,
        recipe=tuple(differences(*({k: v for k, v in each.items() if k != "name"} for each in settings))),
        outcomes=outcomes,
        beside={
            "Judge health, by model": _beside(*(_health(run, other) for run in runs)),
            "Pairs": _beside(*map(_pairs, facts)),
            "Cost, in seconds": _beside(*(_cost(run, each) for run, each in zip(runs, facts, strict=True))),
        },
        notes=tuple(notes),
    )


def plot_runs(found: RunComparison, path: Path) -> None:
    """Plot the paired differences of the first outcome, by model. Raises `UserError` when there is none."""
    if not found.outcomes:
        raise UserError(f"--out {path}: nothing to plot: {' '.join(found.notes) or 'no model is evaluated in both'}")
    name, comparisons = next(iter(found.outcomes.items()))
    plot_differences(comparisons, path, f"{name}: ")


def _names(first: RunDir, second: RunDir) -> tuple[str, str]:
    names = first.path.resolve().name, second.path.resolve().name
    return names if names[0] != names[1] else (str(first.path), str(second.path))


def _inputs(run: RunDir) -> dict[str, object]:
    return read_json(run.inputs) if run.inputs.is_file() else {}


# --- paired ---


def _held_out(
    runs: Sequence[RunDir], facts: Sequence[Run], names: Sequence[str], other: Sequence[int], notes: list[str]
) -> dict[str, tuple[ModelComparison, ...]]:
    """The answers' metrics of the models ``other``, on the prompts that both runs have."""
    pairs: dict[str, list[_Pair]] = {}
    for t in other:
        records = [_records(run, t) for run in runs]
        same = {each.prompt for each in records[0]} & {each.prompt for each in records[1]}
        if not same:
            notes.append(f"M{t}: no held-out prompt in common.")
            continue
        values = [
            answer_values([record for record in found if record.prompt in same], _oracle(each.recipe))
            for found, each in zip(records, facts, strict=True)
        ]
        for metric in (name for name in values[0] if name in values[1]):
            a, b = ([PromptScores(f"M{t}", dict(each[metric]), kind=metric)] for each in values)
            pairs.setdefault(metric, []).append((f"M{t} of {names[0]}", a, f"M{t} of {names[1]}", b))
    return _compared(pairs, "")


def _compared(pairs: Mapping[str, list[_Pair]], title: str) -> dict[str, tuple[ModelComparison, ...]]:
    """The comparisons of each metric that differs on some prompt, answer quality first."""
    order = sorted(pairs, key=lambda metric: metric != "answer_quality")
    compared = {f"{title}{metric_for(metric).label}": compare_models(pairs[metric]) for metric in order}
    return {
        label: found
        for label, found in compared.items()
        if any(each.found.equal < each.found.n_prompts for each in found)
    }


def _annotated(
    runs: Sequence[RunDir], facts: Sequence[Run], names: Sequence[str], notes: list[str]
) -> dict[str, tuple[ModelComparison, ...]]:
    """The metrics of all answers to the prompts of each iteration, on the prompts that both runs have."""
    pairs: dict[str, list[_Pair]] = {}
    for t in range(1, min(len(each.iterations) for each in facts)):
        if not all(each.iterations[t].generated for each in facts):
            continue
        values, common, changed = _annotated_values(runs, facts, t)
        if not common:
            notes.append(f"Iteration {t}: no prompt in common.")
        elif not changed:
            notes.append(f"Iteration {t}: the same records of {common} prompts in both runs.")
        else:
            for metric in (name for name in values[0] if name in values[1]):
                a, b = ([PromptScores(f"M{t - 1}", each[metric], kind=metric)] for each in values)
                of = f"M{t - 1} in iteration {t} of"
                pairs.setdefault(metric, []).append((f"{of} {names[0]}", a, f"{of} {names[1]}", b))
    return _compared(pairs, "Prompts of the iterations: ")


def _annotated_values(
    runs: Sequence[RunDir], facts: Sequence[Run], t: int
) -> tuple[list[dict[str, dict[str, float]]], int, int]:
    """Each run's metrics by prompt of iteration ``t``; how many prompts both have; of how many the records differ.

    One prompt's records are in memory at a time, and none is decoded where all are the same, as in a fork.
    """
    values: list[dict[str, dict[str, float]]] = [{}, {}]
    with (
        RecordStore.read(runs[0].iteration(t).records) as first,
        RecordStore.read(runs[1].iteration(t).records) as second,
    ):
        keys = sorted(first.keys() & second.keys())
        changed = sum(first.get(key) != second.get(key) for key in keys)
        common = 0 if changed else len(keys)
        for key in keys if changed else ():
            found = [find_record(store, key) for store in (first, second)]
            if found[0] is None or found[1] is None or found[0].prompt != found[1].prompt:
                continue
            common += 1
            for those, each, record in zip(values, facts, found, strict=True):
                assert record is not None
                answers = HeldOut(record.prompt, record.candidates_K, (), ())
                for metric, by_prompt in answer_values([answers], _oracle(each.recipe)).items():
                    those.setdefault(metric, {}).update(by_prompt)
    return values, common, changed


def _evaluated(runs: Sequence[RunDir], facts: Sequence[Run]) -> tuple[list[int], list[int]]:
    """The models that both runs have evaluated: those that are the same, and the others."""
    same: list[int] = []
    other: list[int] = []
    for t in range(min(len(each.iterations) for each in facts)):
        if all(len(each.iterations) > t and each.iterations[t].evaluation is not None for each in facts):
            digests = [evaluated_digest(run, t) for run in runs]
            (same if digests[0] == digests[1] else other).append(t)
    return same, other


def _records(run: RunDir, t: int) -> tuple[HeldOut, ...]:
    """M_t's held-out records."""
    with RecordStore.read(run.iteration(t).evaluation / "records.sqlite") as store:
        return held_out_records(store)


def _oracle(recipe: Recipe) -> Oracle | None:
    return oracle_of(recipe.prompts.source, recipe.judgments.min_score, recipe.judgments.max_score)


def _benchmarks(
    runs: Sequence[RunDir], facts: Sequence[Run], names: Sequence[str], other: Sequence[int], notes: list[str]
) -> dict[str, tuple[ModelComparison, ...]]:
    """The benchmarks of both recipes with results by prompt; ``notes`` gets what can't be compared."""
    found = {}
    for benchmark in (each.name for each in facts[0].recipe.benchmarks):
        if not all(has_run_scores(run.path, benchmark) for run in runs):
            continue
        try:
            a, b = ({each.model: each for each in read_run_scores(run.path, benchmark)} for run in runs)
            models = [f"M{t}" for t in other if f"M{t}" in a and f"M{t}" in b]
            pairs = [(f"{m} of {names[0]}", [a[m]], f"{m} of {names[1]}", [b[m]]) for m in models]
            if pairs:
                found[f"Benchmark {benchmark}"] = compare_models(pairs)
        except UserError as error:
            notes.append(f"{error}.")
    return found


# --- side by side ---


def _beside(
    first: Mapping[str, float | None], second: Mapping[str, float | None]
) -> dict[str, dict[str, float | None]]:
    return {key: {"first": first.get(key), "second": second.get(key)} for key in dict.fromkeys([*first, *second])}


def _health(run: RunDir, models: Sequence[int]) -> dict[str, float | None]:
    """The figures of the gates in the evaluations of these models."""
    by_model = {t: read_figures(run.iteration(t).evaluation / "model.json") for t in models}
    return {f"{name}, M{t}": found[name].value for name in GATES for t, found in by_model.items() if name in found}


def _pairs(facts: Run) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for each in facts.summaries:
        t = each.iteration
        found |= {f"iteration {t}: actor pairs": each.actor_pairs, f"iteration {t}: judge pairs": each.judge_pairs}
        found |= {
            f"iteration {t}: characters of {name} answers": value
            for name, value in (("chosen", each.chosen_chars), ("rejected", each.rejected_chars))
            if value is not None
        }
    return found


def _cost(run: RunDir, facts: Run) -> dict[str, float | None]:
    """Seconds by stage over all iterations; a fork's include those that its parent spent on what it took over."""
    found: dict[str, float | None] = {}
    for each in facts.iterations:
        for stage, seconds in stage_seconds(run, each.number).items():
            found[stage] = (found.get(stage) or 0.0) + seconds
    return {**found, "total": sum(value or 0.0 for value in found.values())}
