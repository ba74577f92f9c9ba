"""Tells a prompt's life from its record: scores, tiers and ratings are computed again, by the run's own rules.

Pairs and drop reasons are not: they are what the run wrote down when it built them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from metareward.battles import PositionWeights, Ratings, battle_matrix, fit_elo, position_weights
from metareward.pairs import PairRules, tiers
from metareward.recipe import pairs_rules
from metareward.records import from_json
from metareward.report.facts import Run
from metareward.report.lifefacts import AnswerLife, Battle, DisputeLife, Life, RatedJudgment, Side, Tiers
from metareward.report.outcomes import Outcome, Outcomes
from metareward.rundir import IterationDir
from metareward.scores import AnswerScore, answer_scores
from metareward.store import RecordStore
from metareward.types import Candidate, Dispute, PreferencePair, PromptRecord


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
