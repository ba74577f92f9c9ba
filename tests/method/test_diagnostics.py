"""Position statistics, parse results, and the summary of an iteration."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from builders import candidate, dispute, record, records
from hypothesis import given
from hypothesis import strategies as st

from metareward.method.diagnostics import (
    PositionSplit,
    position_statistics,
    readings_summary,
    summarize,
)
from metareward.method.pairs import PairRules, build_pairs
from metareward.types import PromptRecord, Tied, Truncated, Unparsed

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
            (3, 1): None,  # one order unparsed: no pair
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


def test_shares_of_no_pairs_are_none() -> None:
    found = position_statistics([record([candidate(0, [4, 4])])])
    assert found.higher_score_wins is None
    assert found.all == PositionSplit(0, None, None)


def test_statistics_as_a_dict() -> None:
    shape = json.loads(json.dumps(asdict(position_statistics([MIXED]))))
    assert set(shape) == {"higher_score_wins", "lower_score_wins", "same_score", "different_score", "all"}
    assert shape["same_score"] == {"pairs": 1, "flipped": 1.0, "first_wins": 1.0}


def test_verdicts_that_follow_the_score_or_the_position() -> None:
    by_score = {(m, n): max(m, n) for m in range(4) for n in range(4) if m != n}
    scores = record([candidate(0, [1, 2, 3, 4])], dispute(by_score, 4))
    assert position_statistics([scores]).higher_score_wins == 1.0
    assert position_statistics([scores]).all == PositionSplit(6, 0.0, 0.5)
    first = record([candidate(0, [1, 2, 3, 4])], dispute({order: order[0] for order in by_score}, 4))
    assert position_statistics([first]).higher_score_wins is None
    assert position_statistics([first]).all == PositionSplit(6, 1.0, 1.0)


@given(st.lists(records(), max_size=4))
def test_shares_are_in_range_and_splits_add_up(of: list[PromptRecord]) -> None:
    found = position_statistics(of)
    assert found.same_score.pairs + found.different_score.pairs == found.all.pairs
    for share in (found.higher_score_wins, found.all.flipped, found.all.first_wins):
        assert share is None or 0 <= share <= 1


UNPARSED = record(
    [candidate(0, [5, None, Unparsed("out_of_range"), Unparsed("ambiguous"), Truncated(), Truncated(), 0])],
    dispute({(0, 6): 0, (6, 0): Tied()}, 7),
)


def test_parse_results_are_counted() -> None:
    assert readings_summary([UNPARSED]) == {
        "scored": 2,
        "missing": 1,
        "out_of_range": 1,
        "ambiguous": 1,
        "truncated": 2,
    }


# The summary.

SUMMARY_RULES = PairRules(min_valid=1)
# 0 beats 1 and 2 beats 1 in both orders; of 0 and 2 the one shown second wins.
VERDICTS = {(0, 1): 0, (1, 0): 0, (0, 2): 2, (2, 0): 0, (1, 2): 2, (2, 1): 2}

RECORDS = (
    record(
        [candidate(0, [5, 3, 4], text="good"), candidate(1, [1, None, Truncated()], text="worse")],
        dispute(VERDICTS, 3),
        "a",
    ),
    record(
        [candidate(0, [2, 2, 2], text="same"), candidate(1, [2, 2, Unparsed("out_of_range")], text="as good")], name="b"
    ),
)


def summary_of(*records: PromptRecord) -> dict[str, Any]:
    pairs, dropped = build_pairs(records, SUMMARY_RULES)
    text = json.dumps(summarize(3, records, pairs, dropped), allow_nan=False)
    return dict(json.loads(text))


def test_summary_counts() -> None:
    summary = summary_of(*RECORDS)
    assert (summary["iteration"], summary["prompts"]) == (3, 2)
    assert (summary["actor_pairs"], summary["judge_pairs"]) == (1, 1)
    assert summary["dropped"] == {"actor": {"all_scores_equal": 1}, "judge": {"no_variance": 1}}
    assert summary["readings"] == {
        "scored": 9,
        "missing": 1,
        "out_of_range": 1,
        "truncated": 1,
    }


def test_summary_counts_drops_by_reason() -> None:
    again = replace(RECORDS[1], prompt=replace(RECORDS[1].prompt, id="c"))
    assert summary_of(*RECORDS, again)["dropped"] == {"actor": {"all_scores_equal": 2}, "judge": {"no_variance": 2}}


def test_summary_lengths_are_mean_characters() -> None:
    summary = summary_of(*RECORDS)
    assert (summary["chosen_chars"], summary["rejected_chars"]) == (4, 5)
    assert summary["answer_chars"] == (4 + 5 + 4 + 7) / 4
    assert summary["judgment_chars"] == len("judgment 0")


def test_summary_of_wins_by_position() -> None:
    summary = summary_of(*RECORDS)
    assert (summary["weights"]["first_wins"], summary["weights"]["second_wins"]) == (2, 4)
    third = pytest.approx(1 / 3)
    assert summary["position"]["all"] == {"pairs": 3, "flipped": third, "first_wins": third}
    assert summary["position"]["same_score"]["pairs"] == 0


def test_summary_without_pairs_has_no_means() -> None:
    summary = summary_of(RECORDS[1])
    assert (summary["actor_pairs"], summary["chosen_chars"], summary["rejected_chars"]) == (0, None, None)
    assert summary["position"]["higher_score_wins"] is None


def test_summary_of_no_records() -> None:
    summary = summary_of()
    assert (summary["prompts"], summary["answer_chars"], summary["judgment_chars"]) == (0, None, None)
