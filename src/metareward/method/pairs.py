"""Preference pairs from records, or the reason why a prompt gives none (Meta-Rewarding sections 2.1 and 2.2).

Actor pairs have length control. With S_max and S_min the best and worst score of a prompt's answers, the shortest
answer in ``[(1 - rho) S_max + rho S_min, S_max]`` is chosen and the longest in ``[S_min, (1 - rho) S_min + rho S_max]``
is rejected. With rho 0 length control is off, and `PairRules.on_tie` decides among equal scores. A judge pair has the
highest and the lowest rated judgment of the disputed answer. A filter drops the pair and never substitutes another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from metareward.method.elo import PositionWeights, battle_matrix, fit_elo, position_weights
from metareward.method.judge import Rubric
from metareward.method.scores import TOLERANCE, AnswerScore, answer_scores, disputed, valid_scores
from metareward.seeds import derive, pick
from metareward.types import Dropped, DropReason, PairKind, PreferencePair, PromptRecord, Tied, Won

OnTie = Literal["shortest", "random", "lowest_variance"]

# Ratings closer than this are tied: far above the solver's tolerance, far below the effect of one battle.
RATING_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class PairRules:
    """How pairs are made. Lengths are in characters; None means no limit.

    ``rho`` in [0, 1] is the width of the quality tiers; 0 is best against worst. ``on_tie`` decides among equal scores
    at rho 0: the ``shortest`` of the best answers and the longest of the worst, as the tiers do with rho above 0; a
    ``random`` one of each, by the run's seed and the prompt's id; or the one whose judgments agree most
    (``lowest_variance``, as in NeMo-Aligner; equal variances: a random one). With ``mask_truncated_completions`` an
    answer that the token limit cut off is in no actor pair. ``min_margin``: by how many standard errors of their
    difference the two scores of an actor pair must differ (`AnswerScore.uncertainty`); 0: by any. ``min_valid``: valid
    judgments that an answer needs. ``position_weights_scope``: whether position weights come from all comparisons of
    the iteration or of the one answer. ``elo_prior``: the ridge penalty of the ratings. ``min_battles``: parsed
    comparisons, ties included, that a judge pair needs. Raises `ValueError` for a value outside its range.
    """

    rho: float = 0.0
    on_tie: OnTie = "shortest"
    mask_truncated_completions: bool = True
    min_margin: float = 0.0
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
        if not 0.0 <= self.min_margin < math.inf:
            raise ValueError(f"min_margin must be 0 or more, not {self.min_margin}")
        if self.min_valid < 1 or self.min_battles < 1:
            raise ValueError(f"min_valid {self.min_valid} and min_battles {self.min_battles} must be 1 or more")


def build_pairs(
    records: Iterable[PromptRecord], rules: PairRules, rubric: Rubric | None = None, seed: int = 0
) -> tuple[tuple[PreferencePair, ...], tuple[Dropped, ...]]:
    """``(pairs, dropped)`` of an iteration's ``records``: actor before judge pairs, each in the order of the records.

    Each record gives one pair or one `Dropped` of each kind. ``rubric`` must be the one that the judgments were made
    with (default: the packaged ``judge``), because the prompt of a judge pair is the judge's prompt. ``seed``, the
    run's, breaks ties between scores and between ratings. The result depends on the arguments only.
    """
    all_records = tuple(records)
    outcomes = [actor_pair(record, rules, seed) for record in all_records]
    if rules.judge_pairs:
        weights, rubric = iteration_weights(all_records), rubric or Rubric.load("judge")
        outcomes += [judge_pair(record, rules, weights, rubric, seed) for record in all_records]
    pairs = tuple(outcome for outcome in outcomes if isinstance(outcome, PreferencePair))
    return pairs, tuple(outcome for outcome in outcomes if isinstance(outcome, Dropped))


def of_kind(pairs: Iterable[PreferencePair], kind: PairKind) -> tuple[PreferencePair, ...]:
    """The ``pairs`` of one kind, in their order."""
    return tuple(pair for pair in pairs if pair.kind == kind)


def iteration_weights(records: Iterable[PromptRecord]) -> PositionWeights:
    """The position weights from all comparisons in ``records``."""
    disputes = (record.dispute for record in records if record.dispute is not None)
    return position_weights(meta for dispute in disputes for meta in dispute.meta)


def tiers(scores: Sequence[AnswerScore], rho: float) -> tuple[list[AnswerScore], list[AnswerScore]]:
    """The top and the bottom quality tier of ``scores`` (not empty); they can overlap when ``rho`` is 1/2 or more."""
    best, worst = max(score.mean for score in scores), min(score.mean for score in scores)
    floor = (1 - rho) * best + rho * worst - TOLERANCE
    ceiling = (1 - rho) * worst + rho * best + TOLERANCE
    return [score for score in scores if score.mean >= floor], [score for score in scores if score.mean <= ceiling]


def actor_pair(record: PromptRecord, rules: PairRules, seed: int = 0) -> PreferencePair | Dropped:
    """The shortest answer of the top tier against the longest of the bottom tier; `PairRules.on_tie` at rho 0.

    ``seed``, the run's, decides where ``on_tie`` leaves it to chance; the lowest index decides between equal lengths.
    With ``rho`` of 1/2 or more the tiers can overlap: the pair is dropped when the chosen answer is also the rejected
    one, or has a lower score.
    """
    drop = partial(Dropped, "actor", record.prompt.id)
    scores = _complete_answers(record, rules)
    if isinstance(scores, Dropped):
        return scores
    best, worst = max(score.mean for score in scores), min(score.mean for score in scores)
    if best - worst <= TOLERANCE:
        return drop("all_scores_equal", f"all {len(scores)} answers have the mean score {best:g}")
    top, bottom = tiers(scores, rules.rho)
    if rules.rho > 0 or rules.on_tie == "shortest":
        chosen = min(top, key=lambda score: (score.chars, score.index))
        rejected = min(bottom, key=lambda score: (-score.chars, score.index))
    else:
        seed = derive(seed, record.prompt.id, "actor pair")
        chosen = _one_of_equals(top, rules.on_tie, derive(seed, "chosen"))
        rejected = _one_of_equals(bottom, rules.on_tie, derive(seed, "rejected"))
    if chosen.index == rejected.index:
        return drop("tiers_overlap", f"answer {chosen.index} would be chosen and rejected at rho {rules.rho:g}")
    if chosen.mean < rejected.mean - TOLERANCE:
        worse = f"answer {chosen.index} ({chosen.mean:g}) would be chosen over answer {rejected.index}"
        return drop("tiers_overlap", f"{worse} ({rejected.mean:g}) at rho {rules.rho:g}")
    if (doubt := _doubt(chosen, rejected, rules.min_margin)) is not None:
        return drop("margin_too_small", doubt)
    if rules.max_answer_chars is not None and chosen.chars > rules.max_answer_chars:
        detail = f"{chosen.chars} characters, at most {rules.max_answer_chars} are allowed"
        return drop("chosen_answer_too_long", detail)
    texts = {candidate.index: candidate.reasoning + candidate.text for candidate in record.candidates_K}
    finish = {candidate.index: candidate.finish for candidate in record.candidates_K}
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
        chosen_finish=finish[chosen.index],
        rejected_finish=finish[rejected.index],
    )


def _doubt(chosen: AnswerScore, rejected: AnswerScore, min_margin: float) -> str | None:
    """Why the two scores aren't told apart with ``min_margin``; None if they are."""
    if min_margin == 0:
        return None
    lead, sides = chosen.mean - rejected.mean, (chosen.uncertainty, rejected.uncertainty)
    known = [each for each in sides if each is not None]
    if len(known) < len(sides):
        return "it isn't known how sure the judge is of both scores"
    error = math.hypot(*known)
    if lead >= min_margin * error:
        return None
    return f"the scores differ by {lead:.3g} with a standard error of {error:.3g}; {min_margin:g} times that is needed"


def _complete_answers(record: PromptRecord, rules: PairRules) -> tuple[AnswerScore, ...] | Dropped:
    """The scores of the answers that a pair may have, two or more, or why there is no pair.

    Trained on as if it were complete, a cut-off answer would teach the model to end its turn anywhere.
    """
    scores, needed = answer_scores(record, rules.min_valid), rules.min_valid
    cut_off = {each.index for each in record.candidates_K if each.finish == "length"}
    complete = tuple(score for score in scores if score.index not in cut_off)
    drop = partial(Dropped, "actor", record.prompt.id)
    if len(scores) < 2:
        detail = f"{len(scores)} answers with {needed} valid judgments or more, 2 are needed"
        return drop("too_few_valid_answers", detail)
    if not rules.mask_truncated_completions:
        return scores
    if len(complete) < 2:
        cut = len(scores) - len(complete)
        return drop("answers_truncated", f"{cut} of {len(scores)} scored answers are cut off, 2 whole ones are needed")
    return complete


def _one_of_equals(scores: Sequence[AnswerScore], on_tie: OnTie, seed: int) -> AnswerScore:
    """One of answers with equal ``scores``, whatever their lengths; an unknown variance counts as the largest."""
    ordered = sorted(scores, key=lambda score: score.index)
    if on_tie == "lowest_variance":
        spread = [math.inf if score.variance is None else score.variance for score in ordered]
        least = min(spread) + TOLERANCE
        ordered = [score for score, variance in zip(ordered, spread, strict=True) if variance <= least]
    return pick(ordered, seed)


def judge_pair(
    record: PromptRecord, rules: PairRules, weights: PositionWeights, rubric: Rubric, seed: int
) -> PreferencePair | Dropped:
    """The highest against the lowest rated judgment of the disputed answer; the prompt is the judge's prompt.

    ``seed`` breaks ties. ``weights`` are the iteration's, used if ``rules.position_weights_scope`` is ``iteration``.
    """
    dispute, needed = record.dispute, max(2, rules.min_valid)
    drop = partial(Dropped, "judge", record.prompt.id)
    if dispute is None:
        return drop(*_no_dispute(record, rules.min_valid))
    judgments = dispute.judgments_M
    if len(judgments) < needed:
        detail = f"{len(judgments)} valid judgments of answer {dispute.candidate}, {needed} are needed"
        return drop("too_few_judgments", detail)
    parsed = sum(isinstance(meta.verdict, Won | Tied) for meta in dispute.meta)
    if parsed < rules.min_battles:
        detail = f"{parsed} of {len(dispute.meta)} comparisons readable, {rules.min_battles} are needed"
        return drop("too_few_battles", detail)
    own = position_weights(dispute.meta) if rules.position_weights_scope == "answer" else weights
    ratings = fit_elo(battle_matrix(dispute, own), rules.elo_prior).values_M
    best, worst = max(ratings), min(ratings)
    if best - worst <= RATING_TOLERANCE:
        return drop("all_ratings_equal", f"{len(judgments)} judgments, no one rated above another")
    seed = derive(seed, record.prompt.id, "judge pair")
    top = [at for at, rating in enumerate(ratings) if rating >= best - RATING_TOLERANCE]
    bottom = [at for at, rating in enumerate(ratings) if rating <= worst + RATING_TOLERANCE]
    high, low = pick(top, derive(seed, "highest")), pick(bottom, derive(seed, "lowest"))
    answer = next(candidate for candidate in record.candidates_K if candidate.index == dispute.candidate)
    texts = {judgment.index: judgment.reasoning + judgment.text for judgment in answer.judgments_N}
    chosen, rejected, limit = judgments[high], judgments[low], rules.max_judgment_chars
    if texts[chosen] == texts[rejected]:
        return drop("same_judgment_text", f"judgments {chosen} and {rejected} have the same text")
    if limit is not None and len(texts[chosen]) > limit:
        detail = f"{len(texts[chosen])} characters, at most {limit} are allowed"
        return drop("chosen_judgment_too_long", detail)
    return PreferencePair(
        kind="judge",
        prompt_id=record.prompt.id,
        prompt=rubric.render(record.prompt, answer.text),
        chosen=texts[chosen],
        rejected=texts[rejected],
        chosen_index=chosen,
        rejected_index=rejected,
        chosen_score=ratings[high],
        rejected_score=ratings[low],
        candidate=answer.index,
    )


def _no_dispute(record: PromptRecord, min_valid: int) -> tuple[DropReason, str]:
    """Why the record has no comparisons: no judgments to compare, or no meta-judging."""
    needed = max(2, min_valid)
    if disputed(record.candidates_K, min_valid, 0) is not None:
        return "no_dispute", "no judgments of this prompt were compared"
    if any(len(valid_scores(candidate)) >= needed for candidate in record.candidates_K):
        return "no_variance", "the judgments of each answer all give the same score"
    return "too_few_judgments", f"no answer has {needed} valid judgments"
