"""Chooses examples so that length teaches nothing: in a prompt the better answer is longer as often as shorter.

A judge that is trained on labels of which the longer answer is mostly the better one learns to love length. Examples of
one group (answers to a prompt, or to one question about them) are compared by their labels. With x = ln(characters of
the better / characters of the worse):

1. In each group, the largest set of answers that is balanced in itself: it consists of disjoint (better, worse) pairs,
   and of all its comparisons as many have x > 0 as x < 0. Of equally large sets the one with the smallest |sum of x|.
2. A group without such a set gives one pair, that with the smallest |x|; where it has pairs with x > 0 and with
   x < 0, the sign that is rarer among all groups. Pairs with x > 0 are matched with pairs of other groups with x < 0
   whose |x| differs by at most `CALIPER`, as many as possible.
3. Sets and matched pairs are dropped until, over all groups, examples of each label are longer than those of other
   labels in 50 % of the comparisons, plus or minus `MOST_SKEW` or, in small sets, one standard error; and until no
   label has more than its share.

The rest is dropped and counted. So "longer wins" orders exactly half of the comparisons within groups, and of two
labels in a group there are equally many examples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from metareward.method.stats import Interval, mean_interval
from metareward.seeds import derive

CALIPER = (
    0.25  # the largest difference of |x| of two matched pairs, so one length ratio is at most 1.28 times the other
)
MOST_SKEW = 0.05  # how far the share of comparisons in which a label's examples are longer may be from one half
_MOST_OF_GROUP = 10  # examples of a group among which all sets are tried
_DRAWS = 2000
_ROUNDING = 1e-9

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Labelled:
    """An example that could be trained on: its label (higher is better) and its answer's length in characters.

    Examples of the same ``prompt_id`` and ``question`` are compared with each other. ``id`` is unique.
    """

    id: str
    prompt_id: str
    label: float
    chars: int
    question: str = ""

    @property
    def group(self) -> tuple[str, str]:
        """What it is compared within."""
        return self.prompt_id, self.question


Pair = tuple[Labelled, Labelled]  # the better and the worse one


@dataclass(frozen=True, slots=True)
class Balanced:
    """The pairs that are kept, which are disjoint, and why the other examples are not: how many, by reason.

    ``one_label``: nothing in their group to compare them with. ``surplus``: not in the set or pair of their group.
    ``unmatched``: no pair with the opposite direction of about the same length ratio. ``skewed``: step 3.
    """

    pairs: tuple[Pair, ...]
    dropped: Mapping[str, int]

    @property
    def ids(self) -> frozenset[str]:
        """The examples that are kept."""
        return frozenset(example.id for pair in self.pairs for example in pair)


def balance_lengths(
    examples: Sequence[Labelled], seed: int, max_label_share: float = 1.0, over_groups: bool = True
) -> Balanced:
    """The examples that are kept; see the module. ``seed`` decides between examples that are equally good.

    ``max_label_share``: the largest share of one label, or 1 / (number of labels) where that is more. Without
    ``over_groups`` there is no step 3: enough where answers are compared only with others to the same prompt.
    """
    groups: dict[tuple[str, str], list[Labelled]] = {}
    for each in examples:
        groups.setdefault(each.group, []).append(each)
    dropped: Counter[str] = Counter()
    units: list[tuple[Pair, ...]] = []
    single: list[list[Pair]] = []
    for group in sorted(groups, key=lambda name: (derive(seed, "length balance", *name), name)):
        those = groups[group]
        if len({each.label for each in those}) < 2:
            dropped["one_label"] += len(those)
            continue
        those = sorted(those, key=lambda each: (derive(seed, "example", each.id), each.id))[:_MOST_OF_GROUP]
        dropped["surplus"] += len(groups[group]) - len(those)
        chosen = _balanced_set(those)
        if chosen:
            units.append(chosen)
        else:
            single.append(_pairs(those))
        dropped["surplus"] += len(those) - 2 * max(1, len(chosen))
    longer, shorter = _one_each(single)
    matched = match_opposite(longer, shorter)
    dropped["unmatched"] += 2 * (len(single) - 2 * len(matched))
    units += matched
    kept = _within_bounds(units, max_label_share) if over_groups else units
    dropped["skewed"] += 2 * (sum(map(len, units)) - sum(map(len, kept)))
    return Balanced(tuple(pair for unit in kept for pair in unit), {name: n for name, n in dropped.items() if n})


def pair_labels(examples: Sequence[Labelled], seed: int) -> Balanced:
    """Disjoint pairs of different labels in each group, as many as there can be, whatever their lengths: a control."""
    groups: dict[tuple[str, str], list[Labelled]] = {}
    for each in examples:
        groups.setdefault(each.group, []).append(each)
    pairs: list[Pair] = []
    for those in groups.values():
        ordered = sorted(those, key=lambda each: (each.label, derive(seed, "example", each.id)))
        while len({each.label for each in ordered}) > 1:
            most = Counter(each.label for each in ordered).most_common()
            one, other = (next(each for each in ordered if each.label == label) for label, _ in most[:2])
            ordered = [each for each in ordered if each not in (one, other)]
            pairs.append((one, other) if one.label > other.label else (other, one))
    left = len(examples) - 2 * len(pairs)
    return Balanced(tuple(pairs), {"surplus": left} if left else {})


def log_ratio(pair: Pair) -> float:
    """ln(characters of the better / characters of the worse)."""
    better, worse = pair
    return math.log(better.chars / worse.chars)


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


# --- step 1: sets that are balanced in themselves ---


@lru_cache(maxsize=16)
def _subsets(count: int) -> Array:
    """All subsets of even size of ``count`` examples, as rows of 0 and 1, the largest first."""
    numbers = np.arange(1, 2**count)
    members = (numbers[:, None] >> np.arange(count) & 1).astype(np.float64)
    sizes = members.sum(axis=1)
    even = members[sizes % 2 == 0]
    return np.ascontiguousarray(even[np.argsort(-even.sum(axis=1), kind="stable")])


def _balanced_set(examples: Sequence[Labelled]) -> tuple[Pair, ...]:
    """The pairs of the largest set in which the better one is longer as often as shorter; none if there is no set."""
    members = _subsets(len(examples))
    labels = np.array([each.label for each in examples], dtype=np.float64)
    logs = np.log([each.chars for each in examples])
    order, difference = np.sign(labels[:, None] - labels), logs[:, None] - logs
    # Every comparison is counted twice, from both sides.
    direction = ((members @ (order * np.sign(difference))) * members).sum(axis=1)
    lean = np.abs(((members @ (order * difference)) * members).sum(axis=1))
    sizes = members.sum(axis=1)
    most = np.stack([members[:, labels == label].sum(axis=1) for label in np.unique(labels)]).max(axis=0)
    possible = np.flatnonzero((direction == 0) & (most <= sizes / 2))
    if not possible.size:
        return ()
    largest = possible[sizes[possible] == sizes[possible[0]]]
    chosen = members[largest[np.argmin(np.round(lean[largest], 9))]]
    found = sorted((each for each, is_in in zip(examples, chosen, strict=True) if is_in), key=lambda each: each.label)
    half = len(found) // 2  # no label has more than half, so two examples that are half of them apart differ
    return tuple(zip(found[half:], found[:half], strict=True))


# --- step 2: single pairs, matched with opposite ones ---


def _pairs(examples: Sequence[Labelled]) -> list[Pair]:
    """All comparisons, the pairs of the most similar lengths first."""
    found = [(one, other) for one in examples for other in examples if one.label > other.label]
    return sorted(found, key=lambda pair: round(abs(log_ratio(pair)), 9))


def _one_each(groups: Sequence[Sequence[Pair]]) -> tuple[list[Pair], list[Pair]]:
    """A pair of each group: those whose better one is longer, and those whose better one is shorter."""
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    flexible: list[tuple[Pair, Pair]] = []
    for pairs in groups:
        longer, shorter = (next((pair for pair in pairs if _sign(log_ratio(pair)) == s), None) for s in (1, -1))
        if longer is not None and shorter is not None:
            flexible.append((longer, shorter))
        else:
            sides[longer is None].extend(pairs[:1])
    # As many to the longer ones as make both sides equal: those whose longer pair has the more similar lengths.
    flexible.sort(key=lambda both: abs(log_ratio(both[0])) - abs(log_ratio(both[1])))
    count = min(len(flexible), max(0, (len(flexible) + len(sides[1]) - len(sides[0])) // 2))
    longer_side = [*sides[0], *(longer for longer, _ in flexible[:count])]
    return longer_side, [*sides[1], *(shorter for _, shorter in flexible[count:])]


def match_opposite(longer: Sequence[Pair], shorter: Sequence[Pair]) -> list[tuple[Pair, ...]]:
    """As many matches of a pair of each side as `CALIPER` allows; each pair is in one of them at most."""
    left, right = (sorted(side, key=lambda pair: abs(log_ratio(pair)), reverse=True) for side in (longer, shorter))
    matches: list[tuple[Pair, ...]] = []
    while left and right:
        difference = abs(log_ratio(left[-1])) - abs(log_ratio(right[-1]))
        if abs(difference) <= CALIPER:
            matches.append((left.pop(), right.pop()))
        else:
            (right if difference > 0 else left).pop()
    return matches


# --- step 3: bounds over all groups ---


def _within_bounds(units: Sequence[tuple[Pair, ...]], max_label_share: float) -> list[tuple[Pair, ...]]:
    """``units`` without those that must go until each label's lengths and share are in bounds.

    In each round that one goes whose absence lowers the sum of what is out of bounds most, for each of its examples.
    """
    kept = list(units)
    while kept:
        examples = [each for unit in kept for pair in unit for each in pair]
        owners = np.repeat(np.arange(len(kept)), [2 * len(unit) for unit in kept])
        names, labels = np.unique([each.label for each in examples], return_inverse=True)
        ranks = _percentiles(np.array([each.chars for each in examples], dtype=np.float64))
        counts_UL, sums_UL = np.zeros((2, len(kept), len(names)))
        np.add.at(counts_UL, (owners, labels), 1.0)
        np.add.at(sums_UL, (owners, labels), ranks)
        counts_L, sums_L = counts_UL.sum(axis=0), sums_UL.sum(axis=0)
        (now,) = _excess(counts_L[None], sums_L[None], max_label_share)
        if now <= _ROUNDING:
            break
        gain = (now - _excess(counts_L - counts_UL, sums_L - sums_UL, max_label_share)) / counts_UL.sum(axis=1)
        del kept[int(np.argmax(np.round(gain, 9)))]
    return kept


def _excess(counts_BL: Array, sums_BL: Array, max_label_share: float) -> Array:
    """By how much labels are out of bounds, summed over the labels, in each of B sets.

    ``counts_BL``: their examples; ``sums_BL``: the sums of these examples' percentiles of length. A label's skew is the
    share of comparisons with other labels in which its examples are longer, minus 1/2; its bound is `MOST_SKEW`, or one
    standard error of the share without any skew (Mann-Whitney).
    """
    total_B1, all_B1 = counts_BL.sum(axis=1, keepdims=True), sums_BL.sum(axis=1, keepdims=True)
    others_BL = total_B1 - counts_BL
    with np.errstate(divide="ignore", invalid="ignore"):
        skew_BL = np.abs(sums_BL / counts_BL - (all_B1 - sums_BL) / others_BL)
        error_BL = np.sqrt((total_B1 + 1) / (12 * counts_BL * others_BL))
        present_B1 = (counts_BL > 0).sum(axis=1, keepdims=True)
        crowd_BL = counts_BL / total_B1 - np.maximum(max_label_share, 1 / present_B1)
        excess_BL = np.maximum(0.0, skew_BL - np.maximum(MOST_SKEW, error_BL)) + np.maximum(0.0, crowd_BL)
    return np.asarray(np.nan_to_num(excess_BL, nan=0.0, posinf=0.0).sum(axis=1), dtype=np.float64)


def _percentiles(values: Array) -> Array:
    """Mean ranks divided by the number of values, so that a difference of means is a share of comparisons minus 1/2."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[place] / len(values), dtype=np.float64)


# --- the report ---


@dataclass(frozen=True, slots=True)
class LengthCheck:
    """What length alone tells about the labels of a set: of the comparisons in the groups, how often the better one is
    ``longer``, ``equal`` or ``shorter``, and ``accuracy``, of the rule "longer wins" with equal lengths counted 1/2.

    ``by_label``: in which share of the comparisons with other labels, over all groups, an example of the label is
    longer. The interval is over resampled prompts; None without comparisons.
    """

    longer: int
    equal: int
    shorter: int
    accuracy: Interval | None
    by_label: Mapping[str, float]

    def summary(self, name: str) -> dict[str, object]:
        """For ``summary.json``, under names that end in ``name``."""
        found = self.accuracy
        return {
            f"longer_wins_{name}": {
                "accuracy": found and round(found.mean, 4),
                "low": found and round(found.low, 4),
                "high": found and round(found.high, 4),
                "longer": self.longer,
                "equal": self.equal,
                "shorter": self.shorter,
            },
            f"longer_by_label_{name}": {label: round(share, 4) for label, share in self.by_label.items()},
        }


def check_lengths(examples: Sequence[Labelled], seed: int = 0) -> LengthCheck:
    """What length alone tells about the labels of ``examples``."""
    groups: dict[tuple[str, str], list[Labelled]] = {}
    for each in examples:
        groups.setdefault(each.group, []).append(each)
    signs = [(prompt_id, _sign(log_ratio(p))) for (prompt_id, _), those in groups.items() for p in _pairs(those)]
    counts = Counter(sign for _, sign in signs)
    values = [(1 + sign) / 2 for _, sign in signs]
    accuracy = mean_interval(values, [name for name, _ in signs], seed, _DRAWS) if signs else None
    labels = np.array([each.label for each in examples], dtype=np.float64)
    ranks = _percentiles(np.array([each.chars for each in examples], dtype=np.float64))
    names = np.unique(labels) if len(set(labels)) > 1 else ()
    by_label = {
        f"{label:g}": float(0.5 + ranks[labels == label].mean() - ranks[labels != label].mean()) for label in names
    }
    return LengthCheck(counts[1], counts[0], counts[-1], accuracy, by_label)
