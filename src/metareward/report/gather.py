"""Reads a run folder into one frozen `Run`; files that do not exist yet are left out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from metareward.config.schema import Recipe, load_recipe
from metareward.errors import UserError
from metareward.evaluation.held_out import WinRate
from metareward.generation.usage import read_usage, read_warnings
from metareward.report.facts import BenchmarkResult, Curve, Evaluation, Iteration, Measure, PairSummary, Run
from metareward.storage.run_dir import RunDir
from metareward.storage.run_log import stage_seconds
from metareward.storage.serialization import flatten
from metareward.storage.store import RecordStore

T = TypeVar("T")


@checked_dataclass(frozen=True)
class _EvaluationFile:
    """``eval/model.json``, in which an empty metric can be null."""

    model: str
    prompts: int
    seconds: float
    metrics: dict[str, dict[str, float | None] | None]
    score_histogram: dict[str, dict[float, int]]
    win_rates: tuple[WinRate, ...] = ()


_EVALUATION = TypeAdapter(_EvaluationFile)
_BENCHMARK = TypeAdapter(BenchmarkResult)
_SUMMARY = TypeAdapter(PairSummary)
_OBJECT = TypeAdapter(dict[str, object])
_CURVES = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}


def gather(run: RunDir) -> Run:
    """The run in a folder, finished or not.

    Raises `UserError` for a folder that is no run, and for a file in it that cannot be parsed.
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
        server_usage=read_usage(run),
        warnings=read_warnings(run),
    )


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
            f"{path}: {where + ': ' if where else ''}{first['msg']}; fix: correct or delete the file"
        ) from error


def _iteration(number: int, run: RunDir, recipe: Recipe) -> Iteration:
    folder = run.iteration(number)
    results = (read_json(folder.evaluation / each.name / "result.json", _BENCHMARK) for each in recipe.benchmarks)
    return Iteration(
        number=number,
        generated=folder.records.is_file(),
        failed=_failed(folder.records),
        summary=read_json(folder.summary, _SUMMARY),
        training=_training(folder.path / "training.jsonl"),
        evaluation=_evaluation(folder.evaluation / "model.json"),
        done=folder.done.is_file(),
        seconds=sum(stage_seconds(run, number).values()),
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
        win_rates=file.win_rates,
    )


def _measure(fields: Mapping[str, float | None]) -> Measure | None:
    """None for a metric without values, and for one that is not finite."""
    mean, low, high = (fields.get(name) for name in ("mean", "low", "high"))
    n = int(fields.get("n") or 0)
    if n == 0 or mean is None or low is None or high is None or not math.isfinite(mean + low + high):
        return None
    return Measure(mean, low, high, n)


def _training(path: Path) -> dict[str, Curve]:
    """Loss, reward margin and accuracy by step, as far as they are logged."""
    lines = list(_lines(path))
    curves = {}
    for key, name in _CURVES.items():
        points = [(line["step"], line[key]) for line in lines if "step" in line and line.get(key) is not None]
        if points:
            curves[name] = Curve(tuple(step for step, _ in points), tuple(value for _, value in points))
    return curves


def _lines(path: Path) -> Iterator[dict[str, float]]:
    """The entries of a log. A last line that cannot be parsed is skipped: it may be incomplete."""
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
