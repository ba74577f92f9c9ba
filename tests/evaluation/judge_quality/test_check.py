"""Pairs are length-balanced by construction, and a judge is only said to beat length alone when it does."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from builders import candidate, record
from hypothesis import given
from hypothesis import strategies as st

from metareward.errors import UserError
from metareward.evaluation.judge_quality.check import (
    Asked,
    JudgeCheck,
    advice,
    balanced,
    chance_figures,
    length_figures,
    oracle_pairs,
    packaged_pairs,
    pair_figures,
    pairs_to_check,
)
from metareward.evaluation.judge_quality.data import Item, Pair, PairVerdicts, Response, Winner
from metareward.method.judge_health import Figure
from metareward.types import Message, Prompt, PromptRecord

SHARE = Figure(1.0, 0.9, 1.0, 96, 48)


def pair(name: str, chars: tuple[int, int], label: Winner) -> Pair:
    responses = tuple(Response("a" * count) for count in chars)
    return Pair(Item(name, (Message("user", name),), responses), label, "", None)


PAIRS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.sampled_from((0, 1, 2))), max_size=40).map(
    lambda rows: [pair(f"p{i}", (one, other), label) for i, (one, other, label) in enumerate(rows)]  # type: ignore[arg-type]
)


def checked(pairs: tuple[Pair, ...], winners: list[Winner | None], readable: Figure | None = SHARE) -> JudgeCheck:
    verdicts = [PairVerdicts(each.item.id, (winner,)) for each, winner in zip(pairs, winners, strict=True)]
    longer, shorter = length_figures(pairs, 0)
    judge, asked = pair_figures(pairs, verdicts, 0), Asked(96, 96, 96, 1.0)
    return JudgeCheck(
        "a file", len(pairs), judge, longer, shorter, chance_figures(pairs), readable, None, None, None, asked
    )


def longest(pairs: tuple[Pair, ...]) -> list[Winner | None]:
    return [1 if each.chars[0] > each.chars[1] else 2 for each in pairs]


def values(figure: Figure | None) -> tuple[float, int]:
    assert figure is not None
    assert figure.low <= figure.value <= figure.high
    return figure.value, figure.n


# --- the pairs ---


def test_the_packaged_pairs_are_balanced_in_length_and_place() -> None:
    pairs = packaged_pairs()
    assert len(pairs) == 48
    longer = [(each.chars[0] > each.chars[1]) == (each.label == 1) for each in pairs]
    assert all(each.chars[0] != each.chars[1] for each in pairs)
    assert Counter(zip(longer, (each.label for each in pairs), strict=True)) == {
        (side, label): 12 for side in (True, False) for label in (1, 2)
    }
    assert len({each.item.messages for each in pairs}) == 48


@given(PAIRS, st.integers(2, 30), st.integers(0, 3))
def test_a_choice_is_balanced_and_length_alone_is_right_in_half(pairs: list[Pair], count: int, seed: int) -> None:
    chosen = balanced(pairs, count, seed)
    assert len(chosen) <= count
    sides = Counter((each.chars[0] > each.chars[1]) == (each.label == 1) for each in chosen if len(set(each.chars)) > 1)
    assert sides[True] == sides[False]
    assert set(chosen) <= {each for each in pairs if each.label}
    if chosen:
        for figures in length_figures(chosen, seed):
            assert values(figures.right) == (0.5, len(chosen))
    assert balanced(pairs, count, seed) == chosen


def test_a_file_in_which_length_decides_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"id": str(i), "input": "x", "output_1": "long" * i, "output_2": "s", "label": 1} for i in range(1, 5)]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match="of 4 labelled pairs the better answer is the longer in 4, so length and"):
        pairs_to_check(path, 10, 0)
    path.write_text("\n".join(map(json.dumps, [*rows, {**rows[0], "id": "9", "label": 2}])))
    assert len(pairs_to_check(path, 10, 0)) == 2


class ByDigit:
    """The true score of an answer is its first digit."""

    full_score = 9.0

    def answer_score(self, prompt: Prompt, answer: str) -> float:
        return float(answer[0])

    def judgment_error(self, prompt: Prompt, answer: str, judgment: str, score: float) -> tuple[float, ...]:
        return ()


def answers(name: str, *texts: str, cut: str = "") -> PromptRecord:
    made = [candidate(i, [], text=text) for i, text in enumerate(texts)]
    if cut:
        made.append(replace(candidate(len(made), [], text=cut), finish="length"))
    return record(made, name=name)


def test_the_oracle_s_pairs_are_those_furthest_apart() -> None:
    records = [
        answers("one", "1 long long", "9", "5 long", cut="0"),  # better shorter: 9 over 1; longer: none
        answers("two", "2", "7 long", "8 longer"),
        answers("equal", "3", "3 long"),
    ]
    found = oracle_pairs(records, ByDigit(), 48, 0)
    assert [each.item.id for each in found] == ["one shorter", "two longer"]
    assert [[each.text for each in one.item.responses] for one in found] == [["1 long long", "9"], ["2", "8 longer"]]
    assert [each.label for each in found] == [2, 2]
    assert oracle_pairs(records[1:], ByDigit(), 48, 0) == ()  # one side only


# --- judges ---


def test_a_right_judge_beats_length_and_a_judge_by_length_does_not() -> None:
    pairs = packaged_pairs()
    right = checked(pairs, [each.label for each in pairs])
    assert right.beats_length and right.finding.startswith("The judge sees more than length: it is right on 100 %")
    assert advice(right, constrained=True, expected=True, judge_is_model=True) == ()
    by_length = checked(pairs, longest(pairs))
    assert by_length.judge == by_length.longer
    assert values(by_length.judge.right_if_shorter) == (0.0, 24)
    assert "isn't shown to beat length alone: it is right on 50 %" in by_length.finding
    assert by_length.finding.endswith("It prefers the longer answer on 100 % (92.6 to 100 %).")
    told = advice(by_length, constrained=True, expected=True, judge_is_model=True)
    assert len(told) == 1 and "metareward seed build" in told[0]
    short = checked(pairs, [3 - winner for winner in longest(pairs) if winner])  # type: ignore[misc]
    assert short.finding.endswith("It prefers the shorter answer on 100 % (92.6 to 100 %).")


def test_random_judges_seldom_beat_length() -> None:
    pairs, draw = packaged_pairs(), random.Random(1)
    beat = [checked(pairs, [draw.choice((1, 2)) for _ in pairs]).beats_length for _ in range(40)]
    assert sum(beat) <= 3


def test_ties_and_unreadable_judgments_are_named() -> None:
    pairs = packaged_pairs()
    tied = checked(pairs, [0] * 48)
    assert values(tied.judge.right) == (0.5, 48) and tied.judge.prefers_longer is None
    assert "100 % (92.6 to 100 %) of the pairs are ties" in advice(tied, True, False, judge_is_model=True)[0]
    few = Figure(0.2, 0.1, 0.3, 96, 48)
    silent = checked(pairs, [None] * 48, few)
    assert silent.judge.right is None and not silent.beats_length
    assert silent.finding == "No two answers of a pair have readable scores, so nothing is known of the judge."
    assert "verdict to constrained" in advice(silent, False, False, judge_is_model=True)[0]
    nothing = checked((), [])
    assert nothing.finding.startswith("No pair could be made")


def test_unreadable_pairs_are_left_out_and_the_rest_is_balanced_again() -> None:
    """A judge that reads only pairs whose better answer is the longer shows nothing."""
    pairs = packaged_pairs()
    one_side = checked(
        pairs, [each.label if w == each.label else None for each, w in zip(pairs, longest(pairs), strict=True)]
    )
    assert one_side.judge.right is None
    winners: list[Winner | None] = [each.label if i < 20 else None for i, each in enumerate(pairs)]
    some = checked(pairs, winners)
    assert values(some.judge.right) == (1.0, 20) and values(some.judge.right_if_longer) == (1.0, 10)
    assert some.beats_length
    fewer = checked(pairs, [each.label if i < 8 else None for i, each in enumerate(pairs)])
    assert not fewer.beats_length and fewer.finding.startswith("Too few pairs")
