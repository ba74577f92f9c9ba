"""Reads a run folder into one frozen `Run`; what isn't there yet is simply absent from it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from metareward.config.schema import Recipe, load_recipe
from metareward.errors import UserError
from metareward.evaluation.win_rates import Duel
from metareward.generation.usage import spent, warnings
from metareward.report.facts import BenchmarkResult, Curve, Evaluation, Iteration, Measure, PairSummary, Run
from metareward.report.labels import drop_words
from metareward.report.metrics_table import MAIN, PERCENT, Cell, Row, rows
from metareward.storage.run_dir import RunDir
from metareward.storage.run_log import seconds
from metareward.storage.serialization import flatten
from metareward.storage.store import RecordStore

T = TypeVar("T")


@checked_dataclass(frozen=True)
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
        environment=setting_rows(environment, " "),
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


def setting_rows(settings: Mapping[str, object], separator: str = ".") -> tuple[tuple[str, str], ...]:
    """Nested settings as (name, text) rows of a table."""
    flat = flatten(settings, separator)
    return tuple((name, "none" if value is None else str(value)) for name, value in flat.items())


# --- What became of an iteration's prompts: stacked bars of pairs made and of the reasons why there was none.


_KINDS = (("actor", "Actor pairs"), ("judge", "Judge pairs"))
_SHADES = 6


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a bar. ``shade`` 0 is a pair; every reason keeps its shade through all bars."""

    words: str
    count: int
    percent: float
    shade: int


@dataclass(frozen=True, slots=True)
class Bar:
    """One kind of pair in one iteration; its segments add up to all prompts."""

    iteration: int
    label: str
    made: int
    prompts: int
    segments: tuple[Segment, ...]


def bars(summaries: Sequence[PairSummary]) -> tuple[Bar, ...]:
    """Two bars an iteration; none for judge pairs where none were asked for."""
    shades = _shades(summaries)
    return tuple(bar for summary in summaries for bar in _bars(summary, shades))


def _bars(summary: PairSummary, shades: dict[str, int]) -> Iterator[Bar]:
    for kind, label in _KINDS:
        made = summary.actor_pairs if kind == "actor" else summary.judge_pairs
        dropped = summary.dropped.get(kind, {})
        if made or dropped:
            segments = tuple(_segments(made, dropped, summary.prompts, shades))
            yield Bar(summary.iteration, label, made, summary.prompts, segments)


def _segments(made: int, dropped: Mapping[str, int], prompts: int, shades: dict[str, int]) -> Iterator[Segment]:
    counts = Counter(dropped)
    total = max(prompts, made + counts.total(), 1)
    yield Segment("pair", made, 100 * made / total, 0)
    for reason in sorted(counts, key=lambda reason: shades[reason]):
        yield Segment(drop_words(reason), counts[reason], 100 * counts[reason] / total, shades[reason])
    lost = total - made - counts.total()
    if lost:
        yield Segment("prompt failed", lost, 100 * lost / total, _SHADES)


def _shades(summaries: Sequence[PairSummary]) -> dict[str, int]:
    """The commonest reasons get a shade of their own, the rest share the last."""
    totals: Counter[str] = Counter()
    for summary in summaries:
        for reasons in summary.dropped.values():
            totals.update(reasons)
    ordered = sorted(totals, key=lambda reason: (-totals[reason], reason))
    return {reason: min(place, _SHADES) for place, reason in enumerate(ordered, start=1)}
