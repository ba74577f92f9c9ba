"""Choosing examples so that length teaches nothing: the promises hold for any labels and lengths."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metareward.data.length_balance import (
    CALIPER,
    MOST_SKEW,
    Balanced,
    Labelled,
    balance_lengths,
    check_lengths,
    log_ratio,
    match_opposite,
    pair_labels,
)


@st.composite
def labelled(draw: st.DrawFn) -> list[Labelled]:
    """Groups of a few examples; labels and lengths from few values, so that there are ties of both."""
    labels = st.sampled_from(draw(st.sampled_from([(0.0, 1.0), (0.0, 2.0, 3.0, 5.0)])))
    found = []
    for number in range(draw(st.integers(0, 9))):
        sizes = draw(st.lists(st.tuples(labels, st.integers(1, 12).map(lambda n: n * n)), max_size=6))
        found += [Labelled(f"p{number}/{i}", f"p{number}", *each) for i, each in enumerate(sizes)]
    return found


def groups(examples: Sequence[Labelled]) -> list[list[Labelled]]:
    found: dict[tuple[str, str], list[Labelled]] = {}
    for each in examples:
        found.setdefault(each.group, []).append(each)
    return list(found.values())


def kept_of(examples: Sequence[Labelled], balanced: Balanced) -> list[Labelled]:
    return [each for each in examples if each.id in balanced.ids]


def longer_minus_shorter(examples: Sequence[Labelled]) -> int:
    """By counting, over all comparisons within groups."""
    found = 0
    for group in groups(examples):
        for one, other in permutations(group, 2):
            if one.label > other.label:
                found += (one.chars > other.chars) - (one.chars < other.chars)
    return found


@settings(max_examples=30, deadline=None)
@given(labelled(), st.integers(0, 3))
def test_the_better_one_is_longer_as_often_as_shorter(examples: list[Labelled], seed: int) -> None:
    balanced = balance_lengths(examples, seed)
    kept = kept_of(examples, balanced)
    assert longer_minus_shorter(kept) == 0
    assert len(kept) == len(balanced.ids) == 2 * len(balanced.pairs)  # disjoint pairs, of examples that were given
    assert all(better.label > worse.label and better.group == worse.group for better, worse in balanced.pairs)
    found = check_lengths(kept)
    assert found.longer == found.shorter and (found.accuracy is None or found.accuracy.mean == pytest.approx(0.5))


@settings(max_examples=30, deadline=None)
@given(labelled())
def test_what_is_dropped_is_counted(examples: list[Labelled]) -> None:
    balanced = balance_lengths(examples, 0)
    assert len(balanced.ids) + sum(balanced.dropped.values()) == len(examples)
    same = [each for group in groups(examples) if len({e.label for e in group}) == 1 for each in group]
    assert balanced.dropped.get("one_label", 0) == len(same)


@settings(max_examples=30, deadline=None)
@given(labelled())
def test_of_two_labels_a_group_keeps_equally_many(examples: list[Labelled]) -> None:
    for group in groups(kept_of(examples, balance_lengths(examples, 0))):
        counts = Counter(each.label for each in group)
        assert max(counts.values()) <= len(group) / 2
        assert len(counts) > 2 or len(set(counts.values())) == 1


@settings(max_examples=30, deadline=None)
@given(labelled(), st.sampled_from([0.2, 0.4, 1.0]))
def test_labels_stay_within_their_bounds(examples: list[Labelled], share: float) -> None:
    kept = kept_of(examples, balance_lengths(examples, 0, share))
    counts = Counter(each.label for each in kept)
    for label, count in counts.items():
        assert count <= max(share, 1 / len(counts)) * len(kept) + 1e-9
        others = [each.chars for each in kept if each.label != label]
        own = [each.chars for each in kept if each.label == label]
        longer = sum((a > b) + (a == b) / 2 for a in own for b in others) / (count * len(others))
        error = math.sqrt((len(kept) + 1) / (12 * count * len(others)))
        assert abs(longer - 0.5) <= max(MOST_SKEW, error) + 1e-6
        assert check_lengths(kept).by_label[f"{label:g}"] == pytest.approx(longer)


@settings(max_examples=30, deadline=None)
@given(labelled(), st.randoms(use_true_random=False))
def test_the_order_of_the_examples_does_not_matter(examples: list[Labelled], order: random.Random) -> None:
    mixed = order.sample(examples, len(examples))
    one, other = balance_lengths(examples, 3), balance_lengths(mixed, 3)
    assert (one.ids, one.dropped) == (other.ids, other.dropped)


@settings(max_examples=30, deadline=None)
@given(labelled())
def test_the_control_pairs_as_many_labels_as_there_can_be(examples: list[Labelled]) -> None:
    found = pair_labels(examples, 1)
    assert len(found.ids) == 2 * len(found.pairs) == len(examples) - sum(found.dropped.values())
    assert all(better.label > worse.label and better.group == worse.group for better, worse in found.pairs)
    for group in groups(examples):
        most = Counter(each.label for each in group).most_common(1)[0][1]
        assert sum(each.id in found.ids for each in group) == 2 * min(len(group) - most, len(group) // 2)


lengths = st.lists(st.integers(2, 40), max_size=5)


@settings(max_examples=50, deadline=None)
@given(lengths, lengths)
def test_as_many_opposite_pairs_are_matched_as_possible(left: list[int], right: list[int]) -> None:
    def pairs(name: str, sizes: list[int], longer: bool) -> list[tuple[Labelled, Labelled]]:
        made = []
        for number, size in enumerate(sizes):
            chars = (size, 1) if longer else (1, size)
            prompt_id = f"{name}{number}"
            better, worse = (Labelled(f"{prompt_id}/{i}", prompt_id, 1 - i, chars[i]) for i in (0, 1))
            made.append((better, worse))
        return made

    one, other = pairs("l", left, True), pairs("s", right, False)
    found = match_opposite(one, other)
    assert all(abs(abs(log_ratio(a)) - abs(log_ratio(b))) <= CALIPER for a, b in found)
    near = [[abs(math.log(a / b)) <= CALIPER for b in right] for a in left]
    if len(left) > len(right):
        near = [*map(list, zip(*near, strict=True))]
    places = permutations(range(max(len(left), len(right))), len(near))
    best = max(sum(row[place] for row, place in zip(near, each, strict=True)) for each in places)
    assert len(found) == best


def test_a_group_that_balances_itself_keeps_four_answers() -> None:
    sizes = [(1.0, 10), (0.0, 20), (0.0, 30), (1.0, 40), (0.0, 90)]
    examples = [Labelled(str(i), "p", *each) for i, each in enumerate(sizes)]
    balanced = balance_lengths(examples, 0)
    assert balanced.ids == {"0", "1", "2", "3"} and balanced.dropped == {"surplus": 1}


def test_the_largest_balanced_set_is_found() -> None:
    draw = random.Random(4)
    for number in range(40):
        sizes = [(draw.randrange(2), draw.randrange(1, 9)) for _ in range(6)]
        examples = [Labelled(f"{number}/{i}", "p", *each) for i, each in enumerate(sizes)]
        most = 0
        for size in (2, 4, 6):
            for some in combinations(examples, size):
                halves = Counter(each.label for each in some)
                if len(halves) == 2 and halves[0] == halves[1] and longer_minus_shorter(some) == 0:
                    most = size
        found = balance_lengths(examples, 0)
        assert len(found.ids) + found.dropped.get("skewed", 0) == most


def test_a_judge_of_length_is_at_a_half_where_it_was_at_three_quarters() -> None:
    draw, examples = random.Random(1), []
    for number in range(200):
        for i in range(6):
            label = draw.random() < 0.35
            chars = int(math.exp(draw.gauss(5 + 0.6 * label, 0.6))) + 1
            examples.append(Labelled(f"{number}/{i}", f"{number}", label, chars))
    before, balanced = check_lengths(examples), balance_lengths(examples, 0)
    after = check_lengths(kept_of(examples, balanced))
    assert before.accuracy and before.accuracy.low > 0.7
    assert after.accuracy and after.accuracy.mean == 0.5 and after.accuracy.low < 0.5 < after.accuracy.high
    assert len(balanced.ids) > 350
