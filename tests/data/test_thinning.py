"""No score stands in too many of the examples that are kept."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metareward.data.seed_sets import most_of_each, score_class, thinned

scores = st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.0, 4.4, 4.5, 5.0]), max_size=60)
shares = st.sampled_from([0.1, 0.2, 0.34, 0.4, 0.5, 0.9, 1.0])


def named(values: list[float]) -> list[tuple[str, float]]:
    return [(f"e{place}", value) for place, value in enumerate(values)]


def test_a_score_is_the_whole_number_next_to_it() -> None:
    assert [score_class(score) for score in (4, 4.4, 4.5, 4.9, 0.2)] == [4, 4, 5, 5, 0]


@pytest.mark.parametrize(
    ("counts", "share", "most"),
    [
        ([10, 10, 10], 0.4, 10),
        ([100, 10, 10], 0.4, 13),  # 13 of 33
        ([100, 10, 10], 0.5, 20),
        ([100, 10], 0.4, 10),  # of two scores each may have half
        ([100], 0.4, 100),
        ([1, 1, 1000], 0.4, 1),
        ([50, 50, 50, 50], 0.1, 50),
    ],
)
def test_how_many_of_each_score_are_kept(counts: list[int], share: float, most: int) -> None:
    assert most_of_each(counts, share) == most


@given(scores, shares, st.integers(0, 3))
@settings(deadline=None, max_examples=300)
def test_no_score_keeps_more_than_its_share(values: list[float], share: float, seed: int) -> None:
    examples = named(values)
    kept = thinned(examples, share, seed)
    left = Counter(score_class(score) for name, score in examples if name in kept)
    before = Counter(score_class(score) for _, score in examples)
    allowed = max(share, 1 / max(1, len(before)))
    assert kept <= {name for name, _ in examples}
    assert all(count <= allowed * sum(left.values()) + 1e-9 for count in left.values())
    assert left.keys() == before.keys()  # no score is lost
    most = max(left.values(), default=0)
    assert all(left[score] == min(before[score], most) for score in before)


@given(scores, st.integers(0, 3))
@settings(deadline=None)
def test_what_is_spread_enough_is_left_alone(values: list[float], seed: int) -> None:
    assert thinned(named(values), 1.0, seed) == {name for name, _ in named(values)}


def test_the_seed_chooses_and_not_the_order() -> None:
    examples = named([4.0] * 30 + [1.0] * 5 + [2.0] * 5)
    kept = thinned(examples, 0.4, 1)
    assert kept == thinned(examples[::-1], 0.4, 1) != thinned(examples, 0.4, 2)
    assert len(kept) == 5 + 5 + 6
