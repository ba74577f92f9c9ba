"""Which judgments and comparisons are worth asking: all that a pair could need, and little else."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metareward.method.elo import Array, Battles, fit_elo, rating_posterior
from metareward.method.pairs import tiers
from metareward.method.scores import AnswerScore, Rounds, ScoredAnswer, answers_in_doubt, mean, variance

SCORES = st.integers(0, 5).map(float)
ALL = Rounds(n=6, size=3, z=1.0)
# Scores 0 to 5 of one answer have a standard deviation of at most 2.74: so many of them hold everything possible.
CERTAIN = 1e6


def in_rounds(scores_KN: list[list[float]], chars_K: list[int], rounds: Rounds) -> list[ScoredAnswer]:
    """The answers as they are judged in rounds, when no more is asked."""
    asked = [0] * len(scores_KN)
    while True:
        answers = [
            ScoredAnswer(k, tuple(scores[: asked[k]]), asked[k], chars)
            for k, (scores, chars) in enumerate(zip(scores_KN, chars_K, strict=True))
        ]
        wanted = answers_in_doubt(answers, rounds)
        if not wanted:
            return answers
        for k in wanted:
            more = rounds.more(answers[k])
            assert more > 0
            asked[k] += more
            assert asked[k] <= rounds.n


def chosen_and_rejected(answers: list[ScoredAnswer], rho: float) -> tuple[int, int] | None:
    """As actor pairs are made: the shortest of the top tier, the longest of the bottom tier; None if all are equal."""
    scores = [AnswerScore(each.index, mean(each.scores), None, len(each.scores), each.chars) for each in answers]
    if max(each.mean for each in scores) - min(each.mean for each in scores) < 1e-9:
        return None
    top, bottom = tiers(scores, rho)
    rejected = min(bottom, key=lambda each: (-each.chars, each.index))
    return min(top, key=lambda each: (each.chars, each.index)).index, rejected.index


@st.composite
def judged(draw: st.DrawFn) -> tuple[list[list[float]], list[int]]:
    count = draw(st.integers(2, 5))
    scores = draw(st.lists(st.lists(SCORES, min_size=6, max_size=6), min_size=count, max_size=count))
    return scores, draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))


@settings(deadline=None)
@given(judged(), st.sampled_from([0.0, 0.1, 0.4, 0.8]))
def test_with_no_doubt_allowed_the_pair_is_that_of_all_judgments(
    given: tuple[list[list[float]], list[int]], rho: float
) -> None:
    scores_KN, chars_K = given
    rounds = replace(ALL, z=CERTAIN, z_variance=CERTAIN, rho=rho)
    full = [ScoredAnswer(k, tuple(scores), 6, chars_K[k]) for k, scores in enumerate(scores_KN)]
    found = in_rounds(scores_KN, chars_K, rounds)
    assert chosen_and_rejected(found, rho) == chosen_and_rejected(full, rho)
    most = max(variance(each.scores) or 0.0 for each in full)
    assert max(variance(each.scores) or 0.0 for each in found if each.asked == 6) == pytest.approx(most)


@settings(deadline=None)
@given(judged(), st.floats(0, 3), st.floats(0, 1), st.booleans())
def test_rounds_end_and_judge_each_answer_at_least_once(
    given: tuple[list[list[float]], list[int]], z: float, rho: float, disputed: bool
) -> None:
    found = in_rounds(*given, replace(ALL, z=z, rho=rho, disputed=disputed))
    assert all(ALL.size <= each.asked <= ALL.n for each in found)


def test_answers_far_from_best_and_worst_get_no_more() -> None:
    scores = [[5.0] * 6, [2.0, 3.0, 2.0, 3.0, 2.0, 3.0], [3.0, 2.0, 3.0, 2.0, 3.0, 2.0], [0.0] * 6]
    found = in_rounds(scores, [3, 3, 3, 3], replace(ALL, disputed=False))
    assert [each.asked for each in found] == [3, 3, 3, 3]


def test_only_the_answers_in_doubt_get_more() -> None:
    scores = [[5.0, 4.0, 5.0, 4.0, 5.0, 5.0], [4.0, 5.0, 4.0, 5.0, 4.0, 4.0], [2.0] * 6, [0.0] * 6]
    found = in_rounds(scores, [3, 3, 3, 3], replace(ALL, disputed=False))
    asked = [each.asked for each in found]
    assert asked[0] == asked[1] > 3 and asked[2:] == [3, 3]
    with_dispute = in_rounds([[5.0] * 6, [1.0, 4.0] * 3, [4.0, 1.0] * 3, [0.0] * 6], [3] * 4, ALL)
    assert [each.asked for each in with_dispute] == [3, 6, 6, 3]


def test_length_control_needs_the_answers_of_the_tier_that_are_short_enough() -> None:
    # At rho 0.4 the tier begins at 3: answer 1, in it beyond doubt and the shortest, is chosen whatever the others are.
    scores = [[5.0] * 6, [4.0] * 6, [4.0, 5.0, 4.0, 5.0, 4.0, 5.0], [0.0] * 6]
    rounds = replace(ALL, rho=0.4, disputed=False)
    assert [each.asked for each in in_rounds(scores, [8, 2, 8, 8], rounds)] == [3, 3, 3, 3]
    assert [each.asked for each in in_rounds(scores, [8, 2, 8, 8], replace(rounds, rho=0.0))][3] == 3


def test_an_answer_with_too_few_readable_judgments_always_gets_more() -> None:
    clear = (ScoredAnswer(0, (5.0,) * 3, 3, 5), ScoredAnswer(1, (0.0,) * 3, 3, 5))
    alone = replace(ALL, disputed=False)
    assert answers_in_doubt(clear, alone) == ()
    unread = ScoredAnswer(2, (3.0,), 3, 5)
    assert answers_in_doubt((*clear, unread), alone) == (2,)
    assert answers_in_doubt((*clear, replace(unread, asked=6)), alone) == ()


def test_a_cut_off_answer_can_only_be_disputed() -> None:
    rivals = tuple(ScoredAnswer(k, scores, 3, 5) for k, scores in enumerate([(5.0, 4.0, 5.0), (0.0, 0.0, 0.0)]))
    cut_off = ScoredAnswer(2, (4.0, 5.0, 5.0), 3, 5, cut_off=True)
    alone = replace(ALL, disputed=False)
    assert answers_in_doubt((*rivals, cut_off), alone) == ()
    assert answers_in_doubt((*rivals, replace(cut_off, cut_off=False)), alone) == (0, 2)
    assert answers_in_doubt((*rivals, cut_off), replace(alone, mask_truncated_completions=False)) == (0, 2)


# --- comparisons ---


def compare(wins: Array, pairs: Iterable[tuple[int, int]], strengths: Array, rng: np.random.Generator) -> None:
    """Compare each pair in both orders; the one shown first has an advantage."""
    for i, j in pairs:
        for first, second in ((i, j), (j, i)):
            ahead = rng.random() < 1 / (1 + math.exp(strengths[second] - strengths[first] - 0.5))
            wins[(first, second) if ahead else (second, first)] += 0.5


def play(battles: Battles, strengths: Array, rng: np.random.Generator) -> tuple[Array, int]:
    """Ratings after all comparisons that ``battles`` asks, of judgments with these strengths, and their number."""
    count = len(strengths)
    wins, asked = np.zeros((count, count)), np.zeros((count, count))
    while pairs := battles.next_pairs(wins, asked, seed=5):
        for i, j in pairs:
            assert i != j and not asked[i, j]
            asked[i, j] = asked[j, i] = 1
        compare(wins, pairs, strengths, rng)
    return np.array(fit_elo(wins).values_M), int(asked.sum())


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 60), st.integers(1, 5), st.integers(0, 10))
def test_no_pair_is_compared_twice_and_the_budget_is_kept(count: int, budget: int, batch: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    _, asked = play(Battles(budget, batch, z=CERTAIN), rng.normal(0, 1, count), rng)
    assert asked == 2 * min(budget, count * (count - 1) // 2)


def test_clear_winners_end_the_comparisons_early() -> None:
    strengths = np.array([-9.0, 0, 0, 0, 0, 0, 0, 0, 9.0])
    ratings, asked = play(Battles(36, z=1.0), strengths, np.random.default_rng(0))
    assert (int(ratings.argmax()), int(ratings.argmin())) == (8, 0)
    assert asked < 72


def test_a_sixth_of_the_comparisons_finds_first_and_last_nearly_as_well_as_all() -> None:
    """As a share of the true range, over 40 draws; as many pairs drawn at random find much less of it."""
    rng, count, found = np.random.default_rng(1), 20, dict[str, list[float]](all=[], adaptive=[], random=[])
    every = list(combinations(range(count), 2))
    for _ in range(40):
        strengths = rng.normal(0, 1.5, count)
        drawn = [every[at] for at in rng.permutation(len(every))[:30]]
        ratings = {"adaptive": play(Battles(30), strengths, rng)[0]}
        for name, pairs in (("all", every), ("random", drawn)):
            wins = np.zeros((count, count))
            compare(wins, pairs, strengths, rng)
            ratings[name] = np.array(fit_elo(wins).values_M)
        for name, each in ratings.items():
            found[name].append(float(strengths[each.argmax()] - strengths[each.argmin()]) / float(np.ptp(strengths)))
    share = {name: mean(each) for name, each in found.items()}
    assert share["random"] + 0.08 < share["adaptive"] and share["adaptive"] > share["all"] - 0.12, share


def test_the_covariance_gives_the_intervals_of_the_ratings() -> None:
    battles = np.random.default_rng(2).integers(0, 4, (5, 5)).astype(float)
    np.fill_diagonal(battles, 0)
    fitted, (ratings, covariance) = fit_elo(battles), rating_posterior(battles, 0.1)
    assert ratings == pytest.approx(fitted.values_M)
    assert 1.959963984540054 * np.sqrt(np.diag(covariance)) == pytest.approx(np.array(fitted.high_M) - ratings)
    assert covariance.sum() == pytest.approx(0, abs=1e-12)
