"""The oracle: five criteria, each broken by the fault it is about."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metareward.pocket.world import CRITERIA, Criteria, check_answer, judgment_errors, parse_answer

SORT = "Sort from low to high: 4, 30, 12."
NAME = "Name 3 animals, but not cat."
REPEAT = "Write egg 3 times."


def broken(instruction: str, answer: str) -> set[str]:
    marks = check_answer(instruction, answer)
    return {name for name in CRITERIA if not getattr(marks, name)}


@pytest.mark.parametrize(
    ("instruction", "answer", "faults"),
    [
        (SORT, "4, 12, 30", set()),
        (SORT, "4, 12", {"count"}),
        (SORT, "12, 4, 30", {"order"}),
        (SORT, "4, 12, 31", {"items"}),
        (SORT, "4, 12, 30, 31", {"count", "items"}),
        (SORT, "4, 12, 12, 30", {"count", "items"}),
        (SORT, "4, 12, dog", {"kind", "items"}),
        (SORT, "Sure, here you are: 4, 12, 30", {"brief"}),
        (SORT, "4, 12, 30. Have a very nice day.", {"brief"}),
        (SORT, "dog, egg, red", {"kind", "items", "order"}),
        (SORT, "", set(CRITERIA)),
        (SORT, " , ,", set(CRITERIA)),
        (NAME, "dog, fox, cow", set()),
        (NAME, "cow, fox, dog", set()),
        (NAME, "dog, fox, cat", {"items"}),
        (NAME, "dog, fox, fox", {"items"}),
        (NAME, "dog, fox, egg", {"kind", "items"}),
        (REPEAT, "egg, egg, egg", set()),
        (REPEAT, "egg, egg", {"count"}),
        (REPEAT, "egg, egg, egg, egg", {"count", "items"}),
        ("Fill in name, age: Ann is 31 and lives in Oslo.", "age 31, name Ann", {"order"}),
        ("Fill in name, age: Ann is 31 and lives in Oslo.", "name Ann, age 30", {"items"}),
    ],
)
def test_each_fault_breaks_its_criteria(instruction: str, answer: str, faults: set[str]) -> None:
    assert broken(instruction, answer) == faults


@given(answer=st.text())
def test_any_text_has_a_score_from_0_to_5(answer: str) -> None:
    assert 0 <= check_answer(SORT, answer).score <= 5


def test_only_the_bare_answer_is_brief() -> None:
    assert parse_answer("a, b").only_items
    assert parse_answer("Well: a, b").items == ("a", "b")
    assert not parse_answer("a, b. Bye").only_items
    assert not parse_answer("a, b.").only_items


def test_a_judgment_is_wrong_by_its_distance_and_then_by_its_calls() -> None:
    truth = Criteria(kind=True, count=False, items=True, order=True, brief=True)
    exact = "kind yes, count no, items yes, order yes, brief yes. Score: 4"
    lucky = "kind no, count yes, items yes, order yes, brief yes. Score: 4"
    assert judgment_errors(truth, exact, 4) == (0, 0)
    assert judgment_errors(truth, lucky, 4) == (0, 2)
    assert judgment_errors(truth, "Score: 1", 1) == (3, 5)
