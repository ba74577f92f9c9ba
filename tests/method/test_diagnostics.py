import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from builders import candidate, dispute, record, records
from hypothesis import given
from hypothesis import strategies as st

from metareward.method.diagnostics import (
    Counts,
    PositionSplit,
    findings,
    judgment_counts,
    position_statistics,
    readings_summary,
    verdict_counts,
)
from metareward.method.pairs import PairRules, build_pairs, of_kind
from metareward.types import PreferencePair, PromptRecord, Tied, Truncated, Unparsed

# Judgments 0..3 score 4, 4, 2, 1.
MIXED = record(
    [candidate(0, [4, 4, 2, 1])],
    dispute(
        {
            (0, 1): 0,
            (1, 0): 1,  # same score, flipped: the first wins twice
            (0, 2): 0,
            (2, 0): 0,  # the higher score wins in both orders
            (0, 3): 3,
            (3, 0): 3,  # the lower score wins in both orders
            (1, 2): 2,
            (2, 1): 1,  # flipped: the second wins twice
            (1, 3): 1,
            (3, 1): None,  # one order unread: no pair
            (2, 3): Tied(),
            (3, 2): 2,  # one order tied: no pair
        },
        4,
    ),
)


def test_position_statistics_by_hand() -> None:
    found = position_statistics([MIXED])
    assert (found.higher_score_wins, found.lower_score_wins) == (0.5, 0.5)
    assert found.same_score == PositionSplit(pairs=1, flipped=1.0, first_wins=1.0)
    assert found.different_score == PositionSplit(pairs=3, flipped=1 / 3, first_wins=2 / 6)
    assert found.all == PositionSplit(pairs=4, flipped=0.5, first_wins=0.5)


def test_without_pairs_shares_are_undefined() -> None:
    found = position_statistics([record([candidate(0, [4, 4])])])
    assert found.higher_score_wins is None
    assert found.all == PositionSplit(0, None, None)


def test_the_statistics_have_the_shape_of_the_summary() -> None:
    shape = json.loads(json.dumps(position_statistics([MIXED]).as_dict()))
    assert set(shape) == {"higher_score_wins", "lower_score_wins", "same_score", "different_score", "all"}
    assert shape["same_score"] == {"pairs": 1, "flipped": 1.0, "first_wins": 1.0}


def test_a_judge_that_follows_the_score_or_the_position_is_seen() -> None:
    by_score = {(m, n): max(m, n) for m in range(4) for n in range(4) if m != n}
    scores = record([candidate(0, [1, 2, 3, 4])], dispute(by_score, 4))
    assert position_statistics([scores]).higher_score_wins == 1.0
    assert position_statistics([scores]).all == PositionSplit(6, 0.0, 0.5)
    first = record([candidate(0, [1, 2, 3, 4])], dispute({order: order[0] for order in by_score}, 4))
    assert position_statistics([first]).higher_score_wins is None
    assert position_statistics([first]).all == PositionSplit(6, 1.0, 1.0)


@given(st.lists(records(), max_size=4))
def test_statistics_are_shares_and_splits_add_up(of: list[PromptRecord]) -> None:
    found = position_statistics(of)
    assert found.same_score.pairs + found.different_score.pairs == found.all.pairs
    for share in (found.higher_score_wins, found.all.flipped, found.all.first_wins):
        assert share is None or 0 <= share <= 1


UNREAD = record(
    [candidate(0, [5, None, Unparsed("out_of_range"), Unparsed("contradictory"), Truncated(), Truncated(), 0])],
    dispute({(0, 6): 0, (6, 0): Tied()}, 7),
)


def test_counts() -> None:
    assert judgment_counts([UNREAD]) == Counts(2, 0, 1, 1, 1, 2)
    assert verdict_counts([UNREAD]) == Counts(1, 1, 0, 0, 0, 0)
    assert readings_summary([UNREAD]) == {
        "scored": 2,
        "missing": 1,
        "out_of_range": 1,
        "contradictory": 1,
        "truncated": 2,
    }


def prompts(of: PromptRecord, count: int = 10) -> list[PromptRecord]:
    return [replace(of, prompt=replace(of.prompt, id=f"p{number}")) for number in range(count)]


def codes(of: list[PromptRecord], pairs: Sequence[PreferencePair] | None = None) -> set[str]:
    built, dropped = build_pairs(of, PairRules())
    return {finding.code for finding in findings(of, built if pairs is None else pairs, dropped)}


HEALTHY = record([candidate(0, [4, 3, 4], chars=20), candidate(1, [1, 2, 1], chars=20), candidate(2, [2, 3, 3])])


def test_a_healthy_iteration_and_an_empty_one_are_silent() -> None:
    assert codes(prompts(HEALTHY)) == set()
    assert codes([]) == set()


@pytest.mark.parametrize(
    ("of", "code"),
    [
        (record([candidate(0, [5, 5, 4.9]), candidate(1, [5, 5, 5])]), "saturation"),
        (record([candidate(0, [3, 3]), candidate(1, [3, 3])]), "many_ties"),
        (UNREAD, "unparsed_judgments"),
        (replace(UNREAD, dispute=dispute({(0, 1): 0, (1, 0): None}, 2)), "unparsed_meta_judgments"),
        (record([replace(each, finish="length") for each in HEALTHY.candidates_K]), "answers_cut_off"),
        (replace(MIXED, dispute=dispute({(0, 1): 0, (1, 0): 1}, 4)), "position_flips"),
        (record([candidate(0, [3, 3])]), "few_pairs"),
        (record([candidate(0, [4, 4], chars=30), candidate(1, [1, 2], chars=20)]), "length_drift"),
    ],
)
def test_each_trouble_is_named(of: PromptRecord, code: str) -> None:
    assert code in codes(prompts(of))


def test_judge_pairs_that_grow_longer_or_take_over_are_named() -> None:
    judged = replace(MIXED, dispute=dispute({(2, 3): 2, (3, 2): 2}, 4))
    pairs, _ = build_pairs(prompts(judged), PairRules())
    assert len(of_kind(pairs, "judge")) == len(pairs) == 10
    assert "judge_pairs_dominate" in codes(prompts(judged), pairs)
    longer = [replace(pair, chosen=pair.chosen * 2) for pair in pairs]
    assert "judgment_length_drift" in codes(prompts(judged), longer)
    assert "judgment_length_drift" not in codes(prompts(judged), pairs)


@given(st.lists(records(), max_size=4))
def test_findings_are_one_line_each_with_their_own_code(of: list[PromptRecord]) -> None:
    found = findings(of, *build_pairs(of, PairRules()))
    assert len({finding.code for finding in found}) == len(found)
    assert all(finding.text and "\n" not in finding.text for finding in found)
