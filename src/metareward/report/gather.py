"""Reads a run folder into one frozen `Run`; what isn't there yet is simply absent from it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from metareward.duels import Duel
from metareward.errors import UserError
from metareward.recipe import Recipe, load_recipe
from metareward.report.facts import BenchmarkResult, Curve, Evaluation, Iteration, Measure, PairSummary, Run
from metareward.report.metrics import MAIN, PERCENT
from metareward.report.table import Cell, Row, rows
from metareward.rundir import RunDir
from metareward.runlog import seconds
from metareward.spending import spent, warnings
from metareward.store import RecordStore

T = TypeVar("T")


@dataclass(frozen=True)
class _EvaluationFile:
    """``eval/model.json`` as it lies on disk, where an empty metric may hold null."""

    model: str
    prompts: int
    seconds: float
    metrics: dict[str, dict[str, float | None] | None]
    score_histogram: dict[str, dict[float, int]]
    duels: tuple[Duel, ...] = ()


_EVALUATION = TypeAdapter(_EvaluationFile)
_BENCHMARK = TypeAdapter(BenchmarkResult)
_SUMMARY = TypeAdapter(PairSummary)
_OBJECT = TypeAdapter(dict[str, object])
_CURVES = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}


def gather(run: RunDir) -> Run:
    """Everything the report says about a run, finished or not.

    Raises `UserError` for a folder that is no run, and for a file in it that can't be read.
    """
    if not run.resolved.is_file():
        raise UserError(
            f"{run.path}: this is no run folder ({run.resolved.name} is missing); fix: name one, such as runs/NAME"
        )
    recipe = load_recipe(str(run.resolved))
    environment = read_json(run.environment, _OBJECT) or {}
    return Run(
        name=recipe.name,
        recipe=recipe,
        environment=tuple(_flat(environment)),
        iterations=tuple(_iteration(number, run, recipe) for number in range(len(recipe.iterations) + 1)),
        spendings=spent(run),
        warnings=warnings(run),
    )


def table_text(run: RunDir) -> Table:
    """The main measures M0..MT for the terminal, fit for 80 columns: means over their 95 % intervals."""
    evaluations = gather(run).evaluations
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), caption=_CAPTION, caption_justify="left")
    table.add_column("held-out prompts")
    for evaluation in evaluations:
        table.add_column(evaluation.model, justify="right", no_wrap=True)
    for row in rows(evaluations):
        if row.metric.key in MAIN:
            table.add_row(row.metric.label, *(_cell_text(row, cell) for cell in row.cells))
    return table


_CAPTION = "Below each mean its 95 % interval. Bold: apart from M0's interval."


def _cell_text(row: Row, cell: Cell | None) -> Text:
    if cell is None:
        return Text("–")
    mean = (row.metric.show(cell.measure.mean), "bold" if cell.clear else "")
    interval = row.metric.show_interval(cell.measure.low, cell.measure.high).removesuffix(PERCENT)
    return Text.assemble(mean, "\n", (interval.replace(" to ", "–"), "dim"))


def read_json(path: Path, adapter: TypeAdapter[T]) -> T | None:
    """The value in a JSON file, or None when there is no such file. Raises `UserError` for an unreadable one."""
    if not path.is_file():
        return None
    try:
        return adapter.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{path}: {where + ': ' if where else ''}{first['msg']}; fix: mend or delete the file"
        ) from error


def _iteration(number: int, run: RunDir, recipe: Recipe) -> Iteration:
    folder = run.iteration(number)
    results = (read_json(folder.evaluation / name / "result.json", _BENCHMARK) for name in recipe.benchmarks)
    return Iteration(
        number=number,
        generated=folder.records.is_file(),
        failed=_failed(folder.records),
        summary=read_json(folder.summary, _SUMMARY),
        training=_training(folder.path / "training.jsonl"),
        evaluation=_evaluation(folder.evaluation / "model.json"),
        done=folder.done.is_file(),
        seconds=sum(seconds(run, number).values()),
        benchmarks=tuple(result for result in results if result is not None),
    )


def _failed(path: Path) -> tuple[tuple[str, str], ...]:
    if not path.is_file():
        return ()
    with RecordStore.read(path) as store:
        return tuple(store.failures().items())


def _evaluation(path: Path) -> Evaluation | None:
    file = read_json(path, _EVALUATION)
    if file is None:
        return None
    measures = {key: _measure(fields or {}) for key, fields in file.metrics.items()}
    return Evaluation(
        model=file.model,
        prompts=file.prompts,
        seconds=file.seconds,
        metrics={key: measure for key, measure in measures.items() if measure is not None},
        histograms=file.score_histogram,
        duels=file.duels,
    )


def _measure(fields: Mapping[str, float | None]) -> Measure | None:
    """A metric with nothing behind it (no values, no number) is the same as an absent one."""
    mean, low, high = (fields.get(name) for name in ("mean", "low", "high"))
    n = int(fields.get("n") or 0)
    if n == 0 or mean is None or low is None or high is None or not math.isfinite(mean + low + high):
        return None
    return Measure(mean, low, high, n)


def _training(path: Path) -> dict[str, Curve]:
    """Loss, margin and accuracy by step, as far as they were logged."""
    lines = list(_lines(path))
    curves = {}
    for key, name in _CURVES.items():
        points = [(line["step"], line[key]) for line in lines if "step" in line and line.get(key) is not None]
        if points:
            curves[name] = Curve(tuple(step for step, _ in points), tuple(value for _, value in points))
    return curves


def _lines(path: Path) -> Iterator[dict[str, float]]:
    """The lines of a log that may still be growing: its last line may be torn and is then left out."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                return
            raise UserError(f"{path}:{number}: {error.msg}; fix: delete the line") from error
        yield {key: float(value) for key, value in entry.items() if isinstance(value, int | float)}


def _flat(value: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested mapping as (name, text) rows."""
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{key} ")
        else:
            yield f"{prefix}{key}", "none" if inner is None else str(inner)
