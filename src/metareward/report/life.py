"""One prompt's whole life as values: answers, scores, tiers, the dispute, its battles, and what pairs came of it.

Scores, tiers and ratings are computed again from the record; pairs and drop reasons are what the run wrote down.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from metareward.battles import PositionWeights, Ratings, battle_matrix, fit_elo, position_weights
from metareward.errors import UserError
from metareward.pairs import PairRules, tiers
from metareward.recipe import pairs_rules
from metareward.records import from_json
from metareward.report.facts import Run
from metareward.report.gather import gather
from metareward.report.outcomes import Outcome, Outcomes, read_outcomes
from metareward.rundir import IterationDir, RunDir
from metareward.scores import AnswerScore, answer_scores
from metareward.store import RecordStore
from metareward.types import Candidate, Dispute, Judgment, MetaJudgment, PreferencePair, PromptRecord, Won

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
    battles_MM: NDArray[np.float64]  # noqa: N815 - the suffix is the shape
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


def life_of(run: RunDir, prompt_id: str, iteration: int | None = None) -> Life:
    """The life of one prompt, in the one iteration that has it or in the one asked for.

    Raises `UserError` when there is no such prompt, naming the nearest ids.
    """
    facts = gather(run)
    numbers = [i.number for i in facts.iterations if i.generated and iteration in (None, i.number)]
    for number in numbers:
        folder = run.iteration(number)
        with RecordStore.read(folder.records) as store:
            document = store.get(prompt_id)
        if document is not None:
            return tell(facts, folder, number, from_json(document), read_outcomes(folder))
    raise UserError(_unknown(run, prompt_id, iteration, numbers))


def tell(facts: Run, folder: IterationDir, number: int, record: PromptRecord, outcomes: Outcomes | None) -> Life:
    """The life told by one record and by what the run recorded of its outcomes."""
    rules = pairs_rules(facts.recipe, number)
    actor = outcomes.actor.get(record.prompt.id) if outcomes else None
    judge = outcomes.judge.get(record.prompt.id) if outcomes else None
    scores = answer_scores(record, rules.min_valid)
    return Life(
        iteration=number,
        record=record,
        rules=rules,
        answers=tuple(_answer(record, candidate, scores, actor) for candidate in record.candidates_K),
        tiers=_tiers(scores, rules.rho),
        dispute=_dispute(facts, folder, number, record, rules, judge),
        built=outcomes is not None,
        actor=actor,
        judge=judge,
    )


def _tiers(scores: Sequence[AnswerScore], rho: float) -> Tiers | None:
    if not scores:
        return None
    best, worst = max(score.mean for score in scores), min(score.mean for score in scores)
    upper, lower = (frozenset(score.index for score in tier) for tier in tiers(scores, rho))
    return Tiers((1 - rho) * best + rho * worst, (1 - rho) * worst + rho * best, upper, lower)


def _answer(
    record: PromptRecord,
    candidate: Candidate,
    scores: Sequence[AnswerScore],
    actor: Outcome | None,
) -> AnswerLife:
    return AnswerLife(
        candidate=candidate,
        score=next((score for score in scores if score.index == candidate.index), None),
        repeats=tuple(duplicate.index for duplicate in record.duplicates if duplicate.of == candidate.index),
        side=_side(candidate.index, actor),
        disputed=record.dispute is not None and record.dispute.candidate == candidate.index,
    )


def _side(index: int, outcome: Outcome | None) -> Side | None:
    if not isinstance(outcome, PreferencePair):
        return None
    return {outcome.chosen_index: "chosen", outcome.rejected_index: "rejected"}.get(index)  # type: ignore[return-value]


def _dispute(
    facts: Run, folder: IterationDir, number: int, record: PromptRecord, rules: PairRules, judge: Outcome | None
) -> DisputeLife | None:
    dispute = record.dispute
    if dispute is None:
        return None
    weights = _weights(facts, folder, number, dispute, rules)
    battles_MM = battle_matrix(dispute, weights)
    ratings = fit_elo(battles_MM, rules.elo_prior)
    disputed = next(candidate for candidate in record.candidates_K if candidate.index == dispute.candidate)
    return DisputeLife(
        candidate=dispute.candidate,
        weights=weights,
        battles_MM=battles_MM,
        rated=tuple(_rated(disputed, dispute, ratings, judge)),
        battles=tuple(_battles(dispute)),
    )


def _weights(facts: Run, folder: IterationDir, number: int, dispute: Dispute, rules: PairRules) -> PositionWeights:
    """The weights the pairs were built with; before that, those of the records there are so far."""
    if rules.weights_scope == "answer":
        return position_weights(dispute.meta)
    summary = facts.iterations[number].summary
    if summary is not None and summary.weights is not None:
        return summary.weights
    with RecordStore.read(folder.records) as store:
        records = (from_json(document) for _, document in store.documents())
        return position_weights(meta for record in records if record.dispute for meta in record.dispute.meta)


def _rated(disputed: Candidate, dispute: Dispute, ratings: Ratings, judge: Outcome | None) -> Iterable[RatedJudgment]:
    by_index = {judgment.index: judgment for judgment in disputed.judgments_N}
    for place, index in enumerate(dispute.judgments_M):
        low, high = float(ratings.low_M[place]), float(ratings.high_M[place])
        yield RatedJudgment(by_index[index], float(ratings.values_M[place]), low, high, _side(index, judge))


def _battles(dispute: Dispute) -> Iterable[Battle]:
    shown = {(meta.first, meta.second): meta for meta in dispute.meta}
    for one, other in combinations(dispute.judgments_M, 2):
        yield Battle(one, other, shown.get((one, other)), shown.get((other, one)))


def _unknown(run: RunDir, prompt_id: str, iteration: int | None, numbers: Sequence[int]) -> str:
    """One line for a prompt that isn't there: it failed, or it is another's id, or nothing is generated at all."""
    where = f"iteration {iteration}" if iteration is not None else "any iteration"
    known: list[str] = []
    for number in numbers:
        with RecordStore.read(run.iteration(number).records) as store:
            failures = store.failures()
            known += store.keys()
        if prompt_id in failures:
            return (
                f"{run.path}: prompt {prompt_id!r} failed in iteration {number}: {failures[prompt_id]}; fix: run again"
            )
    near = difflib.get_close_matches(prompt_id, known, n=3) or sorted(known)[:3]
    hint = f"the nearest are {', '.join(map(repr, near))}" if near else "nothing is generated there yet"
    return f"{run.path}: no prompt {prompt_id!r} in {where}; {hint}"
