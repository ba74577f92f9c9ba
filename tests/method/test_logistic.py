"""The logistic regression against scikit-learn's."""

import builders  # noqa: F401  (sets hypothesis up)
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from metareward.method.elo import _BradleyTerryLoss
from metareward.method.stats import Loss, _LogisticLoss, fit_logistic, minimize


def data(seed: int, rows: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, 3)), generator.uniform(size=rows), generator.uniform(0.1, 3, size=rows)


@pytest.mark.parametrize("ridge", [0.5, 5.0])
def test_the_optimum_is_scikit_learn_s(ridge: float) -> None:
    x, y, weights = data(1)
    labels = np.repeat([1, 0], len(y))
    theirs = LogisticRegression(C=1 / ridge, fit_intercept=False, tol=1e-12, max_iter=10_000)
    theirs.fit(np.vstack([x, x]), labels, sample_weight=np.concatenate([weights * y, weights * (1 - y)]))
    assert fit_logistic(x, y, weights, np.full(3, ridge)) == pytest.approx(theirs.coef_[0], abs=1e-6)


@given(st.integers(0, 1000), st.floats(1e-6, 10))
def test_swapping_the_labels_negates_the_coefficients(seed: int, ridge: float) -> None:
    x, y, weights = data(seed, rows=12)
    ridges = np.full(3, ridge)
    assert fit_logistic(x, 1 - y, weights, ridges) == pytest.approx(-fit_logistic(x, y, weights, ridges), abs=1e-5)


def test_separable_data_has_a_finite_optimum() -> None:
    x = np.ones((50, 1))
    found = fit_logistic(x, np.ones(50), np.ones(50), np.full(1, 1e-6))
    assert np.isfinite(found).all() and found[0] > 10


def losses() -> list[tuple[Loss, np.ndarray]]:
    """A loss of each kind, and a point that isn't its optimum."""
    generator = np.random.default_rng(3)
    x, y, weights = data(2, rows=7)
    battles = generator.uniform(0, 4, (4, 4)) * (1 - np.eye(4))
    ratings = generator.normal(size=4)
    return [
        (_LogisticLoss(x, y, weights, np.array([0.3, 1.0, 2.5])), generator.normal(size=3)),
        (_BradleyTerryLoss(battles, 0.7), ratings - ratings.mean()),
    ]


@pytest.mark.parametrize(("loss", "at"), losses(), ids=["logistic", "Bradley-Terry"])
def test_gradients_and_curvatures_are_the_derivatives(loss: Loss, at: np.ndarray) -> None:
    """By differences along directions that sum to 0, which is where ratings live."""
    size, step = len(at), 1e-5
    centre = np.eye(size) - 1 / size if isinstance(loss, _BradleyTerryLoss) else np.eye(size)
    ahead, behind = (np.array([at + sign * step * each for each in centre]) for sign in (1, -1))
    slopes = [(loss.value(one) - loss.value(other)) / (2 * step) for one, other in zip(ahead, behind, strict=True)]
    assert slopes == pytest.approx(list(centre @ loss.gradient(at)), rel=1e-6, abs=1e-8)
    bends = [(loss.gradient(one) - loss.gradient(other)) / (2 * step) for one, other in zip(ahead, behind, strict=True)]
    np.testing.assert_allclose(bends, centre @ loss.hessian(at), rtol=1e-6, atol=1e-8)


def test_values_by_hand() -> None:
    logistic = _LogisticLoss(np.array([[2.0]]), np.array([0.25]), np.array([3.0]), np.array([0.5]))
    assert logistic.value(np.array([1.0])) == pytest.approx(3 * (np.log(1 + np.exp(2)) - 0.5) + 0.25)
    ratings = _BradleyTerryLoss(np.array([[0.0, 2.0], [1.0, 0.0]]), 0.4)
    expected = 0.2 * 0.5 + 2 * np.log(1 + np.exp(-1)) + np.log(1 + np.exp(1))
    assert ratings.value(np.array([0.5, -0.5])) == pytest.approx(expected)


def test_a_warm_start_takes_fewer_steps() -> None:
    (loss, _), _ = losses()
    cold = minimize(loss, np.zeros(3), 1.0)
    warm = minimize(loss, cold.b_F, 1.0)
    assert cold.converged and warm.converged
    assert (cold.steps > 1, warm.steps) == (True, 0)


def test_steps_that_would_raise_the_loss_are_halved() -> None:
    """Newton's full step from a flat place of the logistic overshoots by far."""
    loss = _LogisticLoss(np.array([[1.0], [1.0]]), np.array([1.0, 0.0]), np.array([1.0, 1.1]), np.array([1e-3]))
    found = minimize(loss, np.array([12.0]), 2.1)
    assert found.converged
    assert found.b_F[0] == pytest.approx(np.log(1 / 1.1), rel=0.01)


class _Slope:
    """A loss without a minimum."""

    def value(self, b_F: np.ndarray) -> float:
        return float(b_F.sum())

    def gradient(self, b_F: np.ndarray) -> np.ndarray:
        return np.ones_like(b_F)

    def hessian(self, b_F: np.ndarray) -> np.ndarray:
        return np.eye(len(b_F))


def test_a_loss_without_a_minimum_does_not_converge() -> None:
    found = minimize(_Slope(), np.zeros(2), 1.0)
    assert (found.converged, found.steps) == (False, 100)
    assert found.b_F.tolist() == [-100.0, -100.0]
    held = minimize(_Slope(), np.zeros(2), 1.0, project=lambda b_F: b_F - b_F.mean())
    assert not held.converged and held.b_F.tolist() == [0.0, 0.0]
