"""Selecting seed sets: the split by conversation, judgments that agree with human ranks, and the limit on scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import ranked_trees
from scripted_models import seed_settings

from metareward.data.ranked import RankedAnswer, RankedPrompt, read_ranked
from metareward.data.seed_sets import (
    JudgedAnswers,
    RejectedPrompt,
    SeedSplit,
    agreeing_set,
    agrees_with_ranks,
    limit_scores,
    max_per_score,
    score_bin,
    split_prompts,
)
from metareward.types import Judgment, Message, Prompt, Reading, Scored, Truncated, Unparsed

SHARES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0])


def split(prompts: Sequence[RankedPrompt], ift_share: float, held_out_share: float, seed: int) -> SeedSplit:
    shares = replace(seed_settings(), ift_share=ift_share, held_out_share=held_out_share, seed=seed)
    return split_prompts(prompts, shares)


@st.composite
def rankings(draw: st.DrawFn) -> list[RankedPrompt]:
    """Prompts of few words, so that many are the same or begin alike."""
    found = []
    for number in range(draw(st.integers(0, 25))):
        asked = draw(st.sampled_from(["Why?", "why", "How?", "When", "Where", "Who", "What", "Whose"]))
        more = draw(st.sampled_from([(), (Message("assistant", "So."), Message("user", "And now?"))]))
        ranks = draw(st.lists(st.integers(0, 2), min_size=1, max_size=3))
        answers = tuple(RankedAnswer(f"a{place}", rank) for place, rank in enumerate(ranks))
        found.append(RankedPrompt(Prompt(f"p{number}", (Message("user", asked), *more)), answers))
    return found


def sets(parts: SeedSplit) -> list[tuple[RankedPrompt, ...]]:
    return [parts.ift, parts.eft, parts.held_out]


@given(rankings(), SHARES, SHARES, st.integers(0, 5))
@settings(deadline=None)
def test_the_sets_share_no_conversation(ranked: list[RankedPrompt], ift: float, held_out: float, seed: int) -> None:
    parts = split(ranked, ift, held_out, seed)
    for one, other in combinations(sets(parts), 2):
        assert not {each.group for each in one} & {each.group for each in other}
    everything = [each for lot in (*sets(parts), parts.unused) for each in lot]
    assert sorted(each.prompt.id for each in everything) == sorted(each.prompt.id for each in ranked)
    assert all(each.is_comparable for each in (*parts.eft, *parts.held_out))
    assert not any(each.is_comparable for each in parts.unused)


@given(rankings(), SHARES, SHARES, st.integers(0, 5))
@settings(deadline=None)
def test_the_shares_are_shares_of_groups(ranked: list[RankedPrompt], ift: float, held_out: float, seed: int) -> None:
    parts = split(ranked, ift, held_out, seed)
    groups = {each.group for each in ranked}
    assert len({each.group for each in parts.ift}) == round(ift * len(groups))
    usable = {each.group for each in (*parts.eft, *parts.held_out)}
    assert len({each.group for each in parts.held_out}) == round(held_out * len(usable))


@given(rankings(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_the_file_does_not_matter(ranked: list[RankedPrompt], random: object) -> None:
    shuffled = sorted(ranked, key=lambda each: hash((str(random), each.prompt.id)))
    ids = [
        [sorted(each.prompt.id for each in lot) for lot in sets(split(rows, 0.5, 0.25, 3))]
        for rows in (ranked, shuffled)
    ]
    assert ids[0] == ids[1]


def test_prompts_without_comparable_answers_go_to_ift_first() -> None:
    def one(number: int, *ranks: int) -> RankedPrompt:
        answers = tuple(RankedAnswer(str(rank), rank) for rank in ranks)
        return RankedPrompt(Prompt(f"p{number}", (Message("user", f"question {number}"),)), answers)

    ranked = [*(one(number, 0, 1) for number in range(6)), *(one(number, 0) for number in range(6, 10))]
    assert {each.prompt.id for each in split(ranked, 0.4, 0.0, 1).ift} == {"p6", "p7", "p8", "p9"}
    assert len(split(ranked, 0.4, 0.5, 1).held_out) == 3
    assert len(split(ranked, 0.0, 0.5, 1).unused) == 4


def test_the_split_depends_on_the_seed() -> None:
    ranked = [
        RankedPrompt(Prompt(f"p{n}", (Message("user", f"question {n}"),)), (RankedAnswer("a", 0), RankedAnswer("b", 1)))
        for n in range(40)
    ]
    assert split(ranked, 0.5, 0.25, 1) == split(ranked, 0.5, 0.25, 1) != split(ranked, 0.5, 0.25, 2)
    assert [len(lot) for lot in sets(split(ranked, 0.5, 0.25, 1))] == [20, 15, 5]


def test_rows_of_one_tree_are_in_one_set(tmp_path: Path) -> None:
    path = ranked_trees(tmp_path / "trees.jsonl", trees=12)
    parts = split(read_ranked(path, first_turns=False).prompts, 0.5, 0.25, 0)
    trees = [{int(each.prompt.id[1:]) // 2 for each in part} for part in sets(parts)]
    assert [len(each) for each in trees] == [6, 4, 2]
    assert not any(one & other for one, other in combinations(trees, 2))


# --- agreement ---


readings = st.one_of(
    st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.0, 4.5, 5.0]).map(Scored),
    st.just(Unparsed("missing")),
    st.just(Truncated()),
)


def judged(*answers: list[Reading]) -> JudgedAnswers:
    """Judgments by answer, each with its own text."""
    return JudgedAnswers(
        tuple(
            tuple(Judgment(n, f"says {a}.{n}", 3, reading, f"thinks {a}.{n}; ") for n, reading in enumerate(readings))
            for a, readings in enumerate(answers)
        )
    )


def ranked(*ranks: float) -> RankedPrompt:
    return RankedPrompt(
        Prompt("p", (Message("user", "Why?"),)), tuple(RankedAnswer(f"a{rank}", rank) for rank in ranks)
    )


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
def test_scores_agree_with_ranks(scores: list[float], ranks: list[float], strictly: bool, with_ties: bool) -> None:
    assert agrees_with_ranks(scores, ranks) is strictly
    assert agrees_with_ranks(scores, ranks, allow_ties=True) is with_ties


def test_the_first_agreeing_set_is_kept_whole() -> None:
    found = agreeing_set(
        ranked(1, 0),
        judged([Scored(4), Unparsed("missing"), Scored(2), Scored(1)], [Scored(3), Scored(5), Scored(5), Scored(2)]),
    )
    assert isinstance(found, tuple)
    assert [(each.index, each.text, each.reading) for each in found] == [
        (2, "says 0.2", Scored(2)),
        (2, "says 1.2", Scored(5)),
    ]


@pytest.mark.parametrize(
    ("answers", "reason", "detail"),
    [
        ([[Scored(3)], [Scored(4)]], "disagrees", "2 answers, 1 sets, 1 readable, none agrees with the ranks"),
        ([[Scored(3), Scored(4)], [Scored(3), Truncated()]], "disagrees", "2 sets, 1 readable"),
        ([[Scored(3), Truncated()], [Unparsed("missing"), Scored(1)]], "unreadable", "2 sets, 0 readable"),
    ],
)
def test_why_there_is_no_agreeing_set(answers: list[list[Reading]], reason: str, detail: str) -> None:
    found = agreeing_set(ranked(0, 1), judged(*answers))
    assert isinstance(found, RejectedPrompt)
    assert (found.id, found.reason) == ("p", reason)
    assert detail in found.detail


@st.composite
def worlds(draw: st.DrawFn) -> tuple[RankedPrompt, JudgedAnswers]:
    ranks = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    n = draw(st.integers(1, 4))
    return ranked(*ranks), judged(*(draw(st.lists(readings, min_size=n, max_size=n)) for _ in ranks))


@given(worlds(), st.booleans())
@settings(deadline=None, max_examples=400)
def test_a_kept_set_agrees_with_the_ranks(world: tuple[RankedPrompt, JudgedAnswers], ties: bool) -> None:
    given, judgments = world
    found = agreeing_set(given, judgments, ties)
    if isinstance(found, RejectedPrompt):
        return
    scores = [each.reading.score for each in found if isinstance(each.reading, Scored)]
    assert len(scores) == len(given.answers)
    strictly = 0
    for one, other in combinations(range(len(scores)), 2):
        better = given.answers[other].rank - given.answers[one].rank
        higher = scores[one] - scores[other]
        assert better * higher >= 0
        assert ties or better == 0 or higher != 0
        strictly += better * higher > 0
    assert strictly > 0
    assert all(each in of_answer for each, of_answer in zip(found, judgments.judgments_AN, strict=True))
    assert len({each.index for each in found}) == 1


@given(worlds())
@settings(deadline=None)
def test_a_set_without_ties_also_agrees_with_ties_allowed(world: tuple[RankedPrompt, JudgedAnswers]) -> None:
    if not isinstance(agreeing_set(*world), RejectedPrompt):
        assert not isinstance(agreeing_set(*world, allow_ties=True), RejectedPrompt)


# --- limit on scores ---


scores = st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.0, 4.4, 4.5, 5.0]), max_size=60)
shares = st.sampled_from([0.1, 0.2, 0.34, 0.4, 0.5, 0.9, 1.0])


def named(values: list[float]) -> list[tuple[str, float]]:
    return [(f"e{place}", value) for place, value in enumerate(values)]


def test_scores_are_binned_to_the_nearest_integer() -> None:
    assert [score_bin(score) for score in (4, 4.4, 4.5, 4.9, 0.2)] == [4, 4, 5, 5, 0]


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
def test_max_per_score(counts: list[int], share: float, most: int) -> None:
    assert max_per_score(counts, share) == most


@given(scores, shares, st.integers(0, 3))
@settings(deadline=None, max_examples=300)
def test_no_score_exceeds_its_share(values: list[float], share: float, seed: int) -> None:
    examples = named(values)
    kept = limit_scores(examples, share, seed)
    left = Counter(score_bin(score) for name, score in examples if name in kept)
    before = Counter(score_bin(score) for _, score in examples)
    allowed = max(share, 1 / max(1, len(before)))
    assert kept <= {name for name, _ in examples}
    assert all(count <= allowed * sum(left.values()) + 1e-9 for count in left.values())
    assert left.keys() == before.keys()  # no score is lost
    most = max(left.values(), default=0)
    assert all(left[score] == min(before[score], most) for score in before)


@given(scores, st.integers(0, 3))
@settings(deadline=None)
def test_a_share_of_one_keeps_everything(values: list[float], seed: int) -> None:
    assert limit_scores(named(values), 1.0, seed) == {name for name, _ in named(values)}


def test_the_seed_selects_and_not_the_order() -> None:
    examples = named([4.0] * 30 + [1.0] * 5 + [2.0] * 5)
    kept = limit_scores(examples, 0.4, 1)
    assert kept == limit_scores(examples[::-1], 0.4, 1) != limit_scores(examples, 0.4, 2)
    assert len(kept) == 5 + 5 + 6
