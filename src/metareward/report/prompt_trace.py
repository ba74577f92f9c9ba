"""The trace of one prompt: its answers, scores, tiers, meta-judge battles with Elo ratings, and pairs.

Scores, tiers and ratings are recomputed from the record with the run's settings. Pairs and drop reasons are read from
the pair files.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from metareward.config.schema import pairs_rules
from metareward.errors import UserError
from metareward.method.elo import PositionWeights, battle_matrix, fit_elo, position_weights
from metareward.method.pairs import PairRules, iteration_weights, tiers
from metareward.method.scores import AnswerScore, answer_scores
from metareward.report.facts import Run, gather
from metareward.report.labels import drop_label, format_rating
from metareward.storage.pair_files import read_dropped, read_pairs
from metareward.storage.records import find_record, read_records
from metareward.storage.run_dir import IterationDir, RunDir
from metareward.storage.store import RecordStore
from metareward.text import escape_control
from metareward.types import (
    Candidate,
    Dispute,
    Dropped,
    Judgment,
    MetaJudgment,
    PairKind,
    PreferencePair,
    PromptRecord,
    Won,
)

Side = Literal["chosen", "rejected"]
Outcome = PreferencePair | Dropped
_KINDS: tuple[PairKind, ...] = ("actor", "judge")
Outcomes = Mapping[PairKind, Mapping[str, Outcome]]
"""Outcomes of one iteration by kind of pair and prompt id: the pair, or why it was dropped."""


@dataclass(frozen=True, slots=True)
class Tiers:
    """Length control (Meta-Rewarding section 2.1): the chosen answer is the shortest scored ``floor`` or more, the
    rejected one the longest scored ``ceiling`` or less. ``upper`` and ``lower`` are the answers in the two tiers."""

    floor: float
    ceiling: float
    upper: frozenset[int]
    lower: frozenset[int]


@dataclass(frozen=True, slots=True)
class AnswerTrace:
    """One distinct answer. ``score`` is None when the answer has fewer than ``min_valid`` readable judgments."""

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
        """What the two comparisons say together, in a few words."""
        winners = self._winners
        if not winners:
            return "no winner"
        if self.flips:
            return "flips with the order"
        return f"{winners[0]} wins in {'both orders' if len(winners) == 2 else 'one order only'}"

    @property
    def flips(self) -> bool:
        """Whether both orders have a winner, but not the same."""
        return len(set(self._winners)) == 2

    @property
    def _winners(self) -> list[int]:
        verdicts = [m.verdict for m in (self.as_first, self.as_second) if m is not None]
        return [verdict.winner for verdict in verdicts if isinstance(verdict, Won)]


@dataclass(frozen=True, slots=True)
class DisputeTrace:
    """The battles between the judgments of the disputed answer. ``battles_MM[m, n]`` is what m won over n."""

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
class PromptTrace:
    """Everything generated for one prompt in one iteration, and the pairs built from it.

    ``actor`` and ``judge`` are None before pairs are ``built``; ``judge`` is also None where the iteration builds no
    judge pairs.
    """

    iteration: int
    record: PromptRecord
    rules: PairRules
    answers: tuple[AnswerTrace, ...]
    tiers: Tiers | None
    dispute: DisputeTrace | None
    built: bool
    actor: Outcome | None
    judge: Outcome | None

    @property
    def ranked(self) -> tuple[AnswerTrace, ...]:
        """The answers, best mean score first; those without one last."""
        return tuple(sorted(self.answers, key=lambda a: (a.score is None, -a.score.mean if a.score else 0.0)))

    @property
    def model(self) -> str:
        """The model that generated everything: the one the iteration starts from."""
        return f"M{self.iteration - 1}"

    def outcome_text(self, outcome: Outcome | None) -> str:
        """The pair with its scores, or why there is none."""
        if outcome is None:
            return "none, this iteration builds no judge pairs" if self.built else "pairs are not built yet"
        if isinstance(outcome, Dropped):
            return f"none, {drop_label(outcome.reason)} ({outcome.detail})"
        sides = f"{outcome.chosen_index} chosen over {outcome.rejected_index}"
        if outcome.kind == "actor":
            return f"answer {sides}, mean score {outcome.chosen_score:.2f} against {outcome.rejected_score:.2f}"
        elo = f"Elo {format_rating(outcome.chosen_score)} against {format_rating(outcome.rejected_score)}"
        return f"judgment {sides} of answer {outcome.candidate}, {elo}"

    @property
    def no_dispute_text(self) -> str:
        """Why the meta-judge compared no judgments of this prompt."""
        if not self.rules.judge_pairs:
            return "this iteration does not run the meta-judge"
        if isinstance(self.judge, Dropped):
            apart = self.judge.reason == "no_dispute"
            return "it was annotated without the meta-judge" if apart else drop_label(self.judge.reason)
        return "no answer has enough readable judgments with different scores"


def find_trace(run: RunDir, prompt_id: str, iteration: int | None = None) -> PromptTrace:
    """The trace of one prompt, in the first iteration that has it or in ``iteration``.

    Raises `UserError` when there is no such prompt, naming the nearest ids.
    """
    facts = gather(run)
    known: list[str] = []
    failure = None
    for number in (i.number for i in facts.iterations if i.generated and iteration in (None, i.number)):
        with RecordStore.read(run.iteration(number).records) as store:
            record = find_record(store, prompt_id)
            if record is not None:
                return trace(run, facts, number, record, read_outcomes(run.iteration(number)))
            known += store.keys()
            error = store.failures().get(prompt_id)
        if error is not None and failure is None:
            failure = f"prompt {prompt_id!r} failed in iteration {number}: {error}; fix: run again"
    where = f"iteration {iteration}" if iteration is not None else "any iteration"
    near = difflib.get_close_matches(prompt_id, known, n=3) or sorted(known)[:3]
    hint = f"the nearest are {', '.join(map(repr, near))}" if near else "nothing is generated there yet"
    raise UserError(escape_control(f"{run.path}: {failure or f'no prompt {prompt_id!r} in {where}; {hint}'}"))


def read_outcomes(folder: IterationDir) -> Outcomes | None:
    """The pair files of an iteration; None when its pairs are not built yet."""
    if not folder.summary.is_file():
        return None
    found: list[Outcome] = [*read_dropped(folder.dropped)]
    for path in map(folder.pairs, _KINDS):
        if path.is_file():  # an iteration without judge pairs has no file of them
            found += read_pairs(path)
    return {kind: {outcome.prompt_id: outcome for outcome in found if outcome.kind == kind} for kind in _KINDS}


def trace(run: RunDir, facts: Run, number: int, record: PromptRecord, outcomes: Outcomes | None) -> PromptTrace:
    """The trace of ``record`` of iteration ``number``."""
    rules = pairs_rules(facts.recipe, number)
    actor, judge = (outcomes[kind].get(record.prompt.id) if outcomes else None for kind in _KINDS)
    weights = None if record.dispute is None else _weights(run, facts, number, record.dispute, rules)
    return trace_by_rules(number, record, rules, weights, outcomes is not None, actor, judge)


def trace_by_rules(
    number: int,
    record: PromptRecord,
    rules: PairRules,
    weights: PositionWeights | None,
    built: bool,
    actor: Outcome | None,
    judge: Outcome | None,
) -> PromptTrace:
    """The trace of ``record`` with what was found elsewhere: ``weights`` of its battles, None without a dispute."""
    dispute = record.dispute
    scores = {score.index: score for score in answer_scores(record, rules.min_valid)}
    answers = tuple(
        AnswerTrace(
            candidate=candidate,
            score=scores.get(candidate.index),
            repeats=tuple(duplicate.index for duplicate in record.duplicates if duplicate.of == candidate.index),
            side=_side(candidate.index, actor),
            disputed=dispute is not None and dispute.candidate == candidate.index,
        )
        for candidate in record.candidates_K
    )
    edges = None
    if scores:
        means = [score.mean for score in scores.values()]
        best, worst, rho = max(means), min(means), rules.rho
        upper, lower = (frozenset(score.index for score in tier) for tier in tiers(tuple(scores.values()), rho))
        edges = Tiers((1 - rho) * best + rho * worst, (1 - rho) * worst + rho * best, upper, lower)
    battled = None if dispute is None or weights is None else _dispute(record, dispute, weights, rules, judge)
    return PromptTrace(number, record, rules, answers, edges, battled, built, actor, judge)


def _side(index: int, outcome: Outcome | None) -> Side | None:
    if not isinstance(outcome, PreferencePair):
        return None
    return "chosen" if index == outcome.chosen_index else "rejected" if index == outcome.rejected_index else None


def _weights(run: RunDir, facts: Run, number: int, dispute: Dispute, rules: PairRules) -> PositionWeights:
    """The weights the pairs were built with; before that, those of the records there are so far."""
    if rules.position_weights_scope == "answer":
        return position_weights(dispute.meta)
    summary = facts.iterations[number].summary
    if summary is not None and summary.weights is not None:
        return summary.weights
    with RecordStore.read(run.iteration(number).records) as store:
        return iteration_weights(read_records(store))


def _dispute(
    record: PromptRecord, dispute: Dispute, weights: PositionWeights, rules: PairRules, judge: Outcome | None
) -> DisputeTrace:
    battles_MM = battle_matrix(dispute, weights)
    ratings = fit_elo(battles_MM, rules.elo_prior)
    disputed = next(candidate for candidate in record.candidates_K if candidate.index == dispute.candidate)
    by_index = {judgment.index: judgment for judgment in disputed.judgments_N}
    estimates = zip(dispute.judgments_M, ratings.values_M, ratings.low_M, ratings.high_M, strict=True)
    rated = tuple(
        RatedJudgment(by_index[index], float(rating), float(low), float(high), _side(index, judge))
        for index, rating, low, high in estimates
    )
    by_order = {(meta.first, meta.second): meta for meta in dispute.meta}
    battles = tuple(
        Battle(one, other, by_order.get((one, other)), by_order.get((other, one)))
        for one, other in combinations(dispute.judgments_M, 2)
    )
    return DisputeTrace(dispute.candidate, weights, battles_MM, rated, battles)
