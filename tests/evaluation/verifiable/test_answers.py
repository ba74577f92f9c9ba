"""Known answers: what is read from a response, and how it is compared."""

from __future__ import annotations

import re
import time
from fractions import Fraction
from pathlib import Path

import builders  # noqa: F401  (sets hypothesis up)
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from made_up import lines

from metareward.errors import UserError
from metareward.evaluation.verifiable.answers import (
    Kind,
    Outcome,
    Task,
    check,
    normalized,
    read_number,
    read_tasks,
)
from metareward.types import Message


def task(kind: Kind, *answers: str, choices: tuple[str, ...] = ("A", "B", "C", "D"), tolerance: str = "0") -> Task:
    return Task("t", (Message("user", "?"),), kind, answers, Fraction(tolerance), choices)


CASES: list[tuple[Task, str, Outcome]] = [
    (task("number", "42"), "42", "correct"),
    (task("number", "42"), "Six times seven is 42.", "correct"),
    (task("number", "42"), "40 and 2 more: 42 apples", "correct"),
    (task("number", "42"), "I had 43. #### 42", "correct"),
    (task("number", "42"), r"so \boxed{42} and 7", "correct"),
    (task("number", "42"), r"first \boxed{1}, then \boxed{\text{x} = 42}", "correct"),
    (task("number", "42"), "The answer is x = 6 * 7 = 42 cm", "correct"),
    (task("number", "42"), "forty-two", "unreadable"),
    (task("number", "1000"), "**Answer:** $1,000.00", "correct"),
    (task("number", "1/2"), "It is 0.5", "correct"),
    (task("number", "0.5"), "Answer: 1/2", "correct"),
    (task("number", "-3"), "Answer: -3", "correct"),
    (task("number", "-3"), "Answer: −3", "correct"),
    (task("number", "3"), "7 - 4 = 3", "correct"),
    (task("number", "3.14", tolerance="0.01"), "3.1416", "correct"),
    (task("number", "3.14"), "3.1416", "wrong"),
    (task("number", "5"), "gpt4 has version v5", "unreadable"),
    (task("number", "3"), "1,2,3", "correct"),
    (task("choice", "B"), "B", "correct"),
    (task("choice", "B"), "(b)", "correct"),
    (task("choice", "B"), "B. Lima", "correct"),
    (task("choice", "B"), "**B**", "correct"),
    (task("choice", "B"), "Let me think. A is wrong.\n\n(B) Lima", "correct"),
    (task("choice", "B"), "The answer is (B), because A is too small.", "correct"),
    (task("choice", "B"), "The answer is B, because A is too small.", "correct"),
    (task("choice", "B"), "The answer is either A or B.", "unreadable"),
    (task("choice", "B"), "The correct answer is option B", "correct"),
    (task("choice", "A"), "I have a dog", "unreadable"),
    (task("choice", "B"), "I'd take (B) over (A)", "wrong"),
    (task("choice", "yes", choices=("yes", "no")), "Yes.", "correct"),
    (task("choice", "yes", choices=("yes", "no")), "Answer: no", "wrong"),
    (task("choice", "E"), "E", "unreadable"),
    (task("exact", "Lima", "Lima, Peru"), "lima", "correct"),
    (task("exact", "Lima"), 'The capital?\n\n"Lima."', "correct"),
    (task("exact", "Lima"), "The answer is **Lima**.", "correct"),
    (task("exact", "Lima"), "The answer is Lima, I think.", "wrong"),
    (task("exact", "Lima"), " \n ", "unreadable"),
    (task("exact", "é"), "e\u0301", "correct"),
    (task("regex", r"\d{4}-\d\d-\d\d"), "on 2024-02-29.", "correct"),
    (task("regex", r"\d{4}-\d\d-\d\d"), "on 29 February", "wrong"),
]


@pytest.mark.parametrize(("each", "response", "outcome"), CASES)
def test_what_is_read(each: Task, response: str, outcome: Outcome) -> None:
    assert check(each, response).outcome == outcome


NUMBERS = st.one_of(
    st.integers(-(10**12), 10**12).map(str),
    st.integers(-(10**9), 10**9).map(lambda n: f"{n:,}"),
    st.decimals(-(10**6), 10**6, places=4).map(lambda n: f"{n:f}"),
)
# Text without digits, marks or equals signs.
WORDS = st.text(st.sampled_from("bcdfg hjklm\n.,:()*"), max_size=40)


@given(NUMBERS)
def test_a_number_is_its_value(text: str) -> None:
    assert read_number(text) == Fraction(text.replace(",", ""))


@given(WORDS, NUMBERS, NUMBERS, WORDS)
def test_the_marked_number_counts_and_else_the_last_one(before: str, number: str, other: str, after: str) -> None:
    marked = f"{before} {other} \nThe answer is {number}. {after} "
    assert check(task("number", number), marked).outcome == "correct"
    assert check(task("number", number), f"{before} {other} so {number} {after}").outcome == "correct"
    if read_number(number) != read_number(other):
        assert check(task("number", other), marked).outcome == "wrong"


@given(WORDS, st.sampled_from("ABCD"), st.sampled_from("ABCD"))
def test_a_marked_choice_counts(before: str, choice: str, other: str) -> None:
    for said in (f"({choice})", choice, f"**{choice}**", f"{choice}. {before}"):
        answer = check(task("choice", choice), f"{before} ({other}) answer: {said}")
        assert (answer.outcome, answer.answer) == ("correct", choice)


@given(
    st.text(st.sampled_from("aA1/.,=(){}\\*#:-+$ \nıİſé½"), max_size=40),
    st.sampled_from(("", r"\boxed{", "answer is ", "####")),
)
@example("..", "")
@example('a."."', "")
def test_any_response_has_an_outcome(text: str, mark: str) -> None:
    response = mark + text
    for kind in ("exact", "number", "choice", "regex"):
        assert check(task(kind, "1"), response).outcome in ("correct", "wrong", "unreadable")
    assert normalized(normalized(response)) == normalized(response)


@pytest.mark.parametrize("unit", ["1", "1,111,", "(", "A)", r"\boxed{", "answer: ", "1/", "#", "-", " ", "1e9"])
def test_long_responses_take_no_time(unit: str) -> None:
    start = time.monotonic()
    for kind in ("exact", "number", "choice"):
        check(task(kind, "1"), unit * 30_000)
        check(task(kind, "1"), unit * 30_000 + "/")
    assert time.monotonic() - start < 5


def test_a_regex_that_backtracks_for_ever_times_out() -> None:
    start = time.monotonic()
    assert check(task("regex", "(a|aa)+$"), "a" * 60 + "b").outcome == "timeout"
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"kind": "word", "answer": "x"}, "field \"kind\": is 'word'; fix: use exact, number, choice, regex"),
        ({"kind": "number", "answer": "six"}, 'field "answer": is no number that can be read'),
        ({"kind": "number", "answer": 6, "tolerance": -1}, 'field "tolerance": is no number of at least 0'),
        ({"kind": "choice", "answer": "E"}, 'field "answer": is no choice'),
        ({"kind": "exact", "answer": ["x", ""]}, 'field "answer": is empty or no text'),
        ({"kind": "exact", "answer": []}, 'field "answer": is empty or no text'),
        ({"kind": "exact"}, 'field "answer": is missing'),
        ({"kind": "regex", "answer": "(a"}, 'field "answer": is no regular expression'),
    ],
)
def test_a_task_without_a_possible_answer_is_refused(tmp_path: Path, row: dict[str, object], message: str) -> None:
    path = lines(tmp_path / "tasks.jsonl", [{"id": "1", "prompt": "?", **row}])
    with pytest.raises(UserError, match=r"^[^\n]*tasks.jsonl:1: " + re.escape(message)):
        read_tasks(path)


def test_tasks_are_read_with_their_defaults(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"id": 1, "prompt": "6 * 7?", "kind": "number", "answer": 42, "tolerance": "1/2"},
        {"id": "2", "messages": [{"role": "user", "content": "(A) or (B)?"}], "kind": "choice", "answer": "B"},
        {"id": "3", "prompt": "?", "kind": "exact", "answer": ["Lima", 7]},
    ]
    number, choice, exact = read_tasks(lines(tmp_path / "tasks.jsonl", rows))
    assert (number.id, number.answers, number.tolerance) == ("1", ("42",), Fraction(1, 2))
    assert (choice.choices, choice.messages[0].content) == (("A", "B", "C", "D"), "(A) or (B)?")
    assert exact.answers == ("Lima", "7")
