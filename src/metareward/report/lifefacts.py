"""One prompt's whole life as frozen values: answers, scores, tiers, the dispute, its battles, what pairs came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from metareward.battles import PositionWeights
from metareward.pairs import PairRules
from metareward.report.outcomes import Outcome
from metareward.scores import AnswerScore
from metareward.types import Candidate, Judgment, MetaJudgment, PromptRecord, Won

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
