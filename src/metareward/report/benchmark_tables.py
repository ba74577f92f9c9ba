"""Benchmark results as tables: what ``metareward evaluate`` prints, and the report's tables of a run's benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from metareward.evaluation.alpaca_eval.length_control import LengthControlled
from metareward.evaluation.alpaca_eval.score import OFFICIAL, AlpacaResult
from metareward.evaluation.arena_hard.run import ArenaResult, ModelScore
from metareward.evaluation.arena_hard.score import PERCENTILES, Range
from metareward.evaluation.judge_quality.run import JudgeTable
from metareward.evaluation.mt_bench.score import MtBenchScore
from metareward.report.facts import BenchmarkResult, Run
from metareward.report.labels import escape_control

# --- What ``metareward evaluate`` prints: results as tables, names from files made safe to look at, - for what isn't.


Shown = Table | str


def number(value: object, digits: int = 2) -> str:
    """A number with so many decimals, a whole one as it is, a dash for None."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def percent(share: object) -> str:
    """A share as a percentage."""
    return number(100 * share if isinstance(share, float) else share)


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first, overflow="fold")
    for name in columns:
        table.add_column(name, justify="right")
    return table


def alpaca_table(results: Sequence[AlpacaResult]) -> Group:
    """Win rates in percent. The length-controlled column is called so only if it is the leaderboard's number."""
    official = all(each.official for each in results)
    controlled = ("LC win rate", "LC s.e.") if official else ("length-adjusted", "its s.e.")
    columns = ("win rate", "s.e.", *controlled, "discrete", "length", "judged", "missing", "unparsable", "refused")
    table = _table("AlpacaEval 2", "model", *columns)
    for each in results:
        fitted = each.controlled
        values = (each.raw.win_rate, each.raw.standard_error, *_rate(fitted), each.raw.discrete_win_rate)
        counts = (each.avg_length, each.raw.n_total, each.n_missing, each.n_unparsable, each.n_refused)
        table.add_row(escape_control(each.model), *map(number, (*values, *counts)))
    return Group(table, *_alpaca_note_lines(results))


def _rate(fitted: LengthControlled | None) -> tuple[float | None, float | None]:
    return (None, None) if fitted is None else (fitted.win_rate, fitted.standard_error)


def _alpaca_note_lines(results: Sequence[AlpacaResult]) -> Iterator[str]:
    yield f"preferences: {', '.join(dict.fromkeys(each.mode for each in results))}"
    for method in dict.fromkeys(each.method for each in results):
        yield f"length control by {method}"
    for each in results:
        yield from (escape_control(f"{each.model}: {note}") for note in each.notes)


def weights_table(published: Mapping[str, LengthControlled]) -> Table:
    """Win rates that published weights stand for."""
    table = _table("AlpacaEval 2, from published weights", "model", "LC win rate", "LC s.e.")
    for model, fitted in published.items():
        table.add_row(escape_control(model), *map(number, _rate(fitted)))
    return table


def arena_tables(results: Sequence[ArenaResult]) -> Group:
    """Scores in percent with intervals, a table to a category."""
    return Group(*(shown for result in results for shown in _arena_tables(result)))


def _arena_tables(result: ArenaResult) -> Iterator[Shown]:
    low, high = PERCENTILES[result.version]
    sure = f"{high - low:g} %"
    controls = list(result.coefficients)
    counts = ("rating", "tokens", "questions", "battles", "unparsable", "refused")
    title = " ".join(filter(None, ("Arena-Hard", result.version, escape_control(result.category))))
    columns = ("score", f"{sure} by question", f"{sure} by row", *controls, *counts)
    table = _table(f"{title}, against {escape_control(result.baseline)}", "model", *columns)
    for each in result.models:
        table.add_row(*_arena_table_row(each, controls))
    yield table
    yield "by row: as v0.1 publishes it, too narrow, because the games of a question are no independent evidence"
    if controls:
        yield f"style control: lengths in {result.length_in}; at the mean style of these battles, so models bear on it"
    if result.n_without_style:
        yield f"style control: {result.n_without_style} questions of models left out, an answer's style is not known"


def _arena_table_row(each: ModelScore, controls: Sequence[str]) -> Iterator[str]:
    yield escape_control(each.model)
    yield number(each.score)
    yield from (_range(each.questions), _range(each.rows))
    yield from (number(each.controlled.get(name)) for name in controls)
    yield from (number(each.rating, 0), number(each.avg_tokens, 0))
    yield from map(number, (each.n_questions, each.n_battles, each.n_unparsable, each.n_refused))


def _range(ends: Range | None) -> str:
    return "-" if ends is None else f"{ends.low:.2f} to {ends.high:.2f}"


def mt_bench_tables(scores: Sequence[MtBenchScore]) -> Group:
    """Means of scores from 1 to 10, and by category where the questions were given."""
    columns = ("score", "turn 1", "turn 2", "judged", "unparsable", "refused", "missing", "repeated")
    table = _table("MT-Bench", "model", *columns)
    for each in scores:
        counts = (each.n_valid, each.n_failed, each.n_refused, each.n_missing, each.n_repeated)
        table.add_row(escape_control(each.model), *map(number, (each.average, each.turn1, each.turn2, *counts)))
    return Group(table, *(_by_category(each) for each in scores if each.categories))


def _by_category(score: MtBenchScore) -> Table:
    table = _table(f"{escape_control(score.model)} by category", "category", "score", "turn 1", "turn 2", "judged")
    for name, each in score.categories.items():
        table.add_row(escape_control(name), *map(number, (each.average, each.turn1, each.turn2, each.n_valid)))
    return table


# Which measures of a judge are printed, their headings, and how; all of them are in the JSON.
Column = tuple[str, str, Callable[[object], str]]
_AGREEMENT: tuple[Column, ...] = (
    ("agreement %", "agreement", percent),
    ("from", "low", percent),
    ("to", "high", percent),
    ("without ties %", "agreement_without_ties", percent),
    ("Spearman", "spearman", number),
    ("pairs", "n_pairs", number),
    ("ties", "n_ties", number),
    ("left out", "n_left_out", number),
)
_COLUMNS: dict[str, tuple[Column, ...]] = {
    "rankings": (
        ("accuracy %, ties half", "pairwise_accuracy_ties_half", percent),
        ("without ties %", "pairwise_accuracy_without_ties", percent),
        ("exact match %", "exact_match", percent),
        ("5-best %", "five_best", percent),
        ("best-of %", "best_of_match_ties_shared", percent),
        ("Spearman", "mean_spearman_defined", number),
        ("Kendall", "mean_kendall_tau_b_defined", number),
        ("prompts", "n_prompts", number),
        ("pairs", "n_pairs", number),
        ("unparsable", "n_unparsable", number),
        ("refused", "n_refused", number),
    ),
    "pairs": (
        ("accuracy %", "accuracy", percent),
        ("of readable %", "accuracy_readable", percent),
        ("both orders %", "accuracy_both_orders", percent),
        ("orders agree %", "positional_agreement", percent),
        ("kappa", "kappa", number),
        ("first shown %", "biases.position.p_first_shown", percent),
        ("longer %", "biases.length.p_longer", percent),
        ("labels longer %", "biases.label_length.p_longer", percent),
        ("own %", "biases.self_preference.judge", percent),
        ("labels own %", "biases.self_preference.label", percent),
        ("pairs", "n_pairs", number),
        ("unparsable", "n_unparsable", number),
    ),
    "meta-judge": (
        ("higher score wins %", "higher_score_wins", percent),
        ("flipped %: same score", "same_score.flipped", percent),
        ("different score", "different_score.flipped", percent),
        ("all", "all.flipped", percent),
        ("first wins %: same score", "same_score.first_wins", percent),
        ("different score", "different_score.first_wins", percent),
        ("all", "all.first_wins", percent),
        ("pairs", "all.pairs", number),
    ),
}


def judge_columns(results: JudgeTable) -> list[Column]:
    """What is printed of a table of judges: heading, place in the measures, and how; not what none of them has."""
    columns = _section_columns(results) if results.kind == "sections" else _COLUMNS.get(results.kind, _AGREEMENT)
    return [column for column in columns if any(inside(each, column[1]) is not None for _, each in results.rows)]


def judge_table(results: JudgeTable) -> Table:
    """The judges of a table, the length-only judge and chance."""
    told = judge_columns(results)
    table = _table(f"Judges: {results.kind}", "judge", *(heading for heading, _, _ in told))
    for name, measures in results.rows:
        table.add_row(escape_control(name), *(show(inside(measures, path)) for _, path, show in told))
    return table


def _section_columns(results: JudgeTable) -> tuple[Column, ...]:
    sections: Any = results.rows[0][1]["sections"]
    named = tuple((f"{escape_control(name)} %", f"sections.{name}", percent) for name in sections)
    return (("overall %", "overall", percent), *named, ("unparsable", "n_unparsable", number))


def inside(measures: Mapping[str, object], path: str) -> object:
    """The value at a dotted path, None where there is none."""
    found: object = measures
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


# --- The recipe's benchmarks, a table to each: a row to a model, beside a judge the length-only judge and chance.
#
# A number for which there is nothing to count is a dash. How many were judged stands beside it, and what was left out.


Fields = Mapping[str, Any]
Cells = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BenchmarkTable:
    """One benchmark. The first column names the model; ``notes`` say what the numbers rest on."""

    title: str
    columns: Cells
    rows: tuple[Cells, ...]
    notes: Cells


def benchmark_tables(run: Run) -> tuple[BenchmarkTable, ...]:
    """The benchmarks that have a result, in the recipe's order."""
    found = [result for iteration in run.iterations for result in iteration.benchmarks]
    named = ([each for each in found if each.benchmark == name] for name in run.recipe.benchmarks)
    return tuple(_TABLES[results[0].kind](results) for results in named if results)


def benchmarks_text(run: Run) -> Group | None:
    """The same for the terminal; None without any."""
    tables = benchmark_tables(run)
    return Group(*(_text(each) for each in tables)) if tables else None


def _text(table: BenchmarkTable) -> Table:
    shown = Table(
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        title=escape_control(table.title),
        title_justify="left",
        caption=escape_control(" ".join(table.notes)) or None,
        caption_justify="left",
    )
    for place, name in enumerate(table.columns):
        shown.add_column(name, justify="right" if place else "left", overflow="fold", no_wrap=not place)
    for row in table.rows:
        shown.add_row(*map(escape_control, row))
    return shown


def _title(result: BenchmarkResult, name: str) -> str:
    # 'previous' is another model each time, so the rows name it.
    against = f", against {result.against}" if result.against else ""
    judge = {"itself": "each model itself", "oracle": "the oracle"}.get(result.judge, result.judge)
    how = " by the run's rubric" if result.by_rubric else ""
    return f"{result.benchmark}: {name}{against}, judged by {judge}{how}"


def _names(results: Sequence[BenchmarkResult]) -> Iterator[tuple[str, BenchmarkResult]]:
    several = len({each.against for each in results}) > 1
    for each in results:
        yield f"{each.model} against {each.against}" if several else each.model, each


def _against_one(results: Sequence[BenchmarkResult]) -> BenchmarkResult:
    """What the title says: against whom only if it is the same in every row."""
    first = results[0]
    if len({each.against for each in results}) == 1:
        return first
    return replace(first, against=None)


def _left_out(fields: Fields, *names: str) -> str:
    """``2 unparsable, 1 refused``; 0 where nothing was."""
    counts = ((fields.get(f"n_{name}") or 0, name) for name in names)
    return ", ".join(f"{count} {name}" for count, name in counts if count) or "0"


def _alpaca(results: Sequence[BenchmarkResult]) -> BenchmarkTable:
    every = [fields for each in results for fields in each.results]
    official = all(fields["length_method"] == OFFICIAL for fields in every)
    controlled = "LC win rate" if official else "at equal lengths"
    return BenchmarkTable(
        _title(_against_one(results), "AlpacaEval"),
        ("", "win rate", controlled, "discrete", "length", "judged", "left out"),
        tuple(_alpaca_row(name, fields) for name, each in _names(results) for fields in each.results),
        tuple(_alpaca_notes(every)),
    )


def _alpaca_row(name: str, fields: Fields) -> Cells:
    official = fields["length_method"] == OFFICIAL
    rate = "length_controlled_winrate" if official else "length_adjusted_winrate"
    error = "lc_standard_error" if official else "length_adjusted_standard_error"
    return (
        name,
        _sure(fields["win_rate"], fields["standard_error"]),
        _sure(fields[rate], fields[error]),
        number(fields["discrete_win_rate"], 1),
        number(fields["avg_length"]),
        number(fields["n_judged"]),
        _left_out(fields, "missing", "unparsable", "refused"),
    )


def _sure(value: float | None, error: float | None) -> str:
    return number(value, 1) if value is None or error is None else f"{value:.1f} ± {error:.1f}"


def _alpaca_notes(every: Iterable[Fields]) -> Iterator[str]:
    every = list(every)
    yield f"Preferences: {', '.join(dict.fromkeys(str(each['preferences']) for each in every))}."
    yield f"Lengths: {', '.join(dict.fromkeys(str(each['length_method']) for each in every))}."
    yield from (f"{each['model']}: {note}." for each in every for note in each["notes"])


def _arena(results: Sequence[BenchmarkResult]) -> BenchmarkTable:
    rows = [
        (f"{name} {category['category']}".strip(), category, fields)
        for name, each in _names(results)
        for category in each.results
        for fields in category["models"]
    ]
    controls = list(dict.fromkeys(control for _, _, fields in rows for control in fields["controlled"]))
    return BenchmarkTable(
        _title(_against_one(results), f"Arena-Hard {rows[0][1]['version'] if rows else ''}".strip()),
        ("", "score", "interval, by question", *controls, "questions", "battles", "left out"),
        tuple(_arena_row(name, fields, controls) for name, _, fields in rows),
        (),
    )


def _arena_row(name: str, fields: Fields, controls: Sequence[str]) -> Cells:
    ends = fields["questions"]
    return (
        name,
        number(fields["score"], 1),
        "-" if ends is None else f"{ends['low']:.1f} to {ends['high']:.1f}",
        *(number(fields["controlled"].get(control), 1) for control in controls),
        number(fields["n_questions"]),
        number(fields["n_battles"]),
        _left_out(fields, "unparsable", "refused"),
    )


def _mt_bench(results: Sequence[BenchmarkResult]) -> BenchmarkTable:
    rows = [(each.model, fields) for each in results for fields in each.results]
    return BenchmarkTable(
        _title(results[0], "MT-Bench"),
        ("", "score", "turn 1", "turn 2", "judged", "left out"),
        tuple(
            (
                name,
                *(number(fields[key]) for key in ("average", "turn1", "turn2", "n_valid")),
                _left_out({**fields, "n_unparsable": fields["n_failed"]}, "missing", "unparsable", "refused"),
            )
            for name, fields in rows
        ),
        (),
    )


def _judge(results: Sequence[BenchmarkResult]) -> BenchmarkTable:
    tables = [(each.model, _judges(fields)) for each in results for fields in each.results]
    every = JudgeTable(tables[0][1].kind, tuple(row for _, table in tables for row in table.rows))
    columns = judge_columns(every)
    names = [f"{model}: {name}" if i else model for model, table in tables for i, (name, _) in enumerate(table.rows)]
    cells = (tuple(show(inside(row, path)) for _, path, show in columns) for _, row in every.rows)
    return BenchmarkTable(
        f"{results[0].benchmark}: judging {every.kind}, what is right says {results[0].against}",
        ("", *(heading for heading, _, _ in columns)),
        tuple((name, *row) for name, row in zip(names, cells, strict=True)),
        (),
    )


def _judges(fields: Fields) -> JudgeTable:
    return JudgeTable(fields["kind"], tuple((str(each["judge"]), each) for each in fields["judges"]))


_TABLES = {"alpaca": _alpaca, "arena": _arena, "mt-bench": _mt_bench, "judge": _judge}
