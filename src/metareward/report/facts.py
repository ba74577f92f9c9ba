"""What a run folder says, as frozen values: the report's only picture of a run, whether it is finished or not.

Nothing here demands what a run may lack: a run outside the pocket world has no oracle, an unfinished one has
iterations without pairs, training or evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from metareward.battles import PositionWeights
from metareward.duels import Duel
from metareward.monitors import Finding, PositionStatistics
from metareward.recipe import Recipe
from metareward.spending import Spending


@dataclass(frozen=True, slots=True)
class Measure:
    """A mean with its 95 % interval over ``n`` values."""

    mean: float
    low: float
    high: float
    n: int

    def apart_from(self, other: Measure) -> bool:
        """Whether the two 95 % intervals share no point. The report calls nothing else a change."""
        return self.low > other.high or self.high < other.low


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One model on the held-out prompts. ``histograms`` count single scores, of ``own`` and of ``anchor`` answers."""

    model: str
    prompts: int
    seconds: float
    metrics: Mapping[str, Measure]
    histograms: Mapping[str, Mapping[float, int]]
    duels: tuple[Duel, ...] = ()


@dataclass(frozen=True, slots=True)
class PairSummary:
    """What became of one iteration's prompts: pairs made, pairs dropped and why, and what the monitors saw."""

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
    """One quantity of a training, logged at some steps. Values may be infinite or not a number."""

    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """One of the recipe's benchmarks of one model: ``eval/NAME/result.json``.

    ``by_rubric``: the judge graded by the run's rubric, not by the benchmark's prompt. ``results`` are the benchmark's.
    """

    benchmark: str
    kind: Literal["alpaca", "arena", "mt-bench", "judge"]
    model: str
    against: str | None
    judge: str
    by_rubric: bool
    results: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Iteration:
    """Iteration ``number``: it starts from model M(number-1) and makes M(number). Iteration 0 only measures M0.

    ``failed`` are the prompts without a record, each with its error line. ``seconds`` is the time its stages took
    so far.
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
        """The model this iteration makes."""
        return f"M{self.number}"


@dataclass(frozen=True, slots=True)
class Run:
    """A whole run: the recipe with every default filled in, where it ran, and its iterations 0..T.

    ``spendings`` are what servers were asked for, ``warnings`` what the engines warned of.
    """

    name: str
    recipe: Recipe
    environment: tuple[tuple[str, str], ...]
    iterations: tuple[Iteration, ...]
    spendings: tuple[Spending, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """The models measured so far, in order."""
        return tuple(i.evaluation for i in self.iterations if i.evaluation is not None)

    @property
    def summaries(self) -> tuple[PairSummary, ...]:
        """The iterations whose pairs are built, in order."""
        return tuple(i.summary for i in self.iterations if i.summary is not None)
