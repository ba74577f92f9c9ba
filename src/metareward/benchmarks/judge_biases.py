"""What a judge leans to: the place where an answer stands, its length, the judge's own answers, the top of its scale.

* position: of the readable verdicts that name a winner, the share for the output shown first (1/2 is unbiased); of the
  pairs with two different winners, which place won both times.
* length: of the verdicts that name a winner, the share for the longer output, over pairs whose lengths differ at all
  and over those that differ by more than 30 characters (AlpacaEval's rule); and by how much the winner is longer, as a
  share of the mean length. The same of the labels stands beside it: better answers may well be longer.
* self-preference: over the pairs where exactly one output is the judge's own, how often the judge prefers it and how
  often the label does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from metareward.benchmarks.judge_files import Item, Winner
from metareward.benchmarks.judge_pairs import JudgedPair, mean

_CLEARLY = 30  # characters


@dataclass(frozen=True, slots=True)
class PositionBias:
    """``n`` verdicts name a winner; flips are pairs where the same place won in both orders."""

    p_first_shown: float | None
    n: int
    flips_to_first_shown: int
    flips_to_second_shown: int


@dataclass(frozen=True, slots=True)
class LengthBias:
    """Shares of verdicts for the longer output, and the winner's mean excess over the mean length of the two."""

    p_longer: float | None
    n: int
    p_longer_by_30: float | None
    n_by_30: int
    winner_length_excess: float | None


@dataclass(frozen=True, slots=True)
class SelfPreference:
    """Over ``n`` verdicts on pairs with one output by ``own``: the shares that prefer it."""

    own: str
    judge: float | None
    label: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Biases:
    """All that can be said; ``self_preference`` is None where nobody's outputs were named."""

    position: PositionBias
    length: LengthBias
    label_length: LengthBias
    self_preference: SelfPreference | None

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def biases(judged: Sequence[JudgedPair], own: str | None = None) -> Biases:
    """The leanings of one judge; ``own`` is the generator whose outputs are its own."""
    return Biases(
        position=position_bias(judged),
        length=_length(_decided(judged)),
        label_length=_length((pair, pair.label) for pair in judged if pair.label),
        self_preference=None if own is None else _self_preference(judged, own),
    )


def _decided(judged: Sequence[JudgedPair]) -> Iterator[tuple[JudgedPair, Winner]]:
    return ((pair, winner) for pair in judged for winner in pair.winners if winner)


def position_bias(judged: Sequence[JudgedPair]) -> PositionBias:
    """Over the pairs judged in both orders; in the second order output 2 is shown first."""
    both = [pair for pair in judged if len(pair.winners) == 2]
    first = [winner == shown for pair in both for shown, winner in zip((1, 2), pair.winners, strict=True) if winner]
    return PositionBias(
        p_first_shown=mean(first),
        n=len(first),
        flips_to_first_shown=sum(pair.winners == (1, 2) for pair in both),
        flips_to_second_shown=sum(pair.winners == (2, 1) for pair in both),
    )


def _length(verdicts: Iterable[tuple[JudgedPair, Winner]]) -> LengthBias:
    rows = [(pair.chars[winner - 1], pair.chars[2 - winner]) for pair, winner in verdicts]
    longer = [winner > loser for winner, loser in rows if winner != loser]
    clearly = [winner > loser for winner, loser in rows if abs(winner - loser) > _CLEARLY]
    excess = [2 * (winner - loser) / (winner + loser) for winner, loser in rows if winner + loser]
    return LengthBias(mean(longer), len(longer), mean(clearly), len(clearly), mean(excess))


def _self_preference(judged: Sequence[JudgedPair], own: str) -> SelfPreference:
    mixed = [(pair, _place(pair, own)) for pair in judged]
    rows = [(pair, place, winner) for pair, place in mixed if place for winner in pair.winners if winner]
    return SelfPreference(
        own=own,
        judge=mean([winner == place for _, place, winner in rows]),
        label=mean([pair.label == place for pair, place, _ in rows if pair.label]),
        n=len(rows),
    )


def _place(pair: JudgedPair, own: str) -> int:
    """Which output is the judge's own: 1, 2, or 0 for neither or both."""
    names = pair.generators or ("", "")
    return names.index(own) + 1 if names.count(own) == 1 else 0


def score_histogram(items: Sequence[Item]) -> dict[str, int]:
    """How often each single score was given, in the order of the scores."""
    counts = Counter(score for item in items for each in item.responses for score in each.scores_N if score is not None)
    return {f"{score:g}": counts[score] for score in sorted(counts)}
