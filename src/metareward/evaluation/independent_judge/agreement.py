"""Whether a model's judgments came nearer to an independent judge's, or are only more confident.

Both judge the same answers (M0's), so that better answers don't make judging easier. Over single judgments s of the
model and the mean r of the independent judge's scores of the same answer:

    exact              share of judgments within half a point of r
    error              mean of s - r
    rank correlation   Spearman's, of s and r; of the mean of s and r
    self-agreement     share of pairs of the model's judgments of one answer that give the same score: its confidence
    reliability        rank correlation of two of the model's judgments of one answer
    disattenuated      rank correlation / sqrt(reliability): the rank correlation without the model's own noise

A judge that contradicts itself less often agrees better with anyone, whatever it prefers. So "better" is a change of
the last one (Spearman's correction for attenuation, American Journal of Psychology 15, 1904). Every figure is a
function of sums over prompts, so its interval, and that of a difference of two models, comes from the same resampled
prompts. Ranks are those in all data. A figure with nothing to count is absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np

from metareward.method.scores import TOLERANCE, mean
from metareward.method.stats import Array, Interval, group_sums, resampled_interval

_LEAST_RELIABILITY = 0.05  # below it, dividing by its root would blow noise up


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """An answer with the readable scores of the model and of the independent judge; neither is empty."""

    prompt_id: str
    scores_N: tuple[float, ...]
    reference_N: tuple[float, ...]

    @property
    def reference(self) -> float:
        """The independent judge's mean."""
        return mean(self.reference_N)


Intervals = Mapping[str, Interval]
Statistic = Callable[[Array], Array]  # of sums (D, F): one value to each of D draws
Sums = tuple[str, ...]

# What is summed over the judgments, pairs of judgments and answers of a prompt.
_JUDGMENTS: Sums = ("n", "hit", "error", "s", "r", "ss", "rr", "sr")
_PAIRS: Sums = ("pairs", "equal", "u", "uu", "uv")
_ANSWERS: Sums = ("answers", "m", "q", "mm", "qq", "mq")
_PLACE = {name: place for place, name in enumerate((*_JUDGMENTS, *_PAIRS, *_ANSWERS))}


def _sums(sums_DF: Array, *names: str) -> tuple[Array, ...]:
    return tuple(sums_DF[:, _PLACE[name]] for name in names)


def _exact(sums_DF: Array) -> Array:
    n, hit = _sums(sums_DF, "n", "hit")
    return np.asarray(hit / n)


def _error(sums_DF: Array) -> Array:
    n, error = _sums(sums_DF, "n", "error")
    return np.asarray(error / n)


def _correlation(n: Array, x: Array, y: Array, xx: Array, yy: Array, xy: Array) -> Array:
    spread = np.maximum(n * xx - x**2, 0.0) * np.maximum(n * yy - y**2, 0.0)
    return np.asarray((n * xy - x * y) / np.sqrt(np.where(spread > TOLERANCE * n**4, spread, np.nan)))


def _rank_correlation(sums_DF: Array) -> Array:
    return _correlation(*_sums(sums_DF, "n", "s", "r", "ss", "rr", "sr"))


def _mean_rank_correlation(sums_DF: Array) -> Array:
    return _correlation(*_sums(sums_DF, "answers", "m", "q", "mm", "qq", "mq"))


def _self_agreement(sums_DF: Array) -> Array:
    pairs, equal = _sums(sums_DF, "pairs", "equal")
    return np.asarray(equal / pairs)


def _reliability(sums_DF: Array) -> Array:
    return _correlation(*_sums(sums_DF, "pairs", "u", "u", "uu", "uu", "uv"))


def _disattenuated(sums_DF: Array) -> Array:
    reliability = _reliability(sums_DF)
    root = np.sqrt(np.where(reliability > _LEAST_RELIABILITY, reliability, np.nan))
    return np.clip(_rank_correlation(sums_DF) / root, -1.0, 1.0)


_STATISTICS: Mapping[str, tuple[Statistic, str]] = {
    "exact": (_exact, "n"),
    "error": (_error, "n"),
    "rank_correlation": (_rank_correlation, "n"),
    "mean_rank_correlation": (_mean_rank_correlation, "answers"),
    "self_agreement": (_self_agreement, "pairs"),
    "reliability": (_reliability, "pairs"),
    "disattenuated": (_disattenuated, "n"),
}
_OF_SCALE = ("exact", "error")  # they need both judges' scores on one scale


def agreement(judged: Sequence[JudgedAnswer], half: float | None, seed: int = 0) -> dict[str, Interval]:
    """Every defined figure with its 95 % interval over prompts, by name.

    ``half``: half a point of the scale that both judges have; None for two scales, without ``exact`` and ``error``.
    """
    totals_GF = _totals(judged, _prompts(judged), half)
    found = dict[str, Interval]()
    for name, statistic, n in _countable(totals_GF, half):
        interval = resampled_interval(totals_GF, statistic, n, seed)
        found |= {} if interval is None else {name: interval}
    return found


def changes(
    now: Sequence[JudgedAnswer], before: Sequence[JudgedAnswer], half: float | None, seed: int = 0
) -> dict[str, Interval]:
    """How much larger each figure is for ``now`` than for ``before``; prompts are resampled for both at once."""
    prompts, width = _prompts([*before, *now]), len(_PLACE)
    totals_GF = np.hstack([_totals(now, prompts, half), _totals(before, prompts, half)])
    found = dict[str, Interval]()
    for name, statistic, _ in _countable(totals_GF, half):

        def difference(sums_DF: Array, statistic: Statistic = statistic) -> Array:
            return np.asarray(statistic(sums_DF[:, :width]) - statistic(sums_DF[:, width:]))

        interval = resampled_interval(totals_GF, difference, len(prompts), seed)
        found |= {} if interval is None else {name: interval}
    return found


def _countable(totals_GF: Array, half: float | None) -> Iterator[tuple[str, Statistic, int]]:
    """The figures that have something to count: name, statistic, and how much it counts."""
    for name, (statistic, counted) in _STATISTICS.items():
        n = int(totals_GF[:, _PLACE[counted]].sum())
        if n and not (half is None and name in _OF_SCALE):
            yield name, statistic, n // 2 if counted == "pairs" else n  # pairs are counted in both orders


def _prompts(judged: Sequence[JudgedAnswer]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each.prompt_id for each in judged))


def _totals(judged: Sequence[JudgedAnswer], prompts: Sequence[str], half: float | None) -> Array:
    """The sums of each of ``prompts``, of shape (G, F)."""
    scores_N = np.array([score for each in judged for score in each.scores_N])
    rank_N = _ranks(scores_N)
    reference_A = np.array([each.reference for each in judged])
    answer_N = np.repeat(np.arange(len(judged)), [len(each.scores_N) for each in judged])
    reference_N = reference_A[answer_N]
    s_N, r_N, one_N = rank_N, _ranks(reference_N), np.ones(len(rank_N))
    error_N = scores_N - reference_N
    hit_N = np.abs(error_N) <= (0.0 if half is None else half) + TOLERANCE
    judgments_NF = np.stack([one_N, hit_N, error_N, s_N, r_N, s_N**2, r_N**2, s_N * r_N], axis=1)

    starts = np.cumsum([0, *(len(each.scores_N) for each in judged)])[:-1]
    orders = [
        (start + i, start + j)
        for start, each in zip(starts, judged, strict=True)
        for i, j in permutations(range(len(each.scores_N)), 2)
    ]
    pairs = np.array(orders, dtype=int).reshape(-1, 2)
    u_P, v_P = rank_N[pairs[:, 0]], rank_N[pairs[:, 1]]
    equal_P = np.abs(scores_N[pairs[:, 0]] - scores_N[pairs[:, 1]]) <= TOLERANCE
    pairs_PF = np.stack([np.ones(len(u_P)), equal_P, u_P, u_P**2, u_P * v_P], axis=1)

    m_A, q_A = _ranks(np.array([mean(each.scores_N) for each in judged])), _ranks(reference_A)
    answers_AF = np.stack([np.ones(len(m_A)), m_A, q_A, m_A**2, q_A**2, m_A * q_A], axis=1)

    ids = [each.prompt_id for each in judged]
    by_row = ((judgments_NF, answer_N), (pairs_PF, answer_N[pairs[:, 0]]), (answers_AF, np.arange(len(judged))))
    return np.hstack([_by_prompt(terms, [ids[a] for a in answers], prompts) for terms, answers in by_row])


def _by_prompt(terms_RF: Array, groups: Sequence[str], prompts: Sequence[str]) -> Array:
    """The rows' sums by prompt, in the order of ``prompts``; zeros for one without rows."""
    nothing = np.zeros((len(prompts), terms_RF.shape[1]))
    return group_sums(np.vstack([nothing, terms_RF]), [*prompts, *groups])


def _ranks(values: Array) -> Array:
    """Average ranks in (-1/2, 1/2); values that differ by rounding only are tied."""
    from scipy.stats import rankdata  # scipy.stats takes half a second

    return np.asarray((rankdata(np.round(values, 9)) - 0.5) / max(1, len(values)) - 0.5, dtype=np.float64)


# --- what that says of the judge ---

JudgeChange = Literal["better", "less noisy", "more confident", "worse", "unclear"]
CHANGES: Mapping[JudgeChange, str] = {
    "better": "the judge got better: without its own noise, it agrees more with the independent judge",
    "less noisy": "its single judgments agree better, since it contradicts itself less; there is no evidence that "
    "it agrees more without that noise",
    "more confident": "the judge got more confident, without evidence that it got better",
    "worse": "the judge got worse: it agrees less with the independent judge",
    "unclear": "there is no evidence that the judge changed",
}


def judge_change(changed: Intervals) -> JudgeChange:
    """What the changes come to; only an interval without 0 counts.

    The disattenuated rank correlation decides; that of single judgments where each answer has one judgment only.
    """
    disattenuated = _sign(changed.get("disattenuated"))
    single = _sign(changed.get("rank_correlation"))
    decided = disattenuated if "disattenuated" in changed else single
    if decided:
        return "better" if decided > 0 else "worse"
    if single:
        return "less noisy" if single > 0 else "worse"
    return "more confident" if _sign(changed.get("self_agreement")) > 0 else "unclear"


def _sign(interval: Interval | None) -> int:
    """1 or -1 where the whole interval is above or below 0, else 0."""
    if interval is None:
        return 0
    return int(interval.low > 0) - int(interval.high < 0)
