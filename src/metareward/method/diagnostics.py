"""What an iteration's records and pairs say about the health of the loop.

The position statistics are those of Meta-Rewarding Table 5, which leaves its terms undefined; here they are:

* A pair is two judgments of one answer that were compared in both orders, with a winner named both times.
* ``flipped``: the share of pairs whose two winners differ, so that the verdict followed the position.
* ``first_wins``: among the comparisons of those same pairs (two each), the share won by the judgment shown first.
* ``higher_score_wins``: among pairs with different scores that are not flipped, the share won by the higher score. A
  flipped pair has one win for each side and says nothing about scores; counted in, it would only pull to one half.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from metareward.method.judge import Rubric
from metareward.method.pairs import PairSet
from metareward.types import (
    Dispute,
    Judgment,
    MetaJudgment,
    PreferencePair,
    PromptRecord,
    Reading,
    Scored,
    Tied,
    Truncated,
    Unparsed,
    Verdict,
    Won,
)

_EQUAL = 1e-9


@dataclass(frozen=True, slots=True)
class PositionSplit:
    """``pairs`` compared in both orders, and what share of them is ``flipped`` and of their wins goes to the first."""

    pairs: int
    flipped: float | None
    first_wins: float | None


@dataclass(frozen=True, slots=True)
class PositionStatistics:
    """Meta-Rewarding Table 5 in the terms defined above; shares are None where there is nothing to count."""

    higher_score_wins: float | None
    lower_score_wins: float | None
    same_score: PositionSplit
    different_score: PositionSplit
    all: PositionSplit

    def as_dict(self) -> dict[str, object]:
        """As plain dictionaries and numbers, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Compared:
    """A pair of judgments in both orders. ``lead`` is the score of judgment ``one`` minus that of ``other``."""

    lead: float
    first_wins: int
    one_wins: int


def position_statistics(records: Iterable[PromptRecord]) -> PositionStatistics:
    """The statistics of every pair of judgments compared in ``records``."""
    pairs = [pair for record in records if record.dispute for pair in _compared(record, record.dispute)]
    same = [pair for pair in pairs if abs(pair.lead) <= _EQUAL]
    different = [pair for pair in pairs if abs(pair.lead) > _EQUAL]
    steady = [pair for pair in different if pair.one_wins != 1]
    higher = _share(sum((pair.lead > 0) == (pair.one_wins == 2) for pair in steady), len(steady))
    lower = None if higher is None else 1 - higher
    return PositionStatistics(higher, lower, _split(same), _split(different), _split(pairs))


def _compared(record: PromptRecord, dispute: Dispute) -> Iterator[_Compared]:
    """Every pair of the dispute whose comparison named a winner in both orders."""
    scores = _scores(record, dispute.candidate)
    won = {(meta.first, meta.second): meta.verdict.winner for meta in dispute.meta if isinstance(meta.verdict, Won)}
    for (one, other), winner in won.items():
        back = won.get((other, one))
        if one < other and back is not None:
            winners = (winner, back)
            first_wins = (winner == one) + (back == other)
            yield _Compared(scores[one] - scores[other], first_wins, winners.count(one))


def _scores(record: PromptRecord, index: int) -> dict[int, float]:
    answers = (candidate for candidate in record.candidates_K if candidate.index == index)
    judgments = (judgment for answer in answers for judgment in answer.judgments_N)
    return {judgment.index: judgment.reading.score for judgment in judgments if isinstance(judgment.reading, Scored)}


def _split(pairs: Sequence[_Compared]) -> PositionSplit:
    flipped = sum(pair.one_wins == 1 for pair in pairs)
    first = sum(pair.first_wins for pair in pairs)
    return PositionSplit(len(pairs), _share(flipped, len(pairs)), _share(first, 2 * len(pairs)))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


@dataclass(frozen=True, slots=True)
class Counts:
    """How readings ended. ``read`` gave a score or a winner; ``tied`` is for meta-judgments alone."""

    read: int
    tied: int
    missing: int
    out_of_range: int
    contradictory: int
    truncated: int

    @property
    def total(self) -> int:
        """How many there are."""
        return self.read + self.tied + self.unread

    @property
    def unread(self) -> int:
        """How many gave nothing that could be used."""
        return self.missing + self.out_of_range + self.contradictory + self.truncated


def judgment_counts(records: Iterable[PromptRecord]) -> Counts:
    """How the reading of every judgment of every answer ended."""
    return _counts(judgment.reading for judgment in _judgments(records))


def verdict_counts(records: Iterable[PromptRecord]) -> Counts:
    """How the reading of every meta-judgment ended."""
    return _counts(meta.verdict for meta in _metas(records))


def readings_summary(records: Iterable[PromptRecord]) -> dict[str, int]:
    """How the readings of the judgments ended, by name, for JSON."""
    counts = asdict(judgment_counts(records))
    return {"scored": counts.pop("read"), **{name: count for name, count in counts.items() if name != "tied"}}


def _judgments(records: Iterable[PromptRecord]) -> Iterator[Judgment]:
    return (judgment for record in records for candidate in record.candidates_K for judgment in candidate.judgments_N)


def _metas(records: Iterable[PromptRecord]) -> Iterator[MetaJudgment]:
    return (meta for record in records if record.dispute for meta in record.dispute.meta)


def _counts(outcomes: Iterable[Reading | Verdict]) -> Counts:
    ended = dict.fromkeys(("read", "tied", "missing", "out_of_range", "contradictory", "truncated"), 0)
    for outcome in outcomes:
        ended[_ending(outcome)] += 1
    return Counts(**ended)


def _ending(outcome: Reading | Verdict) -> str:
    match outcome:
        case Scored() | Won():
            return "read"
        case Tied():
            return "tied"
        case Truncated():
            return "truncated"
        case Unparsed(reason):
            return reason


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a person should know about an iteration: a fixed ``code``, and a ``text`` in plain words."""

    code: str
    text: str


# Where a finding begins. They are house rules, chosen to stay silent on a healthy run; the texts state the numbers.
_SATURATED = 0.80  # of valid scores in the top tenth of the scale
_TIED_PROMPTS = 0.30  # of prompts dropped because all their answers score the same
_UNREAD = 0.10  # of judgments, or of meta-judgments
_CUT_OFF = 0.10  # of answers
_FLIPPED = 0.50  # of pairs of judgments: Table 5 has 44 % in the first iteration and 68 % in the second
_FEW_PAIRS = 0.50  # actor pairs per prompt
_LONGER = 1.10  # chosen over rejected, mean characters


def findings(
    records: Sequence[PromptRecord], pairs: PairSet, low: float = 0.0, high: float = 5.0
) -> tuple[Finding, ...]:
    """What is worth a warning, in a fixed order; ``low`` and ``high`` are the ends of the rubric's scale."""
    checks = (
        _saturation(records, low, high),
        _many_ties(records, pairs),
        _unread("unparsed_judgments", "judgments", "score", judgment_counts(records)),
        _unread("unparsed_meta_judgments", "meta-judgments", "winner", verdict_counts(records)),
        _cut_off(records),
        _flips(records),
        _few_pairs(records, pairs),
        _longer("length_drift", "answer", pairs.actor),
        _longer("judgment_length_drift", "judgment", pairs.judge),
        _judge_pairs_dominate(pairs),
    )
    return tuple(finding for finding in checks if finding is not None)


def _saturation(records: Sequence[PromptRecord], low: float, high: float) -> Finding | None:
    readings = (judgment.reading for judgment in _judgments(records))
    scores = [reading.score for reading in readings if isinstance(reading, Scored)]
    edge = high - (high - low) / 10
    share = _share(sum(score >= edge for score in scores), len(scores))
    if share is None or share <= _SATURATED:
        return None
    text = f"{share:.0%} of {len(scores)} scores are {edge:g} or more: the judge can hardly tell good answers apart"
    return Finding("saturation", text)


def _many_ties(records: Sequence[PromptRecord], pairs: PairSet) -> Finding | None:
    tied = sum(drop.kind == "actor" and drop.reason == "all_scores_equal" for drop in pairs.dropped)
    share = _share(tied, len(records))
    if share is None or share <= _TIED_PROMPTS:
        return None
    return Finding("many_ties", f"all answers score the same for {tied} of {len(records)} prompts: these give no pair")


def _unread(code: str, what: str, wanted: str, counts: Counts) -> Finding | None:
    share = _share(counts.unread, counts.total)
    if share is None or share <= _UNREAD:
        return None
    causes = f"{counts.missing} without one, {counts.out_of_range} out of range, {counts.contradictory} contradictory"
    text = f"{share:.0%} of {counts.total} {what} hold no {wanted}: {causes}, {counts.truncated} cut off"
    return Finding(code, text)


def _cut_off(records: Sequence[PromptRecord]) -> Finding | None:
    ends = [candidate.finish for record in records for candidate in record.candidates_K]
    share = _share(ends.count("length"), len(ends))
    if share is None or share <= _CUT_OFF:
        return None
    return Finding("answers_cut_off", f"{share:.0%} of {len(ends)} answers were cut off by the token limit: raise it")


def _flips(records: Sequence[PromptRecord]) -> Finding | None:
    split = position_statistics(records).all
    if split.flipped is None or split.first_wins is None or split.flipped <= _FLIPPED:
        return None
    text = f"{split.flipped:.0%} of {split.pairs} pairs of judgments get another winner when their order is swapped"
    return Finding("position_flips", f"{text}; the first one shown wins {split.first_wins:.0%}")


def _few_pairs(records: Sequence[PromptRecord], pairs: PairSet) -> Finding | None:
    share = _share(len(pairs.actor), len(records))
    if share is None or share >= _FEW_PAIRS:
        return None
    return Finding("few_pairs", f"only {len(pairs.actor)} of {len(records)} prompts give an actor pair")


def _longer(code: str, what: str, pairs: Sequence[PreferencePair]) -> Finding | None:
    chosen, rejected = (sum(map(len, side)) for side in ([p.chosen for p in pairs], [p.rejected for p in pairs]))
    if chosen <= _LONGER * rejected:
        return None
    lengths = f"{chosen / len(pairs):.0f} characters on average, the rejected one {rejected / len(pairs):.0f}"
    return Finding(code, f"the chosen {what} has {lengths}: training on these pairs makes {what}s longer")


def _judge_pairs_dominate(pairs: PairSet) -> Finding | None:
    if len(pairs.judge) <= len(pairs.actor):
        return None
    text = f"{len(pairs.judge)} judge pairs against {len(pairs.actor)} actor pairs: training is mostly about judging"
    return Finding("judge_pairs_dominate", text)


# --- What became of one iteration's records: the figures of ``pairs/summary.json``.


def summarize(t: int, records: Sequence[PromptRecord], pairs: PairSet, rubric: Rubric) -> dict[str, object]:
    """Counts, reasons of drops, position statistics, readings, findings and mean lengths (characters)."""
    reasons: dict[str, Counter[str]] = {"actor": Counter(), "judge": Counter()}
    for drop in pairs.dropped:
        reasons[drop.kind][drop.reason] += 1
    candidates = [answer for record in records for answer in record.candidates_K]
    return {
        "iteration": t,
        "prompts": len(records),
        "actor_pairs": len(pairs.actor),
        "judge_pairs": len(pairs.judge),
        "dropped": {kind: dict(counts) for kind, counts in reasons.items()},
        "weights": asdict(pairs.weights),
        "position": position_statistics(records).as_dict(),
        "readings": readings_summary(records),
        "findings": [asdict(finding) for finding in findings(records, pairs, rubric.low, rubric.high)],
        "chosen_chars": _mean_length(pair.chosen for pair in pairs.actor),
        "rejected_chars": _mean_length(pair.rejected for pair in pairs.actor),
        "answer_chars": _mean_length(answer.text for answer in candidates),
        "judgment_chars": _mean_length(judgment.text for answer in candidates for judgment in answer.judgments_N),
    }


def _mean_length(texts: Iterable[str]) -> float | None:
    lengths = [len(text) for text in texts]
    return fmean(lengths) if lengths else None
