"""Figures of judge health, each with a 95 % interval: readability, spread of scores, ties, bias, lost answers, lengths.

A judge that is trained by its own verdicts can fail without any error: verdicts become unreadable, most of all for good
answers, or all scores become the same. The figures come from records and evaluations alone; `metareward.method.gates`
says which values are acceptable. Intervals treat prompts as clusters, because judgments of one prompt are not
independent. A figure with nothing to count is absent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from metareward.method.diagnostics import Compared, compared_in_both_orders, disputes
from metareward.method.pairs import of_kind
from metareward.method.scores import TOLERANCE, answer_scores, mean, valid_scores
from metareward.method.stats import Interval, group_sums, resampled_interval, share_interval
from metareward.types import (
    Candidate,
    PreferencePair,
    Prompt,
    PromptRecord,
    Reading,
    Scored,
    Tied,
    Verdict,
    Won,
)

Array = NDArray[np.float64]
Truth = Callable[[Prompt, str], float]
"""The true score of an answer to a prompt, where a program knows it."""

_BINS = 10  # per range of scores: expected scores that differ by less are the same


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its 95 % interval, over ``n`` judgments, verdicts, answers, prompts or pairs of ``prompts`` prompts.

    For a comparison of two groups of answers, ``prompts`` are those that have an answer of the smaller group.
    ``detail``: more counts, in a few words, or empty.
    """

    value: float
    low: float
    high: float
    n: int
    prompts: int
    detail: str = ""


Figures = Mapping[str, Figure]
"""Figures by name; `metareward.method.gates.GATES` explains each."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The lowest and the highest score of the rubric."""

    min_score: float
    max_score: float

    def bin(self, score: float) -> int:
        """The tenth of the range that is nearest to ``score``."""
        return round(_BINS * (score - self.min_score) / (self.max_score - self.min_score))


@dataclass(frozen=True, slots=True)
class Judged:
    """An answer with its judgments. ``truth``: its true score; ``reference``: its mean score by another judge (M0)."""

    prompt_id: str
    answer: Candidate
    truth: float | None = None
    reference: float | None = None


def judged_answers(records: Iterable[PromptRecord], truth: Truth | None = None) -> tuple[Judged, ...]:
    """Every answer of ``records`` with its judgments, and with its true score if ``truth`` is given."""
    return tuple(
        Judged(record.prompt.id, answer, truth(record.prompt, answer.text) if truth else None)
        for record in records
        for answer in record.candidates_K
    )


# --- all figures of a stage ---


def record_figures(
    records: Sequence[PromptRecord],
    pairs: Sequence[PreferencePair],
    scale: Scale,
    min_valid: int,
    judge_pairs: bool,
    truth: Truth | None = None,
) -> dict[str, Figure]:
    """The figures of an iteration's records and of the pairs built from them.

    ``judge_pairs``: whether the iteration builds judge pairs at all.
    """
    return {
        **judging_figures(judged_answers(records, truth), scale),
        **verdict_figures(disputes(records)),
        **answer_figures(records, min_valid, truth),
        **pair_figures(records, pairs, judge_pairs),
    }


def evaluation_figures(
    own: Sequence[Judged],
    anchors: Sequence[Judged],
    first: Sequence[Judged],
    compared: Iterable[Compared],
    scale: Scale,
) -> dict[str, Figure]:
    """The figures of a model on held-out prompts.

    ``own``: its answers; ``anchors``: M0's answers with this model's judgments, and M0's mean scores as ``reference``;
    ``first``: M0's answers with M0's judgments. For M0 itself ``own`` is all, and the others are empty.
    """
    same = anchors or own
    return {
        **_present(
            readable_judgments=readable_judgments([*own, *anchors]),
            readable_as_written=readable_as_written([*own, *anchors]),
            readable_by_score=readable_by_score(same),
            readable_by_truth=readable_by_truth([*own, *anchors], scale),
            one_score=one_score(same, scale),
            score_entropy=score_entropy(anchors, first, scale),
        ),
        **edge_scores(own, scale),
        **verdict_figures(compared),
    }


# --- judgments ---


def judging_figures(judged: Sequence[Judged], scale: Scale) -> dict[str, Figure]:
    """Whether judgments are readable, whether that depends on quality, and how many scores are at the scale's ends."""
    return {
        **_present(
            readable_judgments=readable_judgments(judged),
            readable_as_written=readable_as_written(judged),
            readable_by_score=readable_by_score(judged),
            readable_by_truth=readable_by_truth(judged, scale),
        ),
        **edge_scores(judged, scale),
    }


def readable_judgments(judged: Iterable[Judged]) -> Figure | None:
    """The share of judgments that have a score."""
    return _readable((judgment.reading, each.prompt_id) for each in judged for judgment in each.answer.judgments_N)


def readable_as_written(judged: Iterable[Judged]) -> Figure | None:
    """The share of judgments whose own verdict has a score, of those in which a constrained one took its place."""
    judgments = [(judgment, each.prompt_id) for each in judged for judgment in each.answer.judgments_N]
    return _readable((written, prompt) for judgment, prompt in judgments if (written := judgment.written) is not None)


def readable_by_score(judged: Iterable[Judged]) -> Figure | None:
    """The change of the readable share from the worst to the best answer: a linear fit's slope on ranks in [0, 1].

    An answer's rank comes from its ``reference``, or else, for each judgment, from the mean of the other readable
    judgments of the same answer. Of a constrained verdict the judge's own counts, which it replaced. None if all
    answers have the same quality.
    """
    from scipy.stats import rankdata  # scipy.stats takes half a second

    rows = [
        (quality, isinstance(judgment.own_reading, Scored), each.prompt_id)
        for each in judged
        for at, judgment in enumerate(each.answer.judgments_N)
        if (quality := _quality_without(each, at)) is not None
    ]
    if len({quality for quality, _, _ in rows}) < 2:
        return None
    x_N = (rankdata([quality for quality, _, _ in rows]) - 0.5) / len(rows)
    y_N = np.array([readable for _, readable, _ in rows], float)
    totals_GF = group_sums(
        np.stack([np.ones_like(x_N), x_N, y_N, x_N * y_N, x_N**2], axis=1), [prompt for _, _, prompt in rows]
    )

    def slope(sums_DF: Array) -> Array:
        n, x, y, xy, xx = sums_DF.T
        return np.asarray((n * xy - x * y) / (n * xx - x**2), float)

    return _resampled(totals_GF, slope, len(rows), len(totals_GF))


def _quality_without(judged: Judged, at: int) -> float | None:
    """The answer's quality by another judge or by the judgments other than ``at``; None if none of them is readable."""
    if judged.reference is not None:
        return judged.reference
    others = [judgment.reading for place, judgment in enumerate(judged.answer.judgments_N) if place != at]
    scores = [reading.score for reading in others if isinstance(reading, Scored)]
    return fmean(scores) if scores else None


def readable_by_truth(judged: Iterable[Judged], scale: Scale) -> Figure | None:
    """The readable share of judgments of perfect answers minus that of all others, by the answers' ``truth``.

    Of a constrained verdict the judge's own counts, which it replaced.
    """
    rows = [
        (each.truth >= scale.max_score - TOLERANCE, isinstance(judgment.own_reading, Scored), each.prompt_id)
        for each in judged
        if each.truth is not None
        for judgment in each.answer.judgments_N
    ]
    if len({perfect for perfect, _, _ in rows}) < 2:
        return None
    perfect_N, y_N = (np.array([row[place] for row in rows], float) for place in (0, 1))
    terms_NF = np.stack([perfect_N, perfect_N * y_N, 1 - perfect_N, (1 - perfect_N) * y_N], axis=1)
    totals_GF = group_sums(terms_NF, [prompt for _, _, prompt in rows])

    def difference(sums_DF: Array) -> Array:
        return np.asarray(sums_DF[:, 1] / sums_DF[:, 0] - sums_DF[:, 3] / sums_DF[:, 2], float)

    smaller = int(min((totals_GF[:, 0] > 0).sum(), (totals_GF[:, 2] > 0).sum()))
    return _resampled(totals_GF, difference, len(rows), smaller)


def one_score(judged: Iterable[Judged], scale: Scale) -> Figure | None:
    """The share of the most frequent score."""
    scores = [(scale.bin(score), each.prompt_id) for each in judged for score in valid_scores(each.answer)]
    counts = Counter(score for score, _ in scores)
    most = max(counts, key=lambda score: (counts[score], score), default=0)
    return share((score == most, prompt) for score, prompt in scores)


def edge_scores(judged: Iterable[Judged], scale: Scale) -> dict[str, Figure]:
    """The shares of scores in the top and in the bottom tenth of the scale."""
    scores = [(score, each.prompt_id) for each in judged for score in valid_scores(each.answer)]
    margin = (scale.max_score - scale.min_score) / 10 + TOLERANCE
    return _present(
        top_scores=share((score >= scale.max_score - margin, prompt) for score, prompt in scores),
        bottom_scores=share((score <= scale.min_score + margin, prompt) for score, prompt in scores),
    )


def score_entropy(judged: Iterable[Judged], first: Iterable[Judged], scale: Scale) -> Figure | None:
    """The entropy of a judge's scores divided by that of the scores that M0 gave to the same answers (``first``)."""
    now, before = (
        Counter((each.prompt_id, scale.bin(score)) for each in side for score in valid_scores(each.answer))
        for side in (judged, first)
    )
    prompts = sorted({prompt for prompt, _ in now} & {prompt for prompt, _ in before})
    values = sorted({value for _, value in (*now, *before)})
    if not prompts:
        return None
    totals_GF = np.array([[side[prompt, value] for side in (now, before) for value in values] for prompt in prompts])

    def ratio(sums_DF: Array) -> Array:
        now_DS, before_DS = np.split(sums_DF, 2, axis=1)
        return np.asarray(_entropy(now_DS) / _entropy(before_DS), float)

    return _resampled(totals_GF.astype(float), ratio, now.total(), len(prompts))


def _entropy(counts_DS: Array) -> Array:
    """The entropy of each row's distribution, in bits; NaN for an empty one."""
    p_DS = counts_DS / counts_DS.sum(axis=1, keepdims=True)
    return np.asarray(-(p_DS * np.log2(np.where(p_DS > 0, p_DS, 1.0))).sum(axis=1), float)


# --- meta-judgments ---


def verdict_figures(compared: Iterable[Compared]) -> dict[str, Figure]:
    """Whether the meta-judge's verdicts are readable, follow the position, or follow the score."""
    all_compared = list(compared)
    metas = [(meta, each.prompt_id) for each in all_compared for meta in each.meta]
    won = [(verdict.winner == meta.first, prompt) for meta, prompt in metas if isinstance(verdict := meta.verdict, Won)]
    both = [(pair, each.prompt_id) for each in all_compared for pair in compared_in_both_orders(each)]
    decided = [(pair, prompt) for pair, prompt in both if abs(pair.lead) > TOLERANCE and not pair.flipped]
    return _present(
        readable_verdicts=_readable((meta.verdict, prompt) for meta, prompt in metas),
        verdicts_as_written=_readable((meta.written, prompt) for meta, prompt in metas if meta.written is not None),
        first_position=share(won),
        position_flips=share((pair.flipped, prompt) for pair, prompt in both),
        higher_score_wins=share((pair.higher_score_won, prompt) for pair, prompt in decided),
    )


# --- answers and pairs ---


def answer_figures(records: Sequence[PromptRecord], min_valid: int, truth: Truth | None = None) -> dict[str, Figure]:
    """Ties of mean scores, answers that ``min_valid`` left out, prompts that lost their best answer, cut-off answers.

    A prompt lost its best answer if every answer with the best mean of its readable judgments was left out
    (``lost_best``), or every answer with the best true score (``lost_best_by_truth``).
    """
    ties, left_out, lost, lost_by_truth = list[_Flag](), list[_Flag](), list[_Flag](), list[_Flag]()
    for record in records:
        key, scores = record.prompt.id, {each.index: each.mean for each in answer_scores(record, min_valid)}
        ties += [(abs(one - other) <= TOLERANCE, key) for one, other in combinations(scores.values(), 2)]
        if any(answer.reward is not None for answer in record.candidates_K):
            continue
        left_out += [(answer.index not in scores, key) for answer in record.candidates_K]
        means = {answer.index: mean(valid_scores(answer)) for answer in record.candidates_K if valid_scores(answer)}
        lost += [(_all_left_out(means, scores), key)] if means else []
        if truth is not None:
            truths = {answer.index: truth(record.prompt, answer.text) for answer in record.candidates_K}
            lost_by_truth.append((_all_left_out(truths, scores), key))
    ends = [(answer.finish == "length", each.prompt.id) for each in records for answer in each.candidates_K]
    return _present(
        tied_answers=share(ties),
        left_out_answers=share(left_out),
        lost_best=share(lost),
        lost_best_by_truth=share(lost_by_truth),
        answers_cut_off=share(ends),
    )


def _all_left_out(quality: Mapping[int, float], kept: Mapping[int, float]) -> bool:
    """Whether no answer of the best quality is among those kept."""
    best = max(quality.values())
    return all(index not in kept for index, value in quality.items() if value >= best - TOLERANCE)


def pair_figures(
    records: Sequence[PromptRecord], pairs: Sequence[PreferencePair], judge_pairs: bool
) -> dict[str, Figure]:
    """Pairs per prompt, and the length of chosen texts divided by that of rejected ones."""
    actor, judge = of_kind(pairs, "actor"), of_kind(pairs, "judge")
    paired = [{pair.prompt_id for pair in kind} for kind in (actor, judge)]
    yields = [share((record.prompt.id in ids, record.prompt.id) for record in records) for ids in paired]
    lengths = [length_ratio((p.prompt_id, len(p.chosen), len(p.rejected)) for p in kind) for kind in (actor, judge)]
    return _present(
        actor_pairs=yields[0],
        judge_pairs=yields[1] if judge_pairs else None,
        judge_pair_share=share((pair.kind == "judge", pair.prompt_id) for pair in pairs) if judge_pairs else None,
        chosen_answer_length=lengths[0],
        chosen_judgment_length=lengths[1],
    )


def length_ratio(rows: Iterable[tuple[str, int, int]]) -> Figure | None:
    """The sum of lengths divided by the sum of other lengths, of (prompt id, length, other length)."""
    all_rows = list(rows)
    if not all_rows:
        return None
    totals_GF = group_sums(
        np.array([lengths for _, *lengths in all_rows], float), [prompt for prompt, _, _ in all_rows]
    )
    return _resampled(totals_GF, lambda sums_DF: sums_DF[:, 0] / sums_DF[:, 1], len(all_rows), len(totals_GF))


# --- intervals ---

_Flag = tuple[bool, str]


def share(flags: Iterable[_Flag]) -> Figure | None:
    """The share of true flags of (flag, prompt id); None without flags."""
    rows = list(flags)
    if not rows:
        return None
    prompts = [prompt for _, prompt in rows]
    return _figure(share_interval([flag for flag, _ in rows], prompts), len(set(prompts)))


def _readable(outcomes: Iterable[tuple[Reading | Verdict, str]]) -> Figure | None:
    """The share of outcomes with a score or verdict; the others are counted by reason in ``detail``."""
    rows = list(outcomes)
    reasons = Counter(each.reason for each, _ in rows if not isinstance(each, Scored | Won | Tied))
    found = share((isinstance(each, Scored | Won | Tied), prompt) for each, prompt in rows)
    detail = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in reasons.most_common())
    return None if found is None else replace(found, detail=detail)


def _resampled(totals_GF: Array, statistic: Callable[[Array], Array], n: int, prompts: int) -> Figure | None:
    """``statistic`` of the sums over prompts; None if it is undefined."""
    found = resampled_interval(totals_GF, statistic, n)
    return None if found is None else _figure(found, prompts)


def _figure(interval: Interval, prompts: int) -> Figure:
    return Figure(interval.mean, interval.low, interval.high, interval.n, prompts)


def _present(**figures: Figure | None) -> dict[str, Figure]:
    return {name: figure for name, figure in figures.items() if figure is not None}
