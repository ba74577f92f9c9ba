"""What becomes of a proposal: its reading, its likeness to others, and the reason against it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metareward.data.propose import LIMITS, Known, Limits, Proposal, proposals_in, rouge_l, words_of
from metareward.types import Completion

GOLDEN = Path(__file__).parents[1] / "golden/rouge_l.jsonl"
KNOWN = "Write a short story about an old lighthouse and the keeper who lives there."

words = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f"]), min_size=1, max_size=12)


def written(text: str) -> list[Proposal]:
    return list(proposals_in(Completion(text, "stop", 1)))


def reason(text: str, limits: Limits = LIMITS) -> str | None:
    return Known([KNOWN], limits).examine(text).reason


def test_words_have_no_case_and_no_punctuation() -> None:
    assert words_of("Hello, World_2 -- don't!") == ["hello", "world", "2", "don", "t"]
    assert words_of("naïve ÜBER") == ["naïve", "über"]
    assert words_of("日本のabc漢") == ["日", "本", "の", "abc", "漢"]
    assert words_of(" ... ") == []


@pytest.mark.parametrize("line", GOLDEN.read_text(encoding="utf-8").splitlines())
def test_it_is_the_f_measure_of_the_rouge_score_package(line: str) -> None:
    """The values are those of rouge-score 0.1.2, without stemming, on the same words."""
    golden = json.loads(line)
    found = rouge_l(words_of(golden["first"]), words_of(golden["second"]))
    assert found == pytest.approx(golden["rouge_l"], abs=1e-12)


def longest_common_subsequence(first: list[str], second: list[str]) -> int:
    best = [0] * (len(second) + 1)
    for a in first:
        last = best[:]
        for place, b in enumerate(second, 1):
            best[place] = last[place - 1] + 1 if a == b else max(last[place], best[place - 1])
    return best[-1]


@given(words, words)
@settings(deadline=None)
def test_it_is_the_formula(first: list[str], second: list[str]) -> None:
    common = longest_common_subsequence(first, second)
    assert rouge_l(first, second) == pytest.approx(2 * common / (len(first) + len(second)))
    assert rouge_l(first, []) == 0.0


def test_tasks_are_read_between_their_marks() -> None:
    told = written("Sure!\n<task>\nName a river.\n</task> <TASK>Name\na lake.</TASK>\nAnswer: the Rhine")
    assert told == [Proposal("Name a river."), Proposal("Name\na lake.")]


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("Name a river.", ["unreadable"]),
        ("", ["unreadable"]),
        ("<task>Name a river.", ["cut_off"]),
        ("<task>Name a river.</task><task>Name a", [None, "cut_off"]),
        ("<task>Name <task>a river.</task>", ["unreadable"]),
        ("<task></task>", [None]),  # too short, later
    ],
)
def test_what_is_no_task_is_told_as_such(text: str, reasons: list[str | None]) -> None:
    assert [each.reason for each in written(text)] == reasons


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Explain how tides come about, in three sentences.", None),
        ("Explain tides.", "too_short"),
        ("", "too_short"),
        ("why " * 151, "too_long"),
        ("Describe the Picture that hangs above your desk.", "keyword"),
        ("Give me the URL of a good dictionary, please.", "keyword"),
        ("Explain what a profile or a bitmap is to a child.", None),  # parts of words don't count
        (KNOWN, "repeated"),
        (f"  {KNOWN.upper()} !", "repeated"),
        ("Write a long story about an old lighthouse and the keeper who lives there.", "too_similar"),
        ("Write a poem about the sea and the people who work on it.", None),
    ],
)
def test_the_first_reason_against_a_proposal(text: str, expected: str | None) -> None:
    assert reason(text) == expected


def test_the_reason_comes_with_its_numbers() -> None:
    found = Known([KNOWN], LIMITS).examine(KNOWN.replace("short", "long"))
    assert found.detail.startswith("ROUGE-L 0.93 with: write a short story about")
    assert Known([], LIMITS).examine("one two").detail == "2 words"


def test_limits_can_be_others() -> None:
    assert reason("Explain tides.", Limits(min_words=2)) is None
    assert reason("Describe the picture here.", Limits(keywords=())) is None
    assert reason("Describe the C++ language now.", Limits(keywords=("C++",))) == "keyword"
    assert reason(KNOWN.replace("short", "long"), Limits(most_alike=0.95)) is None


sentences = st.lists(words.map(" ".join), max_size=25)


@given(sentences, sentences)
@settings(deadline=None)
def test_what_is_taken_is_unlike_all_that_is_known(seeds: list[str], offered: list[str]) -> None:
    limits = Limits(min_words=1, most_alike=0.7)
    known = Known(seeds, limits)
    taken = [text for text in offered if known.examine(text).reason is None]
    for place, text in enumerate(taken):
        others = [*seeds, *taken[:place]]
        assert all(rouge_l(words_of(text), words_of(other)) < 0.7 for other in others)
    assert len({tuple(words_of(text)) for text in taken}) == len(taken)


@given(sentences)
@settings(deadline=None)
def test_nothing_is_dropped_without_a_reason_that_holds(offered: list[str]) -> None:
    known, taken = Known([], LIMITS), list[str]()
    for text in offered:
        found = known.examine(text)
        alike = max((rouge_l(words_of(text), words_of(other)) for other in taken), default=0.0)
        if found.reason is None:
            taken.append(text)
        else:
            assert (found.reason == "too_short") == (len(text.split()) < LIMITS.min_words)
            assert found.reason == "too_short" or alike >= 0.7
