"""The corpus of endings: read right, never wrong, and rejected independently of the true score."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from builders import METARUBRIC, RUBRIC, golden
from scipy.stats import hypergeom

from metareward.types import Scored, Won

ENDINGS = golden("endings")
WINNERS = golden("winners")
SCORES = (0, 1, 2, 3, 4, 5)


def score(case: dict[str, Any]) -> float | None:
    reading = RUBRIC.read(case["text"], case.get("finish", "stop"))
    return reading.score if isinstance(reading, Scored) else None


def winner(case: dict[str, Any]) -> str | None:
    verdict = METARUBRIC.read(case["text"], case.get("finish", "stop"))
    return "AB"[verdict.winner] if isinstance(verdict, Won) else None


def rejections_look_random(truths: Sequence[object], rejected: Sequence[object]) -> bool:
    """Whether no value has so many of the rejections that chance would give them in less than 1 of 1,000 cases."""
    of, among = Counter(truths), Counter(rejected)
    return all(hypergeom.sf(among[value] - 1, len(truths), count, len(rejected)) > 0.001 for value, count in of.items())


def test_the_corpus_is_large_and_balanced() -> None:
    truths = Counter(case["truth"] for case in ENDINGS)
    assert len(ENDINGS) >= 500
    assert all(truths[score] >= 100 for score in SCORES)
    assert truths[None] >= 200
    sources = Counter(case["source"] for case in ENDINGS)
    assert sources["pocket model"] >= 30 and sources["SmolLM2-135M-Instruct"] >= 30
    winners = Counter(case["truth"] for case in WINNERS)
    assert min(winners["A"], winners["B"]) >= 50


@pytest.mark.parametrize("source", sorted({case["source"] for case in ENDINGS}))
def test_no_ending_is_read_wrong(source: str) -> None:
    read = [(case["text"], case["truth"], score(case)) for case in ENDINGS if case["source"] == source]
    assert [each for each in read if each[2] not in (None, each[1])] == []


def test_endings_are_read_and_rejections_do_not_depend_on_the_score() -> None:
    cases = [case for case in ENDINGS if case["truth"] is not None]
    rejected = [case["truth"] for case in cases if score(case) is None]
    assert len(rejected) <= 0.02 * len(cases)
    assert rejections_look_random([case["truth"] for case in cases], rejected)


def test_winners_are_read() -> None:
    read = [(case["text"], case["truth"], winner(case)) for case in WINNERS]
    assert [each for each in read if each[2] not in (None, each[1])] == []
    assert sum(each[2] != each[1] for each in read) <= 0.02 * len(read)


def test_biased_rejections_do_not_look_random() -> None:
    truths = [score for score in SCORES for _ in range(100)]
    assert rejections_look_random(truths, [0, 1, 2, 3, 4, 5, 5])
    assert not rejections_look_random(truths, [5] * 6)
