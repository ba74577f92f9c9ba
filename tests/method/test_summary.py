from __future__ import annotations

import json
from typing import Any

import pytest
from builders import RUBRIC, candidate, dispute, record

from metareward.method.diagnostics import summarize
from metareward.method.pairs import PairRules, build_pairs
from metareward.types import PromptRecord, Truncated, Unparsed

RULES = PairRules(0.0, None, True, None, 1, "iteration", 0.1, 2)
# 0 beats 1 and 2 beats 1 whatever the order; of 0 and 2 the one shown second wins.
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


def made(*records: PromptRecord) -> dict[str, Any]:
    pairs, dropped = build_pairs(records, RULES)
    text = json.dumps(summarize(3, records, pairs, dropped, RUBRIC), allow_nan=False)
    return dict(json.loads(text))


def test_counts_reasons_and_readings() -> None:
    summary = made(*RECORDS)
    assert (summary["iteration"], summary["prompts"]) == (3, 2)
    assert (summary["actor_pairs"], summary["judge_pairs"]) == (1, 1)
    assert summary["dropped"] == {"actor": {"all_scores_equal": 1}, "judge": {"no_variance": 1}}
    assert summary["readings"] == {
        "scored": 9,
        "missing": 1,
        "out_of_range": 1,
        "contradictory": 0,
        "truncated": 1,
    }


def test_lengths_are_means_of_characters() -> None:
    summary = made(*RECORDS)
    assert (summary["chosen_chars"], summary["rejected_chars"]) == (4, 5)
    assert summary["answer_chars"] == (4 + 5 + 4 + 7) / 4
    assert summary["judgment_chars"] == len("judgment 0")


def test_wins_by_position() -> None:
    summary = made(*RECORDS)
    assert (summary["weights"]["first_wins"], summary["weights"]["second_wins"]) == (2, 4)
    third = pytest.approx(1 / 3)
    assert summary["position"]["all"] == {"pairs": 3, "flipped": third, "first_wins": third}
    assert summary["position"]["same_score"]["pairs"] == 0


def test_findings_have_a_code_and_a_text() -> None:
    findings = made(*RECORDS)["findings"]
    assert findings
    assert all(set(each) == {"code", "text"} for each in findings)


def test_without_any_pairs_means_are_absent() -> None:
    summary = made(RECORDS[1])
    assert (summary["actor_pairs"], summary["chosen_chars"], summary["rejected_chars"]) == (0, None, None)
    assert summary["position"]["higher_score_wins"] is None


def test_of_nothing_there_is_a_summary_too() -> None:
    summary = made()
    assert (summary["prompts"], summary["answer_chars"], summary["judgment_chars"]) == (0, None, None)
