"""The logistic regression against scikit-learn's."""

import builders  # noqa: F401  (sets hypothesis up)
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from metareward.method.stats import fit_logistic


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
