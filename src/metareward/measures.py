"""From held-out records to figures with 95 % intervals, resampled by prompt (`metareward.agreement`).

A measure for which there is nothing to count is left out; it is never 0 and never NaN.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from metareward.agreement import Interval, mean_interval, spearman
from metareward.evaluation import Comparison, HeldOut, Oracle
from metareward.types import Candidate, Judgment, Prompt, Scored, Tied, Won

Rows = list[tuple[str, float]]  # (prompt id, value)
_DRAWS = 400


def measure(
    records: Sequence[HeldOut], anchors: Mapping[str, HeldOut], oracle: Oracle | None, seed: int
) -> dict[str, dict[str, float]]:
    """Every measure that has something to count, as ``{"mean", "low", "high", "n"}``; ``anchors`` are M0's records."""
    columns = dict(_plain(records))
    if oracle is not None:
        columns |= dict(_true(records, anchors, oracle))
    found = {
        name: mean_interval([v for _, v in rows], [g for g, _ in rows], seed) for name, rows in columns.items() if rows
    }
    if oracle is not None:
        found |= _rank_correlations(records, oracle, seed)
    return {name: {"mean": i.mean, "low": i.low, "high": i.high, "n": i.n} for name, i in found.items()}


def score_histogram(records: Iterable[HeldOut]) -> dict[str, dict[str, int]]:
    """How often each single score was given, to the model's own answers and to the anchors."""
    own, anchor = Counter[str](), Counter[str]()
    for record in records:
        own.update(f"{score:g}" for answer in record.own for score in _scores(answer))
        anchor.update(f"{score:g}" for answer in record.anchors_K for score in _scores(answer))
    return {"own": dict(sorted(own.items())), "anchor": dict(sorted(anchor.items()))}


def _scores(answer: Candidate) -> list[float]:
    return [each.reading.score for each in answer.judgments_N if isinstance(each.reading, Scored)]


def _plain(records: Sequence[HeldOut]) -> Iterator[tuple[str, Rows]]:
    """What can be counted without knowing any truth."""
    own = [(record.prompt.id, answer) for record in records for answer in record.own]
    anchors = [(record.prompt.id, answer) for record in records for answer in record.anchors_K]
    judgments = [(key, judgment) for key, answer in anchors for judgment in answer.judgments_N]
    metas = [(record.prompt.id, each.meta) for record in records for each in record.comparisons]
    yield "answer_chars", [(key, float(len(answer.text))) for key, answer in own]
    yield "answer_truncated", [(key, float(answer.finish == "length")) for key, answer in own]
    yield "answer_self_score", [(key, score) for key, answer in own for score in _scores(answer)]
    yield "anchor_score", [(key, score) for key, answer in anchors for score in _scores(answer)]
    yield "judgment_valid", [(key, float(isinstance(each.reading, Scored))) for key, each in judgments]
    yield "judgment_chars", [(key, float(len(each.text))) for key, each in judgments]
    yield "meta_valid", [(key, float(isinstance(meta.verdict, Won | Tied))) for key, meta in metas]
    won = [(key, meta, meta.verdict) for key, meta in metas]
    yield "meta_first_position", [(key, float(v.winner == meta.first)) for key, meta, v in won if isinstance(v, Won)]


def _true(records: Sequence[HeldOut], anchors: Mapping[str, HeldOut], oracle: Oracle) -> Iterator[tuple[str, Rows]]:
    quality = [(r.prompt.id, oracle.answer_score(r.prompt, answer.text)) for r in records for answer in r.own]
    yield "answer_quality", quality
    yield "answer_perfect", [(key, float(score >= 5)) for key, score in quality]
    judged = list(_judged_anchors(records, oracle))
    yield "judgment_exact", [(key, float(score == truth)) for key, score, truth in judged]
    yield "meta_accuracy", list(_meta_hits(records, anchors, oracle))


def _judged_anchors(records: Iterable[HeldOut], oracle: Oracle) -> Iterator[tuple[str, float, float]]:
    """(prompt id, score given, true score) of every readable judgment of an anchor."""
    for record in records:
        for answer in record.anchors_K:
            truth = oracle.answer_score(record.prompt, answer.text)
            for score in _scores(answer):
                yield record.prompt.id, score, truth


def _meta_hits(
    records: Iterable[HeldOut], anchors: Mapping[str, HeldOut], oracle: Oracle
) -> Iterator[tuple[str, float]]:
    """Whether the better judgment won, wherever one of the two is better; a tie is half a hit."""
    for record in records:
        given = {answer.index: answer for answer in anchors[record.prompt.id].own}
        for each in record.comparisons:
            hit = _hit(record.prompt, given[each.candidate], each, oracle)
            if hit is not None:
                yield record.prompt.id, hit


def _hit(prompt: Prompt, answer: Candidate, each: Comparison, oracle: Oracle) -> float | None:
    judgments = {judgment.index: judgment for judgment in answer.judgments_N}

    def error(judgment: Judgment) -> tuple[float, ...]:
        score = judgment.reading.score if isinstance(judgment.reading, Scored) else float("inf")
        return oracle.judgment_error(prompt, answer.text, judgment.text, score)

    first, second = error(judgments[each.meta.first]), error(judgments[each.meta.second])
    verdict = each.meta.verdict
    if first == second or not isinstance(verdict, Won | Tied):
        return None
    if isinstance(verdict, Tied):
        return 0.5
    return float(verdict.winner == (each.meta.first if first < second else each.meta.second))


def _rank_correlations(records: Sequence[HeldOut], oracle: Oracle, seed: int) -> dict[str, Interval]:
    """Spearman's correlation with the truth over all anchors: of single judgments, and of the mean of N."""
    single = list(_judged_anchors(records, oracle))
    means = [
        (record.prompt.id, float(np.mean(_scores(answer))), oracle.answer_score(record.prompt, answer.text))
        for record in records
        for answer in record.anchors_K
        if _scores(answer)
    ]
    found = {
        "judgment_rank_correlation": _grouped(single, seed),
        "judgment_mean_rank_correlation": _grouped(means, seed),
    }
    return {name: interval for name, interval in found.items() if interval is not None}


def _grouped(rows: Sequence[tuple[str, float, float]], seed: int) -> Interval | None:
    """Spearman over all rows, with a 95 % interval from resampling prompts; None when it isn't defined."""
    whole = _spearman(rows)
    if whole is None:
        return None
    groups: dict[str, list[tuple[str, float, float]]] = {}
    for row in rows:
        groups.setdefault(row[0], []).append(row)
    pools, generator = list(groups.values()), np.random.default_rng(seed)
    drawn = [whole]  # the interval holds it, and there is one where no resample has a correlation
    for _ in range(_DRAWS):
        sample = [row for pick in generator.integers(len(pools), size=len(pools)) for row in pools[pick]]
        value = _spearman(sample)
        if value is not None:
            drawn.append(value)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(whole, min(whole, float(low)), max(whole, float(high)), len(rows))


def _spearman(rows: Sequence[tuple[str, float, float]]) -> float | None:
    return spearman([given for _, given, _ in rows], [truth for _, _, truth in rows])
