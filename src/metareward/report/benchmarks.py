"""The recipe's benchmarks, a table to each: a row to a model, beside a judge the length-only judge and chance.

A number for which there is nothing to count is a dash. How many were judged stands beside it, and what was left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from metareward.benchmarks.alpaca import OFFICIAL
from metareward.benchmarks.judge_tables import JudgeTable
from metareward.evaluate_tables import inside, judge_columns, number
from metareward.report.facts import BenchmarkResult, Run
from metareward.report.visible import visible

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
        title=visible(table.title),
        title_justify="left",
        caption=visible(" ".join(table.notes)) or None,
        caption_justify="left",
    )
    for place, name in enumerate(table.columns):
        shown.add_column(name, justify="right" if place else "left", overflow="fold", no_wrap=not place)
    for row in table.rows:
        shown.add_row(*map(visible, row))
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
