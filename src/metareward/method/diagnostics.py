"""Statistics of an iteration's records and pairs, with warnings; the content of ``pairs/summary.json``.

The position statistics are those of Meta-Rewarding table 5, which leaves its terms undefined. Here:

* A pair is two judgments of one answer that were compared in both orders, with a winner both times.
* ``flipped``: the share of pairs with two different winners, where the verdict followed the position.
* ``first_wins``: among the comparisons of these pairs (two each), the share won by the judgment shown first.
* ``higher_score_wins``: among pairs with different scores that are not flipped, the share won by the higher score.
  (A flipped pair has one win for each side, so it would pull the share to one half.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from metareward.method.judge import Rubric
from metareward.method.pairs import iteration_weights, of_kind
from metareward.types import Dispute, Dropped, Judgment, PreferencePair, PromptRecord, Scored, Tied, Won

_EQUAL = 1e-9


@dataclass(frozen=True, slots=True)
class PositionSplit:
    """Number of ``pairs``, the share that is ``flipped``, and the share of wins of the judgment shown first."""

    pairs: int
    flipped: float | None
    first_wins: float | None


@dataclass(frozen=True, slots=True)
class PositionStatistics:
    """Meta-Rewarding table 5, in the terms defined above; a share of nothing is None."""

    higher_score_wins: float | None
    lower_score_wins: float | None
    same_score: PositionSplit
    different_score: PositionSplit
    all: PositionSplit


@dataclass(frozen=True, slots=True)
class _Compared:
    """Two judgments compared in both orders. ``lead``: the score of judgment ``one`` minus that of the ``other``."""

    lead: float
    first_wins: int
    one_wins: int


def position_statistics(records: Iterable[PromptRecord]) -> PositionStatistics:
    """The statistics of every pair of judgments compared in ``records``."""
    pairs = [pair for record in records if record.dispute for pair in _compared(record, record.dispute)]
    same = [pair for pair in pairs if abs(pair.lead) <= _EQUAL]
    different = [pair for pair in pairs if abs(pair.lead) > _EQUAL]
    unflipped = [pair for pair in different if pair.one_wins != 1]
    higher = _share(sum((pair.lead > 0) == (pair.one_wins == 2) for pair in unflipped), len(unflipped))
    lower = None if higher is None else 1 - higher
    return PositionStatistics(higher, lower, _split(same), _split(different), _split(pairs))


def _compared(record: PromptRecord, dispute: Dispute) -> Iterator[_Compared]:
    """The pairs of judgments with a winner in both orders."""
    answers = (candidate for candidate in record.candidates_K if candidate.index == dispute.candidate)
    readings = {judgment.index: judgment.reading for answer in answers for judgment in answer.judgments_N}
    scores = {index: reading.score for index, reading in readings.items() if isinstance(reading, Scored)}
    won = {(meta.first, meta.second): meta.verdict.winner for meta in dispute.meta if isinstance(meta.verdict, Won)}
    for (one, other), winner in won.items():
        back = won.get((other, one))
        if one < other and back is not None:
            first_wins = (winner == one) + (back == other)
            yield _Compared(scores[one] - scores[other], first_wins, (winner, back).count(one))


def _split(pairs: Sequence[_Compared]) -> PositionSplit:
    flipped = sum(pair.one_wins == 1 for pair in pairs)
    first = sum(pair.first_wins for pair in pairs)
    return PositionSplit(len(pairs), _share(flipped, len(pairs)), _share(first, 2 * len(pairs)))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def judgment_counts(records: Iterable[PromptRecord]) -> Counter[str]:
    """The parse results of all judgments: ``parsed``, or the reason why there is no score."""
    readings = (judgment.reading for judgment in _judgments(records))
    return Counter("parsed" if isinstance(reading, Scored) else reading.reason for reading in readings)


def verdict_counts(records: Iterable[PromptRecord]) -> Counter[str]:
    """The parse results of all meta-judgments: ``parsed``, ``tied``, or the reason why there is no verdict."""
    verdicts = (meta.verdict for record in records if record.dispute for meta in record.dispute.meta)
    return Counter(
        "parsed" if isinstance(verdict, Won) else "tied" if isinstance(verdict, Tied) else verdict.reason
        for verdict in verdicts
    )


def readings_summary(records: Iterable[PromptRecord]) -> dict[str, int]:
    """`judgment_counts` by name, for JSON."""
    counts = judgment_counts(records)
    return {
        "scored": counts["parsed"],
        **{reason: counts[reason] for reason in ("missing", "out_of_range", "ambiguous", "truncated")},
    }


def _judgments(records: Iterable[PromptRecord]) -> Iterator[Judgment]:
    return (judgment for record in records for candidate in record.candidates_K for judgment in candidate.judgments_N)


@dataclass(frozen=True, slots=True)
class Finding:
    """A warning about an iteration: a fixed ``code`` and one line of ``text`` with the numbers."""

    code: str
    text: str


# Thresholds of the warnings, our choice: a healthy run has none.
_SATURATED = 0.80  # share of valid scores in the top tenth of the range
_TIED_PROMPTS = 0.30  # share of prompts dropped because all their answers have the same score
_UNPARSED = 0.10  # share of judgments, or of meta-judgments
_CUT_OFF = 0.10  # share of answers
_FLIPPED = 0.50  # share of pairs of judgments; table 5 has 44 % in the first iteration and 68 % in the second
_FEW_PAIRS = 0.50  # actor pairs per prompt
_LONGER = 1.10  # mean characters of chosen over rejected


def findings(
    records: Sequence[PromptRecord],
    pairs: Iterable[PreferencePair],
    dropped: Iterable[Dropped],
    min_score: float = 0.0,
    max_score: float = 5.0,
) -> tuple[Finding, ...]:
    """The warnings about an iteration, in a fixed order; ``min_score`` and ``max_score`` are the rubric's."""
    all_pairs = tuple(pairs)
    actor, judge = of_kind(all_pairs, "actor"), of_kind(all_pairs, "judge")
    found: list[Finding] = []
    readings = (judgment.reading for judgment in _judgments(records))
    scores = [reading.score for reading in readings if isinstance(reading, Scored)]
    edge = max_score - (max_score - min_score) / 10
    share = _share(sum(score >= edge for score in scores), len(scores))
    if share is not None and share > _SATURATED:
        text = f"{share:.0%} of {len(scores)} scores are {edge:g} or more: the judge can hardly tell good answers apart"
        found.append(Finding("saturation", text))
    tied = sum(drop.kind == "actor" and drop.reason == "all_scores_equal" for drop in dropped)
    if records and tied / len(records) > _TIED_PROMPTS:
        text = f"all answers score the same for {tied} of {len(records)} prompts: these give no pair"
        found.append(Finding("many_ties", text))
    found += _unparsed("unparsed_judgments", "judgments", "score", judgment_counts(records))
    found += _unparsed("unparsed_meta_judgments", "meta-judgments", "winner", verdict_counts(records))
    ends = [candidate.finish for record in records for candidate in record.candidates_K]
    share = _share(ends.count("length"), len(ends))
    if share is not None and share > _CUT_OFF:
        text = f"{share:.0%} of {len(ends)} answers were cut off by the token limit: raise it"
        found.append(Finding("answers_cut_off", text))
    split = position_statistics(records).all
    if split.flipped is not None and split.first_wins is not None and split.flipped > _FLIPPED:
        text = f"{split.flipped:.0%} of {split.pairs} pairs of judgments get another winner when their order is swapped"
        found.append(Finding("position_flips", f"{text}; the first one shown wins {split.first_wins:.0%}"))
    if records and len(actor) / len(records) < _FEW_PAIRS:
        found.append(Finding("few_pairs", f"only {len(actor)} of {len(records)} prompts give an actor pair"))
    found += _longer("length_drift", "answer", actor)
    found += _longer("judgment_length_drift", "judgment", judge)
    if len(judge) > len(actor):
        text = f"{len(judge)} judge pairs against {len(actor)} actor pairs: training is mostly about judging"
        found.append(Finding("judge_pairs_dominate", text))
    return tuple(found)


def _unparsed(code: str, what: str, wanted: str, counts: Counter[str]) -> list[Finding]:
    """The finding about judgments or meta-judgments without a result, if they are too many."""
    total = counts.total()
    share = _share(total - counts["parsed"] - counts["tied"], total)
    if share is None or share <= _UNPARSED:
        return []
    missing, ambiguous = counts["missing"], counts["ambiguous"]
    causes = f"{missing} without one, {counts['out_of_range']} out of range, {ambiguous} ambiguous"
    text = f"{share:.0%} of {total} {what} hold no {wanted}: {causes}, {counts['truncated']} cut off"
    return [Finding(code, text)]


def _longer(code: str, what: str, pairs: Sequence[PreferencePair]) -> list[Finding]:
    """The finding about chosen texts that are longer than rejected ones, if they are by too much."""
    chosen, rejected = sum(len(pair.chosen) for pair in pairs), sum(len(pair.rejected) for pair in pairs)
    if chosen <= _LONGER * rejected:
        return []
    lengths = f"{chosen / len(pairs):.0f} characters on average, the rejected one {rejected / len(pairs):.0f}"
    return [Finding(code, f"the chosen {what} has {lengths}: training on these pairs makes {what}s longer")]


def summarize(
    t: int,
    records: Sequence[PromptRecord],
    pairs: Sequence[PreferencePair],
    dropped: Sequence[Dropped],
    rubric: Rubric,
) -> dict[str, object]:
    """Iteration ``t``'s counts, drop reasons, position statistics, parse results, warnings and mean lengths."""
    reasons: dict[str, Counter[str]] = {"actor": Counter(), "judge": Counter()}
    for drop in dropped:
        reasons[drop.kind][drop.reason] += 1
    actor = of_kind(pairs, "actor")
    candidates = [answer for record in records for answer in record.candidates_K]
    warnings = findings(records, pairs, dropped, rubric.min_score, rubric.max_score)
    return {
        "iteration": t,
        "prompts": len(records),
        "actor_pairs": len(actor),
        "judge_pairs": len(pairs) - len(actor),
        "dropped": {kind: dict(counts) for kind, counts in reasons.items()},
        "weights": asdict(iteration_weights(records)),
        "position": asdict(position_statistics(records)),
        "readings": readings_summary(records),
        "findings": [asdict(finding) for finding in warnings],
        "chosen_chars": _mean_length(pair.chosen for pair in actor),
        "rejected_chars": _mean_length(pair.rejected for pair in actor),
        "answer_chars": _mean_length(answer.text for answer in candidates),
        "judgment_chars": _mean_length(judgment.text for judgment in _judgments(records)),
    }


def _mean_length(texts: Iterable[str]) -> float | None:
    lengths = [len(text) for text in texts]
    return fmean(lengths) if lengths else None
