"""What a run folder says, as frozen values: the report's only picture of a run, whether it is finished or not.

Nothing here demands what a run may lack: a run outside the pocket world has no oracle, an unfinished one has
iterations without pairs, training or evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from metareward.config.schema import Recipe
from metareward.evaluation.win_rates import Duel
from metareward.generation.usage import Spending
from metareward.method.diagnostics import Finding, PositionStatistics
from metareward.method.elo import PositionWeights
from metareward.method.pairs import PairRules
from metareward.method.scores import AnswerScore
from metareward.storage.pair_files import read_dropped, read_pairs
from metareward.storage.run_dir import IterationDir
from metareward.types import Candidate, Dropped, Judgment, MetaJudgment, PreferencePair, PromptRecord, Won


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


# --- How each prompt of one iteration ended: its pair, or why there is none, as the run recorded it.


Outcome = PreferencePair | Dropped


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Outcomes by prompt id, of actor pairs and of judge pairs."""

    actor: Mapping[str, Outcome]
    judge: Mapping[str, Outcome]


def read_outcomes(folder: IterationDir) -> Outcomes | None:
    """What the pair files of an iteration say; None when its pairs are not built yet."""
    if not folder.summary.is_file():
        return None
    found: list[Outcome] = [*read_dropped(folder.dropped)]
    for path in (folder.pairs("actor"), folder.pairs("judge")):
        if path.is_file():  # an iteration without judge pairs has no file of them
            found += read_pairs(path)
    return Outcomes(_of("actor", found), _of("judge", found))


def _of(kind: str, found: list[Outcome]) -> dict[str, Outcome]:
    return {outcome.prompt_id: outcome for outcome in found if outcome.kind == kind}


# --- One prompt's whole life as frozen values: answers, scores, tiers, the dispute, its battles, what pairs came of it.


Side = Literal["chosen", "rejected"]


@dataclass(frozen=True, slots=True)
class Tiers:
    """Length control (Meta-Rewarding section 2.1): the chosen answer is the shortest scored ``floor`` or more, the
    rejected one the longest scored ``ceiling`` or less. ``upper`` and ``lower`` are the answers in the two tiers."""

    floor: float
    ceiling: float
    upper: frozenset[int]
    lower: frozenset[int]


@dataclass(frozen=True, slots=True)
class AnswerLife:
    """One distinct answer. ``score`` is None when too few of its judgments can be read."""

    candidate: Candidate
    score: AnswerScore | None
    repeats: tuple[int, ...]
    side: Side | None
    disputed: bool


@dataclass(frozen=True, slots=True)
class RatedJudgment:
    """A judgment of the disputed answer with its Elo rating (natural-log units) and 95 % interval."""

    judgment: Judgment
    rating: float
    low: float
    high: float
    side: Side | None


@dataclass(frozen=True, slots=True)
class Battle:
    """Two judgments compared in both orders; ``as_first`` shows ``one`` first, ``as_second`` shows it second."""

    one: int
    other: int
    as_first: MetaJudgment | None
    as_second: MetaJudgment | None

    @property
    def outcome(self) -> str:
        """In a few words, what the two comparisons say together."""
        verdicts = [m.verdict for m in (self.as_first, self.as_second) if m is not None]
        winners = [verdict.winner for verdict in verdicts if isinstance(verdict, Won)]
        if len(winners) < 2:
            return f"{winners[0]} wins once" if winners else "no winner"
        return f"{winners[0]} wins in both orders" if winners[0] == winners[1] else "flips with the order"


@dataclass(frozen=True, slots=True)
class DisputeLife:
    """The disputed answer's judgments against each other. ``battles_MM[m, n]`` is what m won over n."""

    candidate: int
    weights: PositionWeights
    battles_MM: NDArray[np.float64]
    rated: tuple[RatedJudgment, ...]
    battles: tuple[Battle, ...]

    @property
    def ranked(self) -> tuple[RatedJudgment, ...]:
        """The judgments, highest rating first."""
        return tuple(sorted(self.rated, key=lambda rated: -rated.rating))


@dataclass(frozen=True, slots=True)
class Life:
    """Everything that happened to one prompt in one iteration.

    ``actor`` and ``judge`` are None before pairs are ``built``, and where that kind of pair was not asked for.
    """

    iteration: int
    record: PromptRecord
    rules: PairRules
    answers: tuple[AnswerLife, ...]
    tiers: Tiers | None
    dispute: DisputeLife | None
    built: bool
    actor: Outcome | None
    judge: Outcome | None

    @property
    def ranked(self) -> tuple[AnswerLife, ...]:
        """The answers, best mean score first; those without one last."""
        return tuple(sorted(self.answers, key=lambda a: (a.score is None, -a.score.mean if a.score else 0.0)))

    @property
    def model(self) -> str:
        """The model that wrote all this: the one the iteration starts from."""
        return f"M{self.iteration - 1}"
