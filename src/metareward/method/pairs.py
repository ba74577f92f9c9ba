"""From records to preference pairs, or to the reason why there is none (Meta-Rewarding sections 2.1 and 2.2).

Actor pairs take length control. With S_max and S_min the best and worst mean score of a prompt's answers, answers in
``[(1 - rho) S_max + rho S_min, S_max]`` count as equally good and the shortest of them is chosen; answers in
``[S_min, (1 - rho) S_min + rho S_max]`` count as equally bad and the longest of them is rejected. Judge pairs take the
highest and the lowest rated judgment of the disputed answer. A filter drops a pair and never looks for a substitute.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from metareward.method.elo import PositionWeights, Ratings, battle_matrix, fit_elo, position_weights
from metareward.method.judge import Rubric
from metareward.method.scores import TOLERANCE, AnswerScore, answer_scores, disputed, valid_scores
from metareward.seeds import derive, pick
from metareward.types import Candidate, Dispute, Dropped, DropReason, PreferencePair, PromptRecord, Tied, Won

# Ratings closer than this are tied: well above what the fit leaves open, well below what one battle changes.
RATING_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class PairRules:
    """How pairs are made. Lengths are in characters, and a limit of None is no limit.

    ``rho`` in [0, 1] is the width of the quality tiers; 0 is plain best against worst. ``min_valid``: valid judgments
    that an answer needs. ``position_weights_scope``: position weights come from all comparisons of the iteration or of
    one answer. ``elo_prior`` is the ridge of the ratings. ``min_battles``: readable comparisons, ties included, that a
    judge pair needs. Raises `ValueError` for a value outside its range.
    """

    rho: float = 0.0
    max_answer_chars: int | None = None
    judge_pairs: bool = True
    max_judgment_chars: int | None = None
    min_valid: int = 2
    position_weights_scope: Literal["iteration", "answer"] = "iteration"
    elo_prior: float = 0.1
    min_battles: int = 2

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 <= self.rho <= 1.0:
            raise ValueError(f"rho must lie in [0, 1], not {self.rho}")
        if not 0.0 < self.elo_prior < math.inf:
            raise ValueError(f"elo_prior must be above 0, because some judgments never lose; not {self.elo_prior}")
        if self.min_valid < 1 or self.min_battles < 1:
            raise ValueError(f"min_valid {self.min_valid} and min_battles {self.min_battles} must be 1 or more")


@dataclass(frozen=True, slots=True)
class PairSet:
    """All pairs of an iteration, what was dropped and why, and the position weights of the whole iteration."""

    actor: tuple[PreferencePair, ...]
    judge: tuple[PreferencePair, ...]
    dropped: tuple[Dropped, ...]
    weights: PositionWeights


def build_pairs(records: Iterable[PromptRecord], rules: PairRules, rubric: Rubric, seed: int) -> PairSet:
    """The pairs of ``records``, in their order: a pure function of its arguments."""
    kept = tuple(records)
    disputes = [record.dispute for record in kept if record.dispute is not None]
    weights = position_weights(meta for dispute in disputes for meta in dispute.meta)
    actor = [actor_pair(record, rules) for record in kept]
    judge = [judge_pair(record, rules, weights, rubric, seed) for record in kept] if rules.judge_pairs else []
    dropped = tuple(outcome for outcome in (*actor, *judge) if isinstance(outcome, Dropped))
    return PairSet(_pairs(actor), _pairs(judge), dropped, weights)


def _pairs(outcomes: Sequence[PreferencePair | Dropped]) -> tuple[PreferencePair, ...]:
    return tuple(outcome for outcome in outcomes if isinstance(outcome, PreferencePair))


def tiers(scores: Sequence[AnswerScore], rho: float) -> tuple[list[AnswerScore], list[AnswerScore]]:
    """The top and the bottom quality tier of ``scores`` (not empty); they can overlap when ``rho`` is 1/2 or more."""
    best, worst = max(score.mean for score in scores), min(score.mean for score in scores)
    floor = (1 - rho) * best + rho * worst - TOLERANCE
    ceiling = (1 - rho) * worst + rho * best + TOLERANCE
    return [score for score in scores if score.mean >= floor], [score for score in scores if score.mean <= ceiling]


def actor_pair(record: PromptRecord, rules: PairRules) -> PreferencePair | Dropped:
    """The shortest answer of the top tier against the longest of the bottom tier.

    Among equally long ones the lowest sample number is taken, so there is no seed. With ``rho`` of 1/2 or more the
    tiers can overlap; a pair whose chosen answer would be the rejected one, or score lower, is dropped.
    """
    scores = answer_scores(record, rules.min_valid)
    reason = _no_choice(scores, rules.min_valid)
    if reason:
        return Dropped("actor", record.prompt.id, *reason)
    top, bottom = tiers(scores, rules.rho)
    chosen = min(top, key=lambda score: (score.chars, score.index))
    rejected = min(bottom, key=lambda score: (-score.chars, score.index))
    reason = _bad_choice(chosen, rejected, rules)
    return Dropped("actor", record.prompt.id, *reason) if reason else _actor_pair(record, chosen, rejected)


def _no_choice(scores: Sequence[AnswerScore], min_valid: int) -> tuple[DropReason, str] | None:
    if len(scores) < 2:
        return "too_few_valid_answers", f"{len(scores)} answers with {min_valid} valid judgments or more, 2 are needed"
    best, worst = max(score.mean for score in scores), min(score.mean for score in scores)
    if best - worst <= TOLERANCE:
        return "all_scores_equal", f"all {len(scores)} answers have the mean score {best:g}"
    return None


def _bad_choice(chosen: AnswerScore, rejected: AnswerScore, rules: PairRules) -> tuple[DropReason, str] | None:
    if chosen.index == rejected.index:
        return "tiers_overlap", f"answer {chosen.index} would be chosen and rejected at rho {rules.rho:g}"
    if chosen.mean < rejected.mean - TOLERANCE:
        worse = f"answer {chosen.index} ({chosen.mean:g}) would be chosen over answer {rejected.index}"
        return "tiers_overlap", f"{worse} ({rejected.mean:g}) at rho {rules.rho:g}"
    if rules.max_answer_chars is not None and chosen.chars > rules.max_answer_chars:
        return "chosen_answer_too_long", f"{chosen.chars} characters, at most {rules.max_answer_chars} are allowed"
    return None


def _actor_pair(record: PromptRecord, chosen: AnswerScore, rejected: AnswerScore) -> PreferencePair:
    texts = {candidate.index: candidate.reasoning + candidate.text for candidate in record.candidates_K}
    return PreferencePair(
        kind="actor",
        prompt_id=record.prompt.id,
        prompt=record.prompt.messages,
        chosen=texts[chosen.index],
        rejected=texts[rejected.index],
        chosen_index=chosen.index,
        rejected_index=rejected.index,
        chosen_score=chosen.mean,
        rejected_score=rejected.mean,
    )


def judge_pair(
    record: PromptRecord, rules: PairRules, weights: PositionWeights, rubric: Rubric, seed: int
) -> PreferencePair | Dropped:
    """The highest against the lowest rated judgment of the disputed answer; its prompt is the judge's own question.

    Equal ratings are decided by ``seed``. ``weights`` are those of the iteration, used when the rules say so.
    """
    dispute = record.dispute
    if dispute is None:
        return Dropped("judge", record.prompt.id, *_undisputed(record, rules.min_valid))
    reason = _too_few(dispute, rules)
    if reason:
        return Dropped("judge", record.prompt.id, *reason)
    own = position_weights(dispute.meta) if rules.position_weights_scope == "answer" else weights
    ratings = fit_elo(battle_matrix(dispute, own), rules.elo_prior)
    if max(ratings.values_M) - min(ratings.values_M) <= RATING_TOLERANCE:
        detail = f"{len(dispute.judgments_M)} judgments, no one rated above another"
        return Dropped("judge", record.prompt.id, "all_ratings_equal", detail)
    high, low = _extremes(ratings, derive(seed, record.prompt.id, "judge pair"))
    pair = _judge_pair(record, dispute, rubric, (high, low), ratings)
    reason = _bad_texts(pair, rules)
    return Dropped("judge", record.prompt.id, *reason) if reason else pair


def _undisputed(record: PromptRecord, min_valid: int) -> tuple[DropReason, str]:
    """Why nothing was compared: nothing to compare, or it wasn't asked for."""
    needed = max(2, min_valid)
    if disputed(record.candidates_K, min_valid, 0) is not None:
        return "no_dispute", "no judgments of this prompt were compared"
    if any(len(valid_scores(candidate)) >= needed for candidate in record.candidates_K):
        return "no_variance", "the judgments of each answer all give the same score"
    return "too_few_judgments", f"no answer has {needed} valid judgments"


def _too_few(dispute: Dispute, rules: PairRules) -> tuple[DropReason, str] | None:
    judgments, needed = len(dispute.judgments_M), max(2, rules.min_valid)
    if judgments < needed:
        return "too_few_judgments", f"{judgments} valid judgments of answer {dispute.candidate}, {needed} are needed"
    read = sum(isinstance(meta.verdict, Won | Tied) for meta in dispute.meta)
    if read < rules.min_battles:
        return "too_few_battles", f"{read} of {len(dispute.meta)} comparisons readable, {rules.min_battles} are needed"
    return None


def _extremes(ratings: Ratings, seed: int) -> tuple[int, int]:
    """Places of the highest and of the lowest rating; ``seed`` picks among equals."""
    places = range(len(ratings.values_M))
    best, worst = max(ratings.values_M), min(ratings.values_M)
    top = [place for place in places if ratings.values_M[place] >= best - RATING_TOLERANCE]
    bottom = [place for place in places if ratings.values_M[place] <= worst + RATING_TOLERANCE]
    return pick(top, derive(seed, "highest")), pick(bottom, derive(seed, "lowest"))


def _judge_pair(
    record: PromptRecord, dispute: Dispute, rubric: Rubric, places: tuple[int, int], ratings: Ratings
) -> PreferencePair:
    answer = _candidate(record, dispute.candidate)
    texts = {judgment.index: judgment.reasoning + judgment.text for judgment in answer.judgments_N}
    chosen, rejected = (dispute.judgments_M[place] for place in places)
    return PreferencePair(
        kind="judge",
        prompt_id=record.prompt.id,
        prompt=rubric.ask(record.prompt, answer.text),
        chosen=texts[chosen],
        rejected=texts[rejected],
        chosen_index=chosen,
        rejected_index=rejected,
        chosen_score=ratings.values_M[places[0]],
        rejected_score=ratings.values_M[places[1]],
        candidate=answer.index,
    )


def _candidate(record: PromptRecord, index: int) -> Candidate:
    return next(candidate for candidate in record.candidates_K if candidate.index == index)


def _bad_texts(pair: PreferencePair, rules: PairRules) -> tuple[DropReason, str] | None:
    if pair.chosen == pair.rejected:
        return "same_judgment_text", f"judgments {pair.chosen_index} and {pair.rejected_index} have the same text"
    if rules.max_judgment_chars is not None and len(pair.chosen) > rules.max_judgment_chars:
        return (
            "chosen_judgment_too_long",
            f"{len(pair.chosen)} characters, at most {rules.max_judgment_chars} are allowed",
        )
    return None
