"""A run folder as frozen values, finished or not; `metareward.report.gather` reads them.

What a run can lack is optional: without an oracle there are no oracle metrics, and an unfinished iteration has no
pairs, training or evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metareward.config.schema import Recipe
from metareward.evaluation.held_out import WinRate
from metareward.generation.usage import ServerUsageTotal
from metareward.method.diagnostics import Finding, PositionStatistics
from metareward.method.elo import PositionWeights


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


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One model on the held-out prompts. ``histograms`` count single judge scores of its ``own`` and of M0's
    answers (``anchor``)."""

    model: str
    prompts: int
    seconds: float
    metrics: Mapping[str, Measure]
    histograms: Mapping[str, Mapping[float, int]]
    win_rates: tuple[WinRate, ...] = ()


@dataclass(frozen=True, slots=True)
class PairSummary:
    """``pairs/summary.json`` of one iteration: pairs built, drop reasons, parse results, bias statistics, findings."""

    iteration: int
    prompts: int
    actor_pairs: int
    judge_pairs: int
    dropped: Mapping[str, Mapping[str, int]]
    weights: PositionWeights | None = None
    position: PositionStatistics | None = None
    readings: Mapping[str, int] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
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

    @property
    def model(self) -> str:
        """The model this iteration trains."""
        return f"M{self.number}"


@dataclass(frozen=True, slots=True)
class Run:
    """A run: the recipe with all defaults, the environment it ran in, and its iterations 0..T.

    ``server_usage`` are request and token counts by model and server, ``warnings`` the warnings of the engines.
    """

    name: str
    recipe: Recipe
    environment: tuple[tuple[str, str], ...]
    iterations: tuple[Iteration, ...]
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
