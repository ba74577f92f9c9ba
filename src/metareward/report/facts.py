"""A run folder as frozen values, finished or not.

What a run can lack is optional: without an oracle there are no oracle metrics, and an unfinished iteration has no
pairs, training or evaluation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from metareward.config.schema import Recipe, load_recipe
from metareward.errors import UserError
from metareward.evaluation.held_out import WinRate
from metareward.evaluation.judge_quality.check import JudgeCheck
from metareward.generation.usage import ServerUsageTotal, read_usage, read_warnings
from metareward.method.diagnostics import PositionStatistics
from metareward.method.elo import PositionWeights
from metareward.method.gates import GATES
from metareward.method.health_checks import HealthCheck
from metareward.method.judge_health import Figure
from metareward.storage.run_dir import RunDir
from metareward.storage.run_log import stage_seconds
from metareward.storage.serialization import flatten
from metareward.storage.store import RecordStore

T = TypeVar("T")
INDEPENDENT = (
    "independent_score",
    "independent_exact",
    "independent_rank_correlation",
    "independent_disattenuated",
    "independent_self_agreement",
)


@dataclass(frozen=True, slots=True)
class Measure:
    """A mean with its 95 % interval over ``n`` values."""

    mean: float
    low: float
    high: float
    n: int

    def apart_from(self, other: Measure) -> bool:
        """Whether the two 95 % intervals do not overlap. Only then does the report speak of a change."""
        return self.low > other.high or self.high < other.low

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero: a clear difference."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One model on the held-out prompts. ``histograms`` count single judge scores of its ``own`` and of M0's
    answers (``anchor``); ``differences`` are its answers' metrics minus M0's, paired by prompt."""

    model: str
    prompts: int
    seconds: float
    metrics: dict[str, Measure]
    histograms: Mapping[str, Mapping[float, int]]
    win_rates: tuple[WinRate, ...] = ()
    differences: Mapping[str, Measure] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PairSummary:
    """``pairs/summary.json`` of one iteration: pairs built, drop reasons, outcomes of reading, bias statistics."""

    iteration: int
    prompts: int
    actor_pairs: int
    judge_pairs: int
    dropped: Mapping[str, Mapping[str, int]]
    weights: PositionWeights | None = None
    position: PositionStatistics | None = None
    readings: Mapping[str, int] = field(default_factory=dict)
    chosen_chars: float | None = None
    rejected_chars: float | None = None
    answer_chars: float | None = None
    judgment_chars: float | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """One training metric by optimizer step. Values may be infinite or NaN."""

    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """One of the recipe's benchmarks of one model: ``eval/NAME/result.json``.

    ``by_rubric``: the judge graded by the run's rubric, not by the benchmark's prompt. ``results`` are the benchmark's.
    """

    benchmark: str
    kind: str
    model: str
    against: str | None
    judge: str | None
    by_rubric: bool
    results: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class PendingBenchmark:
    """A benchmark whose judge could not be asked for all that one model's result needs, and why."""

    benchmark: str
    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class Iteration:
    """Iteration ``number``: it starts from model M(number-1) and trains M(number). Iteration 0 only measures M0.

    ``failed`` are (prompt id, error) of the prompts without a record. ``seconds`` is the time of its stages so far.
    """

    number: int
    generated: bool
    failed: tuple[tuple[str, str], ...]
    summary: PairSummary | None
    training: Mapping[str, Curve]
    evaluation: Evaluation | None
    done: bool
    seconds: float
    benchmarks: tuple[BenchmarkResult, ...] = ()
    pending: tuple[PendingBenchmark, ...] = ()

    @property
    def model(self) -> str:
        """The model this iteration trains."""
        return f"M{self.number}"


@dataclass(frozen=True, slots=True)
class Run:
    """A run: the recipe with all defaults, the environment it ran in, and its iterations 0..T.

    ``health`` are the results of the gates on judge health, ``judge_check`` the judge on labelled pairs before
    iteration 1 (None if the recipe asks for no check), ``server_usage`` request and token counts by model and
    server, ``warnings`` the warnings of the engines.
    """

    name: str
    recipe: Recipe
    environment: tuple[tuple[str, str], ...]
    iterations: tuple[Iteration, ...]
    health: tuple[HealthCheck, ...] = ()
    judge_check: JudgeCheck | None = None
    server_usage: tuple[ServerUsageTotal, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """The models evaluated so far, in order."""
        return tuple(i.evaluation for i in self.iterations if i.evaluation is not None)

    @property
    def summaries(self) -> tuple[PairSummary, ...]:
        """The iterations whose pairs are built, in order."""
        return tuple(i.summary for i in self.iterations if i.summary is not None)


@checked_dataclass(frozen=True)
class _EvaluationFile:
    """``eval/model.json``, in which an empty metric can be null."""

    model: str
    prompts: int
    seconds: float
    metrics: dict[str, dict[str, float | None] | None]
    score_histogram: dict[str, dict[float, int]]
    win_rates: tuple[WinRate, ...] = ()
    differences: dict[str, dict[str, float | None] | None] = field(default_factory=dict)


@checked_dataclass(frozen=True)
class _FiguresFile:
    """The part of ``eval/model.json`` or ``pairs/summary.json`` that is about judge health."""

    judge_health: dict[str, Figure] = field(default_factory=dict)


_EVALUATION = TypeAdapter(_EvaluationFile)
_BENCHMARK = TypeAdapter(BenchmarkResult)
_PENDING = TypeAdapter(PendingBenchmark)
_SUMMARY = TypeAdapter(PairSummary)
_HEALTH = TypeAdapter(tuple[HealthCheck, ...])
_JUDGE_CHECK = TypeAdapter(JudgeCheck)
_FIGURES = TypeAdapter(_FiguresFile)
_OBJECT = TypeAdapter(dict[str, object])
_CURVES = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}


def gather(run: RunDir) -> Run:
    """The run in a folder, finished or not.

    Raises `UserError` for a folder that is no run, and for a file in it that cannot be parsed.
    """
    run.require()
    recipe = load_recipe(str(run.resolved))
    environment = read_json(run.environment, _OBJECT) or {}
    return Run(
        name=recipe.name,
        recipe=recipe,
        environment=setting_rows(environment, " "),
        iterations=tuple(_iteration(number, run, recipe) for number in range(len(recipe.iterations) + 1)),
        health=read_health(run),
        judge_check=read_judge_check(run),
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


def read_figures(path: Path) -> dict[str, Figure]:
    """The figures of judge health in ``eval/model.json`` or ``pairs/summary.json``; empty without the file."""
    file = read_json(path, _FIGURES)
    return file.judge_health if file is not None else {}


def evaluated_digest(run: RunDir, t: int) -> str | None:
    """The digest of M_t's files when it was evaluated; None if it wasn't."""
    path = run.iteration(t).evaluation / "records.sqlite"
    if not path.is_file():
        return None
    with RecordStore.read(path) as store:
        return str(store.field("model"))


def read_health(run: RunDir) -> tuple[HealthCheck, ...]:
    """The results of the gates so far, without those of gates that no longer exist."""
    return tuple(
        replace(check, results=tuple(each for each in check.results if each.name in GATES))
        for check in read_json(run.judge_health, _HEALTH) or ()
    )


def read_judge_check(run: RunDir) -> JudgeCheck | None:
    """The judge on labelled pairs before iteration 1; None if it wasn't checked."""
    return read_json(run.judge_check, _JUDGE_CHECK)


def _iteration(number: int, run: RunDir, recipe: Recipe) -> Iteration:
    folder = run.iteration(number)
    generated = folder.records.is_file()
    failed: dict[str, str] = {}
    if generated:
        with RecordStore.read(folder.records, immutable=True) as store:
            failed = store.failures()
    measured = [folder.evaluation / each.name for each in recipe.benchmarks]
    results = tuple(r for each in measured if (r := read_json(each / "result.json", _BENCHMARK)) is not None)
    pending = (read_json(each / "pending.json", _PENDING) for each in measured)
    evaluation = _evaluation(folder.evaluation / "model.json")
    return Iteration(
        number=number,
        generated=generated,
        failed=tuple(failed.items()),
        summary=read_json(folder.summary, _SUMMARY),
        training=_training(folder.path / "training.jsonl"),
        evaluation=evaluation and replace(evaluation, metrics=evaluation.metrics | _independent(recipe, results)),
        done=folder.done.is_file(),
        seconds=sum(stage_seconds(run, number).values()),
        benchmarks=results,
        pending=tuple(each for each in pending if each is not None),
    )


def _independent(recipe: Recipe, results: Sequence[BenchmarkResult]) -> dict[str, Measure]:
    """The metrics of the recipe's first independent judge, as metrics of the model."""
    first = next((each.name for each in recipe.benchmarks if each.kind == "independent_judge"), None)
    found = next((each.results for each in results if each.benchmark == first), ())
    return {
        f"independent_{name}": Measure(each["mean"], each["low"], each["high"], each["n"])
        for figures in found
        for name, each in figures["metrics"].items()
        if f"independent_{name}" in INDEPENDENT
    }


def _evaluation(path: Path) -> Evaluation | None:
    """The evaluation in a file, without metrics that have no values or are not finite."""
    file = read_json(path, _EVALUATION)
    if file is None:
        return None
    metrics, differences = _measures(file.metrics), _measures(file.differences)
    return Evaluation(
        file.model, file.prompts, file.seconds, metrics, file.score_histogram, file.win_rates, differences
    )


def _measures(found: Mapping[str, Mapping[str, float | None] | None]) -> dict[str, Measure]:
    """Those with values, all of them finite."""
    measures = {}
    for key, fields in found.items():
        mean, low, high, n = ((fields or {}).get(name) for name in ("mean", "low", "high", "n"))
        if mean is None or low is None or high is None or not math.isfinite(mean + low + high) or not int(n or 0):
            continue
        measures[key] = Measure(mean, low, high, int(n or 0))
    return measures


def _training(path: Path) -> dict[str, Curve]:
    """Loss, reward margin and accuracy by step, as far as they are logged.

    A last line that cannot be parsed is skipped: it may be incomplete.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise UserError(f"{path}:{number}: {error.msg}; fix: delete the line") from error
        entries.append({key: float(value) for key, value in entry.items() if isinstance(value, int | float)})
    curves = {}
    for key, name in _CURVES.items():
        points = [(entry["step"], entry[key]) for entry in entries if "step" in entry and key in entry]
        if points:
            steps, values = zip(*points, strict=True)
            curves[name] = Curve(steps, values)
    return curves


def setting_rows(settings: Mapping[str, object], separator: str = ".") -> tuple[tuple[str, str], ...]:
    """Nested settings as (name, text) rows of a table."""
    flat = flatten(settings, separator)
    return tuple((name, "none" if value is None else str(value)) for name, value in flat.items())
