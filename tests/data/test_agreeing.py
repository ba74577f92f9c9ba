"""Judgments are kept only where they put answers in people's order."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metareward.data.ranked import Ranked, RankedAnswer
from metareward.data.seed_sets import Agreeing, Judged, Refused, agreeing_set, agrees
from metareward.types import Judgment, Message, Prompt, Reading, Scored, Truncated, Unparsed

readings = st.one_of(
    st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.0, 4.5, 5.0]).map(Scored),
    st.just(Unparsed("missing")),
    st.just(Truncated()),
)


def judged(*answers: list[Reading]) -> Judged:
    """Judgments by answer, each with its own text."""
    return Judged(
        tuple(
            tuple(Judgment(n, f"says {a}.{n}", 3, reading, f"thinks {a}.{n}; ") for n, reading in enumerate(readings))
            for a, readings in enumerate(answers)
        )
    )


def ranked(*ranks: float) -> Ranked:
    return Ranked(Prompt("p", (Message("user", "Why?"),)), tuple(RankedAnswer(f"a{rank}", rank) for rank in ranks))


@pytest.mark.parametrize(
    ("scores", "ranks", "strictly", "with_ties"),
    [
        ([5, 3], [0, 1], True, True),
        ([3, 5], [0, 1], False, False),
        ([4, 4], [0, 1], False, False),
        ([5, 4, 4], [0, 1, 2], False, True),
        ([5, 4, 4], [0, 1, 1], True, True),
        ([5, 3, 4], [0, 1, 1], True, True),
        ([5, 3, 4], [0, 1, 2], False, False),
        ([5, 4.5, 4.4], [0, 1, 2], True, True),
        ([5, 5], [0, 0], False, False),
        ([5], [0], False, False),
    ],
)
def test_what_agrees(scores: list[float], ranks: list[float], strictly: bool, with_ties: bool) -> None:
    assert agrees(scores, ranks) is strictly
    assert agrees(scores, ranks, ties=True) is with_ties


def test_the_first_set_in_people_s_order_is_kept_whole() -> None:
    found = agreeing_set(
        ranked(1, 0),
        judged([Scored(4), Unparsed("missing"), Scored(2), Scored(1)], [Scored(3), Scored(5), Scored(5), Scored(2)]),
    )
    assert found == (Agreeing(0, "thinks 0.2; says 0.2", 2), Agreeing(1, "thinks 1.2; says 1.2", 5))


@pytest.mark.parametrize(
    ("answers", "reason", "detail"),
    [
        ([[Scored(3)], [Scored(4)]], "disagrees", "2 answers, 1 sets, 1 readable, none in people's order"),
        ([[Scored(3), Scored(4)], [Scored(3), Truncated()]], "disagrees", "2 sets, 1 readable"),
        ([[Scored(3), Truncated()], [Unparsed("missing"), Scored(1)]], "unreadable", "2 sets, 0 readable"),
    ],
)
def test_why_there_is_no_set(answers: list[list[Reading]], reason: str, detail: str) -> None:
    found = agreeing_set(ranked(0, 1), judged(*answers))
    assert isinstance(found, Refused)
    assert (found.id, found.reason) == ("p", reason)
    assert detail in found.detail


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Ranked, Judged]:
    ranks = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    n = draw(st.integers(1, 4))
    return ranked(*ranks), judged(*(draw(st.lists(readings, min_size=n, max_size=n)) for _ in ranks))


@given(worlds(), st.booleans())
@settings(deadline=None, max_examples=400)
def test_a_disagreeing_order_is_never_kept(world: tuple[Ranked, Judged], ties: bool) -> None:
    given, judgments = world
    found = agreeing_set(given, judgments, ties)
    if isinstance(found, Refused):
        return
    assert [each.place for each in found] == list(range(len(given.answers)))
    strictly = 0
    for one, other in combinations(found, 2):
        better = given.answers[other.place].rank - given.answers[one.place].rank
        higher = one.score - other.score
        assert better * higher >= 0
        assert ties or better == 0 or higher != 0
        strictly += better * higher > 0
    assert strictly > 0
    texts = {(a, one.reasoning + one.text) for a, of in enumerate(judgments.judgments_AN) for one in of}
    assert {(each.place, each.text) for each in found} <= texts


@given(worlds())
@settings(deadline=None)
def test_what_agrees_without_ties_agrees_with_them(world: tuple[Ranked, Judged]) -> None:
    if not isinstance(agreeing_set(*world), Refused):
        assert not isinstance(agreeing_set(*world, ties=True), Refused)
