"""No prompt in two sets, whatever is split."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import ranked_trees

from metareward.data.ranked import Ranked, RankedAnswer, read_ranked
from metareward.data.seed_sets import Parts, split
from metareward.types import Message, Prompt

SHARES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0])


@st.composite
def rankings(draw: st.DrawFn) -> list[Ranked]:
    """Prompts of few words, so that many are the same or begin alike."""
    found = []
    for number in range(draw(st.integers(0, 25))):
        asked = draw(st.sampled_from(["Why?", "why", "How?", "When", "Where", "Who", "What", "Whose"]))
        more = draw(st.sampled_from([(), (Message("assistant", "So."), Message("user", "And now?"))]))
        ranks = draw(st.lists(st.integers(0, 2), min_size=1, max_size=3))
        answers = tuple(RankedAnswer(f"a{place}", rank) for place, rank in enumerate(ranks))
        found.append(Ranked(Prompt(f"p{number}", (Message("user", asked), *more)), answers))
    return found


def sets(parts: Parts) -> list[tuple[Ranked, ...]]:
    return [parts.ift, parts.eft, parts.held_out]


@given(rankings(), SHARES, SHARES, st.integers(0, 5))
@settings(deadline=None)
def test_no_prompt_is_in_two_sets(ranked: list[Ranked], ift: float, held_out: float, seed: int) -> None:
    parts = split(ranked, ift, held_out, seed)
    for one, other in combinations(sets(parts), 2):
        assert not {each.group for each in one} & {each.group for each in other}
    everything = [each for lot in (*sets(parts), parts.left_over) for each in lot]
    assert sorted(each.prompt.id for each in everything) == sorted(each.prompt.id for each in ranked)
    assert all(each.comparable for each in (*parts.eft, *parts.held_out))
    assert not any(each.comparable for each in parts.left_over)


@given(rankings(), SHARES, SHARES, st.integers(0, 5))
@settings(deadline=None)
def test_the_shares_are_shares_of_groups(ranked: list[Ranked], ift: float, held_out: float, seed: int) -> None:
    parts = split(ranked, ift, held_out, seed)
    groups = {each.group for each in ranked}
    assert len({each.group for each in parts.ift}) == round(ift * len(groups))
    usable = {each.group for each in (*parts.eft, *parts.held_out)}
    assert len({each.group for each in parts.held_out}) == round(held_out * len(usable))


@given(rankings(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_the_file_decides_nothing(ranked: list[Ranked], random: object) -> None:
    shuffled = sorted(ranked, key=lambda each: hash((str(random), each.prompt.id)))
    ids = [
        [sorted(each.prompt.id for each in lot) for lot in sets(split(rows, 0.5, 0.25, 3))]
        for rows in (ranked, shuffled)
    ]
    assert ids[0] == ids[1]


def test_what_cannot_be_compared_teaches_answers_first() -> None:
    def one(number: int, *ranks: int) -> Ranked:
        answers = tuple(RankedAnswer(str(rank), rank) for rank in ranks)
        return Ranked(Prompt(f"p{number}", (Message("user", f"question {number}"),)), answers)

    ranked = [*(one(number, 0, 1) for number in range(6)), *(one(number, 0) for number in range(6, 10))]
    assert {each.prompt.id for each in split(ranked, 0.4, 0.0, 1).ift} == {"p6", "p7", "p8", "p9"}
    assert len(split(ranked, 0.4, 0.5, 1).held_out) == 3
    assert len(split(ranked, 0.0, 0.5, 1).left_over) == 4


def test_the_seed_decides() -> None:
    ranked = [
        Ranked(Prompt(f"p{n}", (Message("user", f"question {n}"),)), (RankedAnswer("a", 0), RankedAnswer("b", 1)))
        for n in range(40)
    ]
    assert split(ranked, 0.5, 0.25, 1) == split(ranked, 0.5, 0.25, 1) != split(ranked, 0.5, 0.25, 2)
    assert [len(lot) for lot in sets(split(ranked, 0.5, 0.25, 1))] == [20, 15, 5]


def test_rows_of_one_tree_are_in_one_set(tmp_path: Path) -> None:
    path = ranked_trees(tmp_path / "trees.jsonl", trees=12)
    parts = split(read_ranked(path, first_turns=False).ranked, 0.5, 0.25, 0)
    trees = [{int(each.prompt.id[1:]) // 2 for each in part} for part in sets(parts)]
    assert [len(each) for each in trees] == [6, 4, 2]
    assert not any(one & other for one, other in combinations(trees, 2))
