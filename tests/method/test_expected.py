"""The mean over the scores that could have stood there, from the probabilities of the tokens."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metareward.method.judge import Rubric, expected_score
from metareward.types import Completion, Scored, Step, TopLogprob, Truncated, Unparsed

RUBRIC = Rubric.load("judge")


def written(texts: list[str], place: int, chances: dict[str, float], finish: str = "stop") -> Completion:
    """A completion of these tokens; at ``place`` these could have stood, elsewhere only what stands there."""
    steps = [Step(text, (TopLogprob(text, 0.0),)) for text in texts]
    steps[place] = Step(texts[place], tuple(TopLogprob(text, math.log(chance)) for text, chance in chances.items()))
    assert finish in ("stop", "length")
    return Completion("".join(texts), "stop" if finish == "stop" else "length", len(texts), tuple(steps))


def score(judgment: Completion) -> float:
    reading = expected_score(judgment, RUBRIC)
    assert isinstance(reading, Scored)
    return reading.score


def test_the_mean_of_what_could_have_stood_there() -> None:
    judgment = written(["Two points", ".\n", "Score", ":", " 4"], 4, {" 4": 0.5, " 5": 0.25, " 2": 0.25})
    assert score(judgment) == pytest.approx(0.5 * 4 + 0.25 * 5 + 0.25 * 2)


def test_what_is_no_score_is_left_out() -> None:
    judgment = written(["Score:", " 4"], 1, {" 4": 0.4, "4": 0.1, " 3": 0.25, " four": 0.15, " 9": 0.1})
    assert score(judgment) == pytest.approx((4 * 0.5 + 3 * 0.25) / 0.75)


@pytest.mark.parametrize("tail", [["</b>"], [" of", " 5"], ["\n"], []])
def test_what_follows_the_score_does_not_move_its_place(tail: list[str]) -> None:
    judgment = written(["Score: 1 comes later.", " Score:", " ", "3", *tail], 3, {"3": 0.75, "1": 0.25})
    assert score(judgment) == pytest.approx(2.5)


def test_a_score_of_several_tokens_stays_as_drawn() -> None:
    judgment = written(["Score:", " 4", ".", "5"], 1, {" 4": 0.5, " 1": 0.5})
    assert expected_score(judgment, RUBRIC) == Scored(4.5)


def test_without_probabilities_the_drawn_score_counts() -> None:
    assert expected_score(Completion("Score: 4", "stop", 3), RUBRIC) == Scored(4.0)


def test_what_cannot_be_read_stays_that() -> None:
    assert expected_score(written(["Score:", " 7"], 1, {" 7": 0.5, " 4": 0.5}), RUBRIC) == Unparsed("out_of_range")
    assert expected_score(written(["Score:", " 4"], 1, {" 4": 1.0}, "length"), RUBRIC) == Truncated()


@given(st.lists(st.floats(0.01, 1.0), min_size=6, max_size=6), st.integers(0, 5))
def test_between_the_ends_of_the_scale_and_near_what_is_sure(weights: list[float], drawn: int) -> None:
    chances = {f" {score}": weight / sum(weights) for score, weight in enumerate(weights)}
    reading = expected_score(written(["Score:", f" {drawn}"], 1, chances), RUBRIC)
    mean = sum(score * chances[f" {score}"] for score in range(6))
    assert isinstance(reading, Scored) and reading.score == pytest.approx(mean)
