"""Scores of answers and the disputed answer."""

import math
import random
import statistics
from dataclasses import replace

import pytest
from builders import candidate, candidates, record, scores_on_scale
from hypothesis import given
from hypothesis import strategies as st

from metareward.method.scores import answer_scores, disputed, mean, valid_scores, variance
from metareward.seeds import derive
from metareward.types import Candidate, Scored, Truncated, Unparsed


def test_only_valid_scores_count() -> None:
    answer = candidate(3, [4, None, Truncated(), 2.5, Unparsed("out_of_range")], "four")
    assert valid_scores(answer) == (4.0, 2.5)
    (score,) = answer_scores(record([answer]), 2)
    assert (score.index, score.mean, score.variance, score.n_valid, score.chars) == (3, 3.25, 1.125, 2, 4)


def test_an_answer_with_too_few_valid_scores_has_no_score() -> None:
    answers = [candidate(0, [5, None]), candidate(1, [None, None]), candidate(2, [0, 0])]
    assert [score.index for score in answer_scores(record(answers), 2)] == [2]
    assert [score.index for score in answer_scores(record(answers), 1)] == [0, 2]
    assert [score.index for score in answer_scores(record(answers), 0)] == [0, 2]


def test_an_answers_length_is_in_characters() -> None:
    (score,) = answer_scores(record([candidate(0, [4, 4], "naïve 漢字")]), 2)
    assert score.chars == 8


def test_one_judgment_has_no_variance() -> None:
    (score,) = answer_scores(record([candidate(0, [4])]), 1)
    assert (score.mean, score.variance) == (4.0, None)


@given(st.lists(scores_on_scale, min_size=2, max_size=11), st.randoms())
def test_mean_and_variance_agree_with_the_statistics_module_in_any_order(
    values: list[float], shuffler: random.Random
) -> None:
    mixed = list(values)
    shuffler.shuffle(mixed)
    assert (mean(values), variance(values)) == (mean(mixed), variance(mixed))
    assert mean(values) == pytest.approx(statistics.fmean(values), abs=1e-12)
    assert variance(values) == pytest.approx(statistics.variance(values), abs=1e-12)


def test_the_disputed_answer_has_the_most_variance() -> None:
    answers = (candidate(0, [3, 3, 4]), candidate(1, [1, 5, 3]), candidate(2, [4, 4, 4]))
    assert disputed(answers, 2, 0) is answers[1]


def test_answers_with_fewer_judgments_are_compared_by_sample_variance() -> None:
    answers = (candidate(0, [2, 4, None, None]), candidate(1, [2, 4, 2, 4]))
    assert disputed(answers, 2, 0) is answers[0]  # 2 against 4/3; the population variances are equal
    assert disputed(answers, 3, 0) is answers[1]


@pytest.mark.parametrize("scores", [[3, 3, 3], [3, None, None], [None, None, None]])
def test_no_answer_is_disputed_without_variance(scores: list[float | None]) -> None:
    assert disputed([candidate(0, scores)], 1, 0) is None


def test_no_answer_is_disputed_without_answers() -> None:
    assert disputed([], 2, 0) is None


def test_ties_are_broken_by_the_seed_alone() -> None:
    answers = [candidate(index, [2, 4]) for index in range(4)]
    chosen = {seed: disputed(answers, 2, seed) for seed in range(40)}
    assert {answer.index for answer in chosen.values() if answer} == {0, 1, 2, 3}
    assert all(disputed(answers[::-1], 2, seed) == answer for seed, answer in chosen.items())


def test_ties_have_a_seed_of_their_own() -> None:
    answers = [candidate(index, [2, 4]) for index in range(7)]
    for seed in range(20):
        chosen = disputed(answers, 2, seed)
        assert chosen is answers[derive(seed, "disputed") % 7]


@given(candidates(), st.integers(0, 5), st.integers(0, 3))
def test_the_disputed_answer_has_the_largest_variance(
    answers: tuple[Candidate, ...], min_valid: int, seed: int
) -> None:
    needed = max(2, min_valid)
    enough = {a.index: valid_scores(a) for a in answers if len(valid_scores(a)) >= needed}
    spread = {index: variance(values) or 0.0 for index, values in enough.items()}
    chosen = disputed(answers, min_valid, seed)
    if chosen is None:
        assert max(spread.values(), default=0.0) < 1e-9
    else:
        assert spread[chosen.index] >= max(spread.values()) - 1e-9 > 0


def test_rewards_replace_the_scores_of_judgments() -> None:
    judged = [candidate(0, [5, 5], "five"), candidate(1, [], "one"), candidate(2, [1, 1], "none")]
    answers = [replace(judged[0], reward=-0.5), replace(judged[1], reward=2.0), judged[2]]
    scores = answer_scores(record(answers), 2)
    assert [(score.index, score.mean, score.variance, score.n_valid, score.chars) for score in scores] == [
        (0, -0.5, None, 2, 4),
        (1, 2.0, None, 0, 3),
    ]


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_must_be_finite(reward: float) -> None:
    with pytest.raises(ValueError, match="answer 0 must be finite"):
        replace(candidate(0, [4]), reward=reward)


def test_the_uncertainty_of_a_score_is_the_standard_error_of_its_mean() -> None:
    def of(*readings: Scored) -> float | None:
        (score,) = answer_scores(record([candidate(0, readings)]), 1)
        return score.uncertainty

    assert of(Scored(4.0)) is None  # one judgment as written
    assert of(Scored(4.0, deviation=0.5)) == 0.5
    assert of(Scored(2.0), Scored(4.0)) == pytest.approx(math.sqrt(2 / 2))
    # The variance between judgments, 2, and the mean of their own, 0.25 and 0.75, over two judgments.
    assert of(Scored(2.0, deviation=0.5), Scored(4.0, deviation=math.sqrt(0.75))) == pytest.approx(math.sqrt(2.5 / 2))


def test_a_reward_has_no_uncertainty() -> None:
    (score,) = answer_scores(record([replace(candidate(0, [Scored(4.0, deviation=1.0)]), reward=3.0)]), 1)
    assert (score.mean, score.uncertainty) == (3.0, None)
