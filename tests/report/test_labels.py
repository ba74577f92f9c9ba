from typing import get_args

import pytest

from metareward.report.labels import drop_words, reading_words, verdict_words
from metareward.types import DropReason, Reading, Scored, Tied, Truncated, Unparsed, Verdict, Won


@pytest.mark.parametrize("reason", get_args(DropReason))
def test_every_drop_reason_has_words_of_its_own(reason: str) -> None:
    assert drop_words(reason) != reason.replace("_", " ")


def test_no_two_drop_reasons_read_the_same() -> None:
    assert len({drop_words(reason) for reason in get_args(DropReason)}) == len(get_args(DropReason))


def test_a_reason_from_another_version_reads_as_its_code() -> None:
    assert drop_words("too_purple") == "too purple"


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (Scored(4.0), "4"),
        (Scored(4.75), "4.75"),
        (Truncated(), "cut off"),
        (Unparsed("missing"), "no score found"),
        (Unparsed("out_of_range"), "outside the scale"),
        (Unparsed("contradictory"), "contradicts itself"),
    ],
)
def test_readings(reading: Reading, words: str) -> None:
    assert reading_words(reading) == words


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (Won(3), "judgment 3 wins"),
        (Tied(), "tie"),
        (Truncated(), "cut off"),
        (Unparsed("missing"), "no winner named"),
        (Unparsed("contradictory"), "contradicts itself"),
    ],
)
def test_verdicts(verdict: Verdict, words: str) -> None:
    assert verdict_words(verdict) == words
