from typing import get_args

import pytest

from metareward.report.labels import drop_label, reading_label, verdict_label
from metareward.types import DropReason, Reading, Scored, Tied, Truncated, Unparsed, Verdict, Won


@pytest.mark.parametrize("reason", get_args(DropReason))
def test_every_drop_reason_has_a_label(reason: str) -> None:
    assert drop_label(reason) != reason.replace("_", " ")


def test_labels_of_drop_reasons_are_distinct() -> None:
    assert len({drop_label(reason) for reason in get_args(DropReason)}) == len(get_args(DropReason))


def test_an_unknown_reason_is_shown_as_its_code() -> None:
    assert drop_label("too_purple") == "too purple"


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (Scored(4.0), "4"),
        (Scored(4.75), "4.75"),
        (Truncated(), "truncated"),
        (Unparsed("missing"), "no score found"),
        (Unparsed("out_of_range"), "outside the scale"),
        (Unparsed("ambiguous"), "ambiguous"),
    ],
)
def test_readings(reading: Reading, words: str) -> None:
    assert reading_label(reading) == words


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (Won(3), "judgment 3 wins"),
        (Tied(), "tie"),
        (Truncated(), "truncated"),
        (Unparsed("missing"), "no winner named"),
        (Unparsed("ambiguous"), "ambiguous"),
    ],
)
def test_verdicts(verdict: Verdict, words: str) -> None:
    assert verdict_label(verdict) == words
