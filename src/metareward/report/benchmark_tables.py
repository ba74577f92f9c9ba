"""A run's benchmark results as tables, for the report and the terminal.

A figure for which there is nothing to count is a dash. How many were judged stands beside it, and what was left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from metareward.evaluation.comparison import (
    RUN_FILES,
    ModelComparison,
    compare_all,
    comparison_table,
    read_run_scores,
)
from metareward.report.facts import Run
from metareward.storage.run_dir import RunDir
from metareward.text import escape_control

Cells = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BenchmarkTable:
    """One benchmark of a run as text. The first column names the model; ``notes`` say what the figures rest on."""

    title: str
    columns: Cells
    rows: tuple[Cells, ...]
    notes: Cells


def benchmark_tables(run: Run) -> tuple[BenchmarkTable, ...]:
    """The benchmarks that have a result, in the recipe's order: a row to a model, or several."""
    tables = []
    for benchmark in run.recipe.benchmarks:
        found = [
            each for iteration in run.iterations for each in iteration.benchmarks if each.benchmark == benchmark.name
        ]
        if not found:
            continue
        opponents = {result.against for result in found}
        against = found[0].against if len(opponents) == 1 else None  # 'previous' is another model in each row
        rows = [
            (f"{result.model} against {result.against}" if len(opponents) > 1 else result.model, part, figures)
            for result in found
            for part, figures in benchmark.rows(result.results)
        ]
        figures_R = [figures for _, _, figures in rows]
        parts = benchmark.tables(figures_R)
        for place, (title, every) in enumerate(parts, 1):
            columns = tuple(each for each in every if not each.detail)
            cells = ((f"{name}{part}", *(column.cell(each) for column in columns)) for name, part, each in rows)
            tables.append(
                BenchmarkTable(
                    title=f"{benchmark.name}: {benchmark.heading(against)}{f': {title}' if title else ''}",
                    columns=("", *(column.label for column in columns)),
                    rows=tuple(cells),
                    notes=benchmark.notes(figures_R) if place == len(parts) else (),
                )
            )
    return tuple(tables)


def run_comparisons(folder: RunDir, run: Run) -> tuple[tuple[str, tuple[ModelComparison, ...]], ...]:
    """Every two models of the run on each benchmark that compares all of them with one judge and one baseline.

    Raises `UserError` for stored results that can't be read.
    """
    found = []
    for benchmark in run.recipe.benchmarks:
        name = benchmark.name
        if not any(path for file in RUN_FILES for path in folder.path.glob(f"iter-*/eval/{name}/{file}")):
            continue
        models = read_run_scores(folder.path, name)
        alike = len({(each.judge, each.baseline) for each in models}) == 1
        shared = (prompt for prompt in models[0].values if all(m.values.get(prompt) is not None for m in models))
        if alike and len(models) > 1 and next(shared, None) is not None:
            found.append((name, compare_all(models)))
    return tuple(found)


def comparison_text(name: str, comparisons: Sequence[ModelComparison]) -> BenchmarkTable:
    """The comparisons of one benchmark as text, without the counts of prompts."""
    table = comparison_table(f"{name}: which models differ", comparisons)
    columns = tuple(each for each in table.columns if each.key in _SHOWN)
    return BenchmarkTable(
        title=table.title,
        columns=("", *(column.label for column in columns)),
        rows=tuple((label, *(column.cell(figures) for column in columns)) for label, figures in table.rows),
        notes=table.notes,
    )


_SHOWN = ("difference", "interval", "p_adjusted", "detectable", "a_better", "equal", "b_better", "n_prompts")


def benchmarks_text(run: Run) -> Group | None:
    """The same for the terminal; None without any."""
    return plain_tables(benchmark_tables(run))


def plain_tables(tables: Sequence[BenchmarkTable]) -> Group | None:
    """Tables for the terminal; None without any."""
    drawn = []
    for each in tables:
        shown = Table(
            box=SIMPLE_HEAD,
            padding=(0, 0, 0, 1),
            title=escape_control(each.title),
            title_justify="left",
            caption=escape_control(" ".join(each.notes)) or None,
            caption_justify="left",
        )
        for place, name in enumerate(each.columns):
            shown.add_column(name, justify="right" if place else "left", overflow="fold", no_wrap=not place)
        for row in each.rows:
            shown.add_row(*map(escape_control, row))
        drawn.append(shown)
    return Group(*drawn) if drawn else None
