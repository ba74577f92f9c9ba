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

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

from metareward.evaluation.judge_quality.data import Item, Pair, PairVerdicts, Winner
from metareward.evaluation.judge_quality.metrics import JudgedPair, mean
from metareward.evaluation.rows import Row, read_rows

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


# --- RewardBench's accuracy by subset, section and overall (allenai/reward-bench, rewardbench/constants.py).
#
# Of each row it is known which answer was chosen and which rejected. A judge that scores is right when the chosen one
# scores higher, and a tie is wrong; one that names a winner is right, wrong, or 1/2 where it names neither. A judgment
# that couldn't be read is 1/2, too, and counted. A section is the mean of its subsets, weighted by upstream's number of
# examples (math-prm counts as much as all code); the overall score is the plain mean of the sections.


SECTIONS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}


@dataclass(frozen=True, slots=True)
class Choice:
    """One row: what the judge earned, and the lengths of the chosen and the rejected answer (characters)."""

    subset: str
    section: str | None
    credit: float
    readable: bool
    chars: tuple[int, int]


@dataclass(frozen=True, slots=True)
class SectionScores:
    """Accuracies in [0, 1]. ``overall`` is the mean of the sections there are; ``missing`` names absent subsets."""

    overall: float | None
    sections: Mapping[str, float]
    subsets: Mapping[str, float]
    counts: Mapping[str, int]
    missing: tuple[str, ...]
    n_unparsable: int

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def read_choices(path: Path) -> tuple[Choice, ...]:
    """Rows ``{"subset", "chosen", "rejected"}`` with ``score_chosen`` and ``score_rejected``, or with a ``winner``
    (``chosen``, ``rejected``, ``tie`` or null). A subset that isn't upstream's may name its ``section``."""
    return tuple(_choice(row) for row in read_rows(path))


def _choice(row: Row) -> Choice:
    earned, readable = _by_score(row) if "score_chosen" in row.fields else _by_name(row)
    section = row.text("section") if row.has("section") else None
    return Choice(row.text("subset"), section, earned, readable, (len(row.text("chosen")), len(row.text("rejected"))))


def _by_score(row: Row) -> tuple[float, bool]:
    chosen, rejected = row.optional_number("score_chosen"), row.optional_number("score_rejected")
    if chosen is None or rejected is None:
        return 0.5, False
    return float(chosen > rejected), True


def _by_name(row: Row) -> tuple[float, bool]:
    if "winner" not in row.fields:
        raise row.wrong("winner", "is missing", "give it, or score_chosen and score_rejected")
    winner = row.fields["winner"]
    if winner not in ("chosen", "rejected", "tie", None):
        raise row.wrong("winner", "is none of the known words", "give chosen, rejected, tie or null")
    return {"chosen": 1.0, "rejected": 0.0}.get(winner, 0.5), winner is not None


def section_scores(choices: Sequence[Choice]) -> SectionScores:
    """The accuracies of one judge."""
    by_subset: dict[str, list[Choice]] = {}
    for choice in choices:
        by_subset.setdefault(choice.subset, []).append(choice)
    subsets = {name: fmean(each.credit for each in those) for name, those in by_subset.items()}
    counts = {name: len(those) for name, those in by_subset.items()}
    own = {name: those[0].section or name for name, those in by_subset.items()}
    sections = combine(subsets, counts, own)
    return SectionScores(
        overall=fmean(sections.values()) if sections else None,
        sections=sections,
        subsets=subsets,
        counts=counts,
        missing=tuple(name for weights in SECTIONS.values() for name in weights if name not in subsets),
        n_unparsable=sum(not choice.readable for choice in choices),
    )


def combine(subsets: Mapping[str, float], counts: Mapping[str, int], sections: Mapping[str, str]) -> dict[str, float]:
    """Accuracies by section. Upstream's subsets have upstream's weights; others weigh by ``counts`` in ``sections``."""
    weights = {name: (section, weight) for section, those in SECTIONS.items() for name, weight in those.items()}
    found: dict[str, list[tuple[float, int]]] = {}
    for name, accuracy in subsets.items():
        section, weight = weights.get(name) or (sections[name], counts[name])
        found.setdefault(section, []).append((accuracy, weight))
    return {
        section: sum(accuracy * weight for accuracy, weight in those) / sum(weight for _, weight in those)
        for section, those in found.items()
    }


# --- The two judges that every judge is shown next to: one that only counts characters, and chance.
#
# Human preferences go with length: on OpenAssistant's English trees, "score = number of characters" orders about 70 %
# of
# the pairs as humans do. A trained judge means something only beside that number.


LENGTH, CHANCE = "length only", "chance"


def graded_by_length(items: Sequence[Item]) -> tuple[Item, ...]:
    """``items`` with the number of characters as every response's only score."""
    return tuple(
        replace(item, responses=tuple(replace(each, scores_N=(float(len(each.text)),)) for each in item.responses))
        for item in items
    )


def chosen_by_length(pairs: Sequence[Pair], orders: int) -> tuple[PairVerdicts, ...]:
    """The longer output wins every pair, in as many orders as the judge beside it was asked; equal lengths tie."""
    return tuple(PairVerdicts(pair.item.id, (_longer(pair),) * orders) for pair in pairs)


def _longer(pair: Pair) -> Winner:
    one, other = (len(response.text) for response in pair.item.responses)
    return 0 if one == other else 1 if one > other else 2


def choices_by_length(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """The longer answer scores higher; a tie is wrong, as for any judge that scores."""
    return tuple(replace(each, credit=float(each.chars[0] > each.chars[1]), readable=True) for each in choices)


def chance_at_rankings(items: Sequence[Item]) -> Mapping[str, float | None]:
    """What random, different scores are expected to reach in the measures of `ranking_quality`."""
    ranks = [[each.rank for each in item.responses if each.rank is not None] for item in items]
    used = [those for those in ranks if len(those) > 1]
    firsts = [those.count(min(those)) for those in used]
    sizes = [len(those) for those in used]
    return {
        "pairwise_accuracy_ties_half": 0.5,
        "pairwise_accuracy_without_ties": 0.5,
        "exact_match": mean(
            [1 / math.factorial(len(those)) if len(set(those)) == len(those) else 0.0 for those in used]
        ),
        "five_best": sum(firsts) / sum(sizes) if sizes else None,
        "best_of_match_ties_shared": mean([n / size for n, size in zip(firsts, sizes, strict=True)]),
        "mean_spearman_defined": 0.0,
        "mean_kendall_tau_b_defined": 0.0,
    }


def chance_at_pairs(judged: Sequence[JudgedPair]) -> Mapping[str, float | None]:
    """What a coin thrown for every verdict is expected to reach in the measures of `pair_quality`."""
    both = any(len(pair.winners) == 2 for pair in judged)
    decided = sum(pair.label != 0 for pair in judged)
    return {
        "accuracy": 0.5,
        "accuracy_both_orders": 0.25 if both else None,
        "accuracy_readable": 0.5,
        "accuracy_without_ties": 0.5,
        "accuracy_three_classes": decided / len(judged) / 2 if judged else None,
        "positional_agreement": 0.5 if both else None,
        "positional_agreement_readable": 0.5 if both else None,
        "kappa": 0.0,
        "kappa_between_orders": 0.0 if both else None,
    }
