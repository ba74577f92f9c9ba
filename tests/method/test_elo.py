"""Position weights, battle matrices and Elo ratings."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from builders import dispute, disputes, meta
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_expit

from metareward.method.elo import PositionWeights, battle_matrix, fit_elo, position_weights
from metareward.types import Dispute, Tied, Truncated, Unparsed, Won

Array = NDArray[np.float64]
EVEN = PositionWeights(0.5, 0.5, 0, 0)
weights = st.floats(0, 1).map(lambda first: PositionWeights(first, 1 - first, 0, 0))
matrices = st.integers(2, 6).flatmap(lambda n: arrays(np.float64, (n, n), elements=st.floats(0, 8)))

# r_12 = r_13 = r_21 = r_23 = +1, r_31 = -1, r_32 = +1, with judgments 1, 2, 3 as 0, 1, 2.
WORKED = dispute({(0, 1): 0, (0, 2): 0, (1, 0): 1, (1, 2): 1, (2, 0): 0, (2, 1): 2}, 3)


def test_position_weights_of_the_worked_example() -> None:
    assert position_weights(WORKED.meta) == PositionWeights(1 / 6, 5 / 6, 5, 1)


def test_battle_matrix_and_ratings_of_the_worked_example() -> None:
    battles = battle_matrix(WORKED, position_weights(WORKED.meta))
    np.testing.assert_allclose(battles, [[0, 1 / 6, 1], [1 / 6, 0, 1 / 6], [0, 1 / 6, 0]], atol=1e-15)
    assert fit_elo(battles, 0).values_M == pytest.approx((1.170676, 0, -1.170676), abs=1e-6)


@pytest.mark.parametrize(
    ("battles", "prior", "expected", "tolerance"),
    [
        ([[0, 2, 1], [1, 0, 2], [1, 1, 0]], 0.0, 0.291134, 1e-6),
        ([[0, 1, 1], [0, 0, 1], [0, 0, 0]], 0.1, 1.7584, 1e-4),
        ([[0, 1, 1], [0, 0, 1], [0, 0, 0]], 1.0, 0.5911, 1e-4),
    ],
)
def test_worked_ratings(battles: list[list[float]], prior: float, expected: float, tolerance: float) -> None:
    ratings = fit_elo(np.array(battles), prior)
    assert ratings.values_M == pytest.approx((expected, 0, -expected), abs=tolerance)
    assert ratings.converged
    assert 1 <= ratings.steps <= 10


def test_weights_without_wins_are_even() -> None:
    undecided = [meta(0, 1, None), meta(1, 0, Tied()), meta(0, 2, Truncated())]
    assert position_weights(undecided) == EVEN


def test_a_win_in_both_orders_is_one_whole_win_and_a_flip_is_a_tie() -> None:
    uneven = PositionWeights(0.2, 0.8, 0, 0)
    np.testing.assert_allclose(battle_matrix(dispute({(0, 1): 1, (1, 0): 1}, 2), uneven), [[0, 0], [1, 0]])
    np.testing.assert_allclose(battle_matrix(dispute({(0, 1): 0, (1, 0): 1}, 2), uneven), [[0, 0.2], [0.2, 0]])
    np.testing.assert_allclose(battle_matrix(dispute({(0, 1): 1, (1, 0): 0}, 2), uneven), [[0, 0.8], [0.8, 0]])


def test_cells_follow_the_indices_of_the_verdicts() -> None:
    of_three = Dispute(0, (9, 4, 6), (meta(6, 9, 6), meta(4, 6, None), meta(9, 4, 4)))
    battles = battle_matrix(of_three, PositionWeights(0.3, 0.7, 0, 0))
    expected = np.zeros((3, 3))
    expected[2, 0] = 0.3  # 6 beat 9, shown first
    expected[1, 0] = 0.7  # 4 beat 9, shown second
    np.testing.assert_allclose(battles, expected)


@pytest.mark.parametrize(("first", "second", "winner"), [(0, 5, 5), (0, 1, 2), (1, 1, 1)])
def test_a_verdict_about_other_judgments_is_an_error(first: int, second: int, winner: int) -> None:
    with pytest.raises(ValueError, match="judgment"):
        battle_matrix(Dispute(0, (0, 1, 2), (meta(first, second, winner),)), EVEN)


@given(disputes(), weights, st.data())
def test_an_unparsed_verdict_changes_no_other_cell(of: Dispute, counted: PositionWeights, data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.sampled_from(of.meta), unique=True)) if of.meta else []
    lost = {(each.first, each.second) for each in of.meta if each not in kept}
    fewer = replace(of, meta=tuple(each for each in of.meta if each in kept))
    unread = replace(
        of, meta=tuple(each if each in kept else replace(each, verdict=Unparsed("missing")) for each in of.meta)
    )
    whole, part = battle_matrix(of, counted), battle_matrix(fewer, counted)
    np.testing.assert_array_equal(part, battle_matrix(unread, counted))
    for (m, one), (n, other) in permutations(enumerate(of.judgments_M), 2):
        if (one, other) not in lost and (other, one) not in lost:
            assert part[m, n] == whole[m, n]


def swapped(of: Dispute) -> Dispute:
    """The same winners with every order shown the other way round."""
    return replace(of, meta=tuple(replace(each, first=each.second, second=each.first) for each in of.meta))


@given(disputes())
def test_swapping_every_order_leaves_the_ratings(of: Dispute) -> None:
    one, other = position_weights(of.meta), position_weights(swapped(of).meta)
    assert (one.first_wins, one.second_wins) == (other.second_wins, other.first_wins)
    assert (one.first, one.second) == (other.second, other.first)
    np.testing.assert_array_equal(battle_matrix(of, one), battle_matrix(swapped(of), other))
    assert fit_elo(battle_matrix(of, one)) == fit_elo(battle_matrix(swapped(of), other))


@given(disputes(), st.data())
def test_relabelling_judgments_permutes_the_ratings(of: Dispute, data: st.DataObject) -> None:
    order = data.draw(st.permutations(of.judgments_M))
    counted = position_weights(of.meta)
    before = dict(zip(of.judgments_M, fit_elo(battle_matrix(of, counted)).values_M, strict=True))
    after = fit_elo(battle_matrix(replace(of, judgments_M=tuple(order)), counted)).values_M
    assert after == pytest.approx([before[index] for index in order], abs=1e-8)
    names = {old: new + 100 for new, old in enumerate(order)}
    renamed = Dispute(
        0,
        tuple(names[index] for index in of.judgments_M),
        tuple(
            replace(
                each,
                first=names[each.first],
                second=names[each.second],
                verdict=Won(names[each.verdict.winner]) if isinstance(each.verdict, Won) else each.verdict,
            )
            for each in reversed(of.meta)
        ),
    )
    np.testing.assert_allclose(battle_matrix(renamed, counted), battle_matrix(of, counted), atol=1e-12)


def reference(battles: Array, prior: float) -> Array:
    """The same optimum by a general-purpose optimiser."""

    def loss(free: Array) -> float:
        e = np.append(free, -free.sum())
        return -float((battles * log_expit(e[:, None] - e[None, :])).sum()) + prior / 2 * float(e @ e)

    found = minimize(loss, np.zeros(len(battles) - 1), method="BFGS", options={"gtol": 1e-9})
    return np.append(found.x, -found.x.sum())


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("prior", [0.0, 0.01, 0.1, 1.0])
def test_ratings_agree_with_a_general_optimiser(seed: int, prior: float) -> None:
    generator = np.random.default_rng(seed)
    size = int(generator.integers(2, 9))
    battles = generator.random((size, size)) * generator.integers(1, 5)
    if prior:
        battles[generator.random((size, size)) < 0.5] = 0
    np.fill_diagonal(battles, 0)
    ratings = fit_elo(battles, prior)
    np.testing.assert_allclose(ratings.values_M, reference(battles, prior), atol=1e-5)
    assert ratings.converged


@given(matrices, st.sampled_from([1e-6, 0.1, 10.0]))
def test_ratings_are_finite_and_centred_and_inside_their_interval(battles: Array, prior: float) -> None:
    ratings = fit_elo(battles, prior)
    assert ratings.converged
    assert sum(ratings.values_M) == pytest.approx(0, abs=1e-6)
    for low, value, high in zip(ratings.low_M, ratings.values_M, ratings.high_M, strict=True):
        assert np.isfinite([low, value, high]).all()
        assert low <= value <= high


@given(matrices)
def test_more_battles_make_the_interval_narrower(battles: Array) -> None:
    even = battles + battles.T + 1.0
    one, many = fit_elo(even, 0.1), fit_elo(even * 100, 0.1)
    assert max(many.high_M) - min(many.low_M) < max(one.high_M) - min(one.low_M)


def test_the_interval_of_two_players_is_the_textbook_one() -> None:
    # e_0 - e_1 is the logit of 3/4 with variance 1/3 + 1/1; each rating is half of that difference.
    ratings = fit_elo(np.array([[0.0, 3.0], [1.0, 0.0]]), 0)
    assert ratings.values_M[0] == pytest.approx(np.log(3) / 2)
    assert ratings.high_M[0] - ratings.values_M[0] == pytest.approx(1.959964 * np.sqrt(4 / 3) / 2, rel=1e-6)


def test_one_judgment_is_rated_zero() -> None:
    assert fit_elo(np.zeros((1, 1))).values_M == (0.0,)


def test_heavily_separated_battles_converge() -> None:
    ratings = fit_elo(np.triu(np.full((11, 11), 1000.0), 1), 1e-9)
    assert ratings.converged
    assert list(ratings.values_M) == sorted(ratings.values_M, reverse=True)


@pytest.mark.parametrize(
    ("battles", "prior"),
    [
        (np.zeros((2, 3)), 0.1),
        (np.zeros((0, 0)), 0.1),
        (np.array([[0, -1.0], [0, 0]]), 0.1),
        (np.array([[0, np.nan], [0, 0]]), 0.1),
        (np.array([[0, 1.0], [1.0, 0]]), -0.1),
        (np.array([[0, 1.0], [1.0, 0]]), np.inf),
        (np.array([[0, 1.0], [0, 0]]), 0.0),
        (np.array([[0, 1.0, 1.0], [0, 0, 1.0], [0, 1.0, 0]]), 0.0),
    ],
)
def test_invalid_battles_and_priors_are_refused(battles: Array, prior: float) -> None:
    with pytest.raises(ValueError, match=r"battles|prior"):
        fit_elo(battles, prior)
