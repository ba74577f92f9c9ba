"""Statistics of an iteration's records and pairs: the content of ``pairs/summary.json``.

The position statistics are those of Meta-Rewarding table 5, which leaves its terms undefined. Here:

* A pair is two judgments of one answer that were compared in both orders, with a winner both times.
* ``flipped``: the share of pairs with two different winners, where the verdict followed the position.
* ``first_wins``: among the comparisons of these pairs (two each), the share won by the judgment shown first.
* ``higher_score_wins``: among pairs with different scores that are not flipped, the share won by the higher score.
  (A flipped pair has one win for each side, so it would pull the share to one half.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from metareward.method.pairs import iteration_weights, of_kind
from metareward.method.scores import TOLERANCE
from metareward.types import Candidate, Dropped, Judgment, MetaJudgment, PreferencePair, PromptRecord, Scored, Won


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
class Compared:
    """The comparisons of one answer's judgments, and these judgments' scores by index."""

    prompt_id: str
    meta: tuple[MetaJudgment, ...]
    scores: Mapping[int, float]


def disputes(records: Iterable[PromptRecord]) -> Iterator[Compared]:
    """The comparisons of every disputed answer."""
    for record in records:
        if record.dispute is not None:
            answer = next(each for each in record.candidates_K if each.index == record.dispute.candidate)
            yield Compared(record.prompt.id, record.dispute.meta, scores_by_index(answer))


def scores_by_index(answer: Candidate) -> dict[int, float]:
    """The scores of the answer's readable judgments by the judgments' indices."""
    readings = ((judgment.index, judgment.reading) for judgment in answer.judgments_N)
    return {index: reading.score for index, reading in readings if isinstance(reading, Scored)}


@dataclass(frozen=True, slots=True)
class BothOrders:
    """Two judgments, each of which won or lost in both orders. ``lead``: the score of ``one`` minus the ``other``'s."""

    lead: float
    first_wins: int
    one_wins: int

    @property
    def flipped(self) -> bool:
        """Whether the winner changed with the order."""
        return self.one_wins == 1

    @property
    def higher_score_won(self) -> bool:
        """Whether the judgment with the higher score won in both orders; meaningless for equal scores and flips."""
        return (self.lead > 0) == (self.one_wins == 2)


def compared_in_both_orders(compared: Compared) -> Iterator[BothOrders]:
    """The pairs of judgments with a winner in both orders."""
    won = {(meta.first, meta.second): meta.verdict.winner for meta in compared.meta if isinstance(meta.verdict, Won)}
    for (one, other), winner in won.items():
        back = won.get((other, one))
        if one < other and back is not None:
            first_wins = (winner == one) + (back == other)
            lead = compared.scores[one] - compared.scores[other]
            yield BothOrders(lead, first_wins, (winner, back).count(one))


def position_statistics(records: Iterable[PromptRecord]) -> PositionStatistics:
    """The statistics of every pair of judgments compared in ``records``."""
    pairs = [pair for each in disputes(records) for pair in compared_in_both_orders(each)]
    same = [pair for pair in pairs if abs(pair.lead) <= TOLERANCE]
    different = [pair for pair in pairs if abs(pair.lead) > TOLERANCE]
    unflipped = [pair for pair in different if not pair.flipped]
    higher = _share(sum(pair.higher_score_won for pair in unflipped), len(unflipped))
    lower = None if higher is None else 1 - higher
    return PositionStatistics(higher, lower, _split(same), _split(different), _split(pairs))


def _split(pairs: Sequence[BothOrders]) -> PositionSplit:
    flipped = sum(pair.flipped for pair in pairs)
    first = sum(pair.first_wins for pair in pairs)
    return PositionSplit(len(pairs), _share(flipped, len(pairs)), _share(first, 2 * len(pairs)))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def readings_summary(records: Iterable[PromptRecord]) -> dict[str, int]:
    """The number of judgments that are ``scored``, and of the others by the reason why there is no score."""
    readings = [judgment.reading for judgment in _judgments(records)]
    counts = Counter(reading.reason for reading in readings if not isinstance(reading, Scored))
    return {"scored": len(readings) - counts.total(), **dict(sorted(counts.items()))}


def _judgments(records: Iterable[PromptRecord]) -> Iterator[Judgment]:
    return (judgment for record in records for candidate in record.candidates_K for judgment in candidate.judgments_N)


def summarize(
    t: int,
    records: Sequence[PromptRecord],
    pairs: Sequence[PreferencePair],
    dropped: Sequence[Dropped],
) -> dict[str, object]:
    """Iteration ``t``'s counts, drop reasons, position statistics, parse results and mean lengths."""
    reasons: dict[str, Counter[str]] = {"actor": Counter(), "judge": Counter()}
    for drop in dropped:
        reasons[drop.kind][drop.reason] += 1
    actor = of_kind(pairs, "actor")
    candidates = [answer for record in records for answer in record.candidates_K]
    return {
        "iteration": t,
        "prompts": len(records),
        "actor_pairs": len(actor),
        "judge_pairs": len(pairs) - len(actor),
        "dropped": {kind: dict(counts) for kind, counts in reasons.items()},
        "weights": asdict(iteration_weights(records)),
        "position": asdict(position_statistics(records)),
        "readings": readings_summary(records),
        "chosen_chars": _mean_length(pair.chosen for pair in actor),
        "rejected_chars": _mean_length(pair.rejected for pair in actor),
        "answer_chars": _mean_length(answer.text for answer in candidates),
        "judgment_chars": _mean_length(judgment.text for judgment in _judgments(records)),
    }


def _mean_length(texts: Iterable[str]) -> float | None:
    lengths = [len(text) for text in texts]
    return fmean(lengths) if lengths else None
