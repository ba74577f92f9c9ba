"""``metareward evaluate compare``: models, iterations, runs or seeds on stored results, prompt by prompt. No judge.

A source is a run folder (a benchmark's folders ``iter-*/eval/NAME``) or a file: AlpacaEval's annotations, Arena-Hard's
or MT-Bench's judgments, ``verdicts.jsonl`` of IFEval and of tasks with known answers, or rows {"id", "score"} with a
``model``. A prompt's value is the preference share, the mean outcome of its battles, the mean grade of its turns, or
whether the response is right; all in percent but MT-Bench's grades.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import ClassVar, Literal, get_args

import numpy as np
from pydantic import Field

from metareward.data.files import Row, read_all_rows
from metareward.errors import UserError
from metareward.evaluation.alpaca_eval.data import read_annotations
from metareward.evaluation.arena_hard.data import read_judgments
from metareward.evaluation.arena_hard.score import to_battles
from metareward.evaluation.base import Column, EvaluateCommand, Evaluated, EvaluateSession, ResultTable
from metareward.evaluation.input_checks import group_by_name, one_value, require_field, require_one_row
from metareward.evaluation.judge_quality.calibration import write_figure
from metareward.evaluation.mt_bench.data import read_grades
from metareward.evaluation.verifiable.answers import Outcome
from metareward.method.paired import PairedDifference, holm, paired_difference

RUN_FILES = ("annotations.json", "judgments.jsonl", "verdicts.jsonl")  # in a folder iter-*/eval/NAME of a run


@dataclass(frozen=True, slots=True)
class PromptScores:
    """One model's values by prompt on one benchmark, None for an unreadable one; ``judge``, ``baseline`` if named.

    ``kind`` says what the values are, such as the share of a preference: others can't be compared with them.
    """

    model: str
    values: Mapping[str, float | None]
    judge: str | None = None
    baseline: str | None = None
    kind: str = "preference"


@dataclass(frozen=True, slots=True)
class ModelComparison:
    """Models ``a`` and ``b``; ``p_adjusted`` is Holm's over all comparisons of the table."""

    a: str
    b: str
    found: PairedDifference
    p_adjusted: float | None
    left_out: int
    caveats: tuple[str, ...]

    @property
    def differ(self) -> bool:
        """Whether the models differ at a level of 5 % over all comparisons of the table."""
        return self.p_adjusted is not None and self.p_adjusted < 0.05

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        named = {"a": self.a, "b": self.b, "p_adjusted": self.p_adjusted, "differ": self.differ}
        return {**named, **asdict(self.found), "n_left_out": self.left_out, "caveats": list(self.caveats)}


# --- reading ---


def read_scores(path: Path) -> tuple[PromptScores, ...]:
    """The models of one file of results, recognized by its fields. Raises `UserError` for any other file."""
    first = read_all_rows(path)[0]
    if "preference" in first.fields:
        return tuple(
            PromptScores(
                each.model,
                {
                    row.instruction or f"number {row.row}": None if row.preference is None else 100 * row.preference
                    for row in each.rows
                },
                each.judge,
                each.baseline,
            )
            for each in read_annotations(path)
        )
    if "games" in first.fields or "game1" in first.fields:
        return _arena_scores(path)
    if "turn" in first.fields:
        return _grade_scores(path)
    if "strict" in first.fields or "outcome" in first.fields or "score" in first.fields:
        return _row_scores(path)
    raise first.error(
        "score",
        "is missing, and this is no benchmark's file",
        'give annotations, judgments, verdicts or {"id", "score"}',
    )


def _arena_scores(path: Path) -> tuple[PromptScores, ...]:
    """Only of questions with both verdicts: one game alone has the judge's position bias in it."""
    rows = read_all_rows(path)
    baseline = None if rows[0].has("baseline") else "the baseline"
    matches = [
        match if None not in match.games else replace(match, games=(None, None))
        for match in read_judgments(path, baseline, "v0.1")
    ]
    battles = to_battles(matches, "v0.1")
    won_QM, n_QM = battles.sums(battles.weight_R * battles.outcome_R), battles.sums(battles.weight_R)
    judges = {match.model: (match.judge, match.baseline) for match in matches}
    return tuple(
        PromptScores(
            model,
            {
                question: 100 * float(won_QM[q, m] / n_QM[q, m]) if n_QM[q, m] else None
                for q, question in enumerate(battles.questions)
            },
            *judges[model],
            "battles",
        )
        for m, model in enumerate(battles.models)
    )


def _grade_scores(path: Path) -> tuple[PromptScores, ...]:
    """Only of questions whose turns are all graded; one without a second turn in the file is another question."""
    grades = read_grades(path)
    found = []
    for model in dict.fromkeys(grade.model for grade in grades):
        own = [grade for grade in grades if grade.model == model]
        turns: dict[int, dict[int, float | None]] = {}
        for grade in own:
            turns.setdefault(grade.question, {})[grade.turn] = grade.score
        values = {
            f"{question}, turns {sorted(scores)}": _mean_of_all(list(scores.values()))
            for question, scores in turns.items()
        }
        found.append(PromptScores(model, values, own[0].judge, kind="grade"))
    return tuple(found)


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    """Their mean; None where one is unknown."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _row_scores(path: Path) -> tuple[PromptScores, ...]:
    rows, found = read_all_rows(path), []
    kind = next((name for name in ("strict", "outcome") if name in rows[0].fields), "score")
    for model, own in group_by_name(rows, "model", default=path.stem).items():
        keyed = [(row.text("id", "key"), row) for row in own]
        require_one_row(keyed, "id", "keep one row for each model and prompt")
        found.append(
            PromptScores(model, {key: _value(row, kind) for key, row in keyed}, one_value(own, "judge"), kind=kind)
        )
    return tuple(found)


def _value(row: Row, kind: str) -> float | None:
    require_field(row, kind, "give it in every row, null for a score that is unreadable")
    if kind == "score":
        return row.optional_number("score")
    if kind == "strict":
        verdicts = row.items("strict")
        if not verdicts or not all(isinstance(each, bool) for each in verdicts):
            raise row.error("strict", "isn't a list of true and false", "give the verdict on each instruction")
        return 100.0 * all(verdicts)
    outcome = row.text("outcome")
    if outcome not in get_args(Outcome):
        raise row.error("outcome", f"is {outcome!r}"[:60], f"give {', '.join(get_args(Outcome))}")
    return None if outcome == "timeout" else 100.0 * (outcome == "correct")


def read_run_scores(run: Path, benchmark: str | None) -> tuple[PromptScores, ...]:
    """The models of a run on one of its benchmarks, with M0 at 50 where all are compared with M0.

    Raises `UserError` when the run has no such results, or several benchmarks and none is named.
    """
    files = [path for name in RUN_FILES for path in run.glob(f"iter-*/eval/*/{name}")]
    names = sorted({path.parent.name for path in files})
    if benchmark is None and len(names) == 1:
        benchmark = names[0]
    if benchmark not in names:
        known = ", ".join(names) or "none"
        problem = "has several benchmarks" if benchmark is None else f"has no results of the benchmark {benchmark!r}"
        raise UserError(f"{run}: {problem}; fix: give --benchmark, of which there are results of: {known}")
    found = []
    for path in sorted(files, key=lambda each: int(each.parents[2].name.removeprefix("iter-"))):
        if path.parent.name == benchmark:
            name = f"M{path.parents[2].name.removeprefix('iter-')}"
            found += [replace(each, model=name) for each in read_scores(path)[:1]]
    baselines = {each.baseline for each in found}
    if baselines == {"M0"}:
        prompts = dict.fromkeys(prompt for each in found for prompt in each.values)
        found.insert(0, PromptScores("M0", dict.fromkeys(prompts, 50.0), found[0].judge, "M0"))
    return tuple(found)


def has_run_scores(run: Path, benchmark: str) -> bool:
    """Whether a run has results by prompt of this benchmark."""
    return any(path for name in RUN_FILES for path in run.glob(f"iter-*/eval/{benchmark}/{name}"))


def read_source(path: Path, benchmark: str | None) -> tuple[PromptScores, ...]:
    """`read_run_scores` of a run folder, `read_scores` of anything else."""
    is_run = path.is_dir() and any(path.glob("iter-*"))
    return read_run_scores(path, benchmark) if is_run else read_scores(path)


# --- comparing ---


def compare_models(
    pairs: Iterable[tuple[str, Sequence[PromptScores], str, Sequence[PromptScores]]],
) -> tuple[ModelComparison, ...]:
    """Comparisons of two names with the scores of their seeds, on the prompts that all of them have a value for.

    Raises `UserError` where two have no prompt in common, different baselines or values of different kinds.
    """
    found = []
    for a, a_S, b, b_T in pairs:
        scores = [*a_S, *b_T]
        common = [key for key in a_S[0].values if all(each.values.get(key) is not None for each in scores)]
        every = {key for each in scores for key in each.values}
        if not common:
            raise UserError(f"{a} and {b}: no prompt that both have a value for; fix: give results on the same prompts")
        kinds = sorted({each.kind for each in scores})
        if len(kinds) > 1:
            raise UserError(
                f"{a} and {b}: values of different kinds, {' and '.join(kinds)}; fix: give results of one benchmark"
            )
        baselines = sorted({str(each.baseline) for each in scores})
        if len(baselines) > 1:
            raise UserError(
                f"{a} and {b}: compared with different baselines, {' and '.join(baselines)}; fix: give those of one"
            )
        judges = sorted({each.judge or "not named" for each in scores})
        caveats = [f"judged by {' and '.join(judges)}"] if len(judges) > 1 else []
        if len(common) < len(every):
            caveats.append(f"partial: {len(common)} of {len(every)} prompts have a value for both")
        a_SP, b_TP = (np.array([[each.values[key] for key in common] for each in x], dtype=float) for x in (a_S, b_T))
        difference = paired_difference(a_SP, b_TP)
        if difference.low is None:
            alone = "one prompt only" if len(common) == 1 else "every prompt has the same difference"
            caveats.append(f"no interval: {alone}")
        found.append((a, b, difference, len(every) - len(common), tuple(caveats)))
    known = [difference.p_value for _, _, difference, _, _ in found if difference.p_value is not None]
    adjusted = iter(holm(known))
    return tuple(
        ModelComparison(a, b, difference, None if difference.p_value is None else next(adjusted), left_out, caveats)
        for a, b, difference, left_out, caveats in found
    )


def compare_all(models: Sequence[PromptScores]) -> tuple[ModelComparison, ...]:
    """Every two of these models."""
    return compare_models(((a.model, [a], b.model, [b]) for a, b in combinations(models, 2)))


COLUMNS = (
    Column("first", "mean_a"),
    Column("second", "mean_b"),
    Column("difference", "difference"),
    Column("95 %", "interval"),
    Column("p", "p_value", 4, unit="p"),
    Column("p, all pairs", "p_adjusted", 4, unit="p"),
    Column("detectable", "detectable"),
    Column("first better", "a_better"),
    Column("equal", "equal"),
    Column("second better", "b_better"),
    Column("prompts", "n_prompts"),
    Column("pairing saves %", "prompts_saved", 0, unit="share"),
)


def comparison_table(title: str, comparisons: Sequence[ModelComparison]) -> ResultTable:
    """A row to each comparison; the notes say which models differ."""
    rows = []
    for each in comparisons:
        figures = each.as_dict()
        if each.found.low is not None:
            figures["interval"] = {"low": each.found.low, "high": each.found.high}
        rows.append((f"{each.a} and {each.b}", figures))
    differ = ", ".join(f"{each.a} and {each.b}" for each in comparisons if each.differ)
    notes = [
        f"Different at 5 % over all {len(comparisons)} comparisons (Holm): {differ or 'none'}.",
        "Detectable: the smallest difference that 80 % of such comparisons find.",
        *(f"{each.a} and {each.b}: {caveat}." for each in comparisons for caveat in each.caveats),
    ]
    if any(each.found.n_seeds != (1, 1) for each in comparisons):
        notes.append("Several seeds: intervals over seeds and prompts.")
    return ResultTable(title, COLUMNS, tuple(rows), tuple(notes), first="models")


class CompareCommand(EvaluateCommand):
    """Two models, iterations, runs or seeds on stored results: paired difference, interval, p-value. No judge."""

    first: tuple[Path, ...] = Field(description="Results or a run folder. Again for more seeds of the same model.")
    second: tuple[Path, ...] = Field((), description="The other model's. Without it: all models of --first.")
    benchmark: str | None = Field(None, description="The benchmark of a run folder, by its name in the recipe.")
    first_model: str | None = Field(None, description="The model of --first, such as M0, where there are several.")
    second_model: str | None = Field(None, description="The model of --second, or of --first where that is all.")
    plot: Path | None = Field(None, description="Write the differences with their intervals there, as .svg or .png.")

    asks: ClassVar[Literal["judge", "model", "nobody"]] = "nobody"

    async def evaluate(self, session: EvaluateSession) -> Evaluated:  # noqa: ARG002
        """The table of comparisons, and the plot."""
        comparisons = self.comparisons()
        title = f"Paired comparison{f' on {self.benchmark}' if self.benchmark else ''}"
        if self.plot is not None:
            plot_differences(comparisons, self.plot)
        numbers = {"benchmark": "compare", "comparisons": [each.as_dict() for each in comparisons]}
        return Evaluated((comparison_table(title, comparisons),), numbers)

    def comparisons(self) -> tuple[ModelComparison, ...]:
        """Raises `UserError` for files that can't be read or compared."""
        if not self.first:
            raise UserError("give --first, a file of results or a run folder")
        for option, paths in (("--first", self.first), ("--second", self.second)):
            if len({path.resolve() for path in paths}) < len(paths):
                raise UserError(f"{option}: names one file twice; fix: give each seed's results once")
        sources = [read_source(path, self.benchmark) for path in self.first]
        if not self.second and self.first_model is None and self.second_model is None and len(sources) == 1:
            models = sources[0]
            if len(models) < 2:
                raise UserError(f"{self.first[0]}: has one model, {models[0].model}; fix: give --second")
            return compare_all(models)
        others = [read_source(path, self.benchmark) for path in self.second] if self.second else sources
        a_S = [_model(models, self.first_model, "--first-model") for models in sources]
        b_T = [_model(models, self.second_model, "--second-model") for models in others]
        names = [a_S[0].model, b_T[0].model]
        if names[0] == names[1] and {path.resolve() for path in self.first} & {
            path.resolve() for path in self.second or self.first
        }:
            raise UserError(f"{names[0]} would be compared with itself; fix: name another model or file as the second")
        if names[0] == names[1]:
            names = [f"{names[0]} of --first", f"{names[1]} of --second"]
        return compare_models([(names[0], a_S, names[1], b_T)])


def _model(models: Sequence[PromptScores], name: str | None, option: str) -> PromptScores:
    found = [each for each in models if name in (None, each.model)]
    if len(found) != 1:
        raise UserError(f"{option}: name one of {', '.join(each.model for each in models)}")
    return found[0]


def plot_differences(comparisons: Sequence[ModelComparison], path: Path, what: str = "") -> None:
    """A row to each comparison of ``what``: the difference and its interval. Raises `UserError` for another ending."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1 + 0.35 * len(comparisons)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="0.6", linewidth=1)
    for place, each in enumerate(comparisons):
        low, high = (each.found.difference if end is None else end for end in (each.found.low, each.found.high))
        axes.plot([low, high], [place, place], color="C0" if each.differ else "0.6", linewidth=2)
        axes.plot([each.found.difference], [place], "o", color="C0" if each.differ else "0.6")
    axes.set_yticks(range(len(comparisons)), [f"{each.b} - {each.a}" for each in comparisons])
    axes.invert_yaxis()
    axes.set_xlabel(f"{what}paired difference with 95 % interval (grey: no difference shown)")
    write_figure(figure, path)
