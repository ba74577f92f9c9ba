"""Ridge-penalised logistic regression to its exact optimum by damped Newton steps.

The one solver behind Elo ratings (`metareward.method.elo`) and the length- and style-controlled win rates: `minimize`
takes any smooth convex loss, `fit_logistic` the general regression on soft targets y in [0, 1] with weights w,

    loss(b) = sum_i w_i (log(1 + exp(x_i b)) - y_i x_i b)  +  1/2 sum_j r_j b_j^2

A soft target y with weight w equals a row of label 1 with weight w y and one of label 0 with weight w (1 - y). With
every ridge r_j > 0 the optimum is finite and unique, also for separable data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Array = NDArray[np.float64]

_MAX_STEPS = 100
_GRADIENT_TOLERANCE = 1e-10  # largest gradient component at the optimum, per unit of weight
_LOSS_TOLERANCE = 1e-12  # a step may raise the loss by rounding, relative to 1 + |loss|
_MIN_STEP_SIZE = 1e-6


class Loss(Protocol):
    """A convex loss of coefficients b of shape (F,)."""

    def value(self, b_F: Array) -> float:
        """The loss."""
        ...

    def gradient(self, b_F: Array) -> Array:
        """Of shape (F,)."""
        ...

    def hessian(self, b_F: Array) -> Array:
        """Of shape (F, F), positive definite."""
        ...


@dataclass(frozen=True, slots=True)
class Optimum:
    """Where the solver stopped: ``converged`` says whether the gradient vanished, ``steps`` counts Newton steps."""

    b_F: Array
    converged: bool
    steps: int


def minimize(loss: Loss, start_F: Array, weight: float, project: Callable[[Array], Array] | None = None) -> Optimum:
    """Newton's method with step halving. ``weight``, the total weight of the data, scales the gradient tolerance.

    ``project`` is applied after every step, to hold a quantity that the loss doesn't determine (such as the mean).
    """
    here = start_F
    tolerance = _GRADIENT_TOLERANCE * max(1.0, weight)
    for step in range(_MAX_STEPS):
        gradient = loss.gradient(here)
        if np.abs(gradient).max(initial=0.0) <= tolerance:
            return Optimum(here, True, step)
        direction = np.asarray(np.linalg.solve(loss.hessian(here), -gradient), dtype=np.float64)
        here = here + _step_size(loss, here, direction) * direction
        here = here if project is None else project(here)
    return Optimum(here, False, _MAX_STEPS)


def _step_size(loss: Loss, here: Array, direction: Array) -> float:
    """1 for the full Newton step, halved until the step doesn't raise the loss beyond rounding."""
    now = loss.value(here)
    ceiling = now + _LOSS_TOLERANCE * (1.0 + abs(now))
    size = 1.0
    while size > _MIN_STEP_SIZE and loss.value(here + size * direction) > ceiling:
        size /= 2
    return size


@dataclass(frozen=True, slots=True)
class _LogisticLoss:
    x_RF: Array
    y_R: Array
    weights_R: Array
    ridge_F: Array

    def value(self, b_F: Array) -> float:
        logits = self.x_RF @ b_F
        return float(self.weights_R @ (np.logaddexp(0.0, logits) - self.y_R * logits) + self.ridge_F @ b_F**2 / 2)

    def gradient(self, b_F: Array) -> Array:
        return self.ridge_F * b_F - self.x_RF.T @ (self.weights_R * (self.y_R - expit(self.x_RF @ b_F)))

    def hessian(self, b_F: Array) -> Array:
        p_R = expit(self.x_RF @ b_F)
        return self.x_RF.T @ (self.x_RF * (self.weights_R * p_R * (1 - p_R))[:, None]) + np.diag(self.ridge_F)


def fit_logistic(x_RF: Array, y_R: Array, weights_R: Array, ridge_F: Array, start_F: Array | None = None) -> Array:
    """The coefficients, of shape (F,), for R rows of F features. Raises `ValueError` without convergence."""
    start = np.zeros(x_RF.shape[1]) if start_F is None else start_F
    found = minimize(_LogisticLoss(x_RF, y_R, weights_R, ridge_F), start, float(weights_R.sum()))
    if not found.converged:
        raise ValueError("the regression did not converge: give every feature a ridge above 0")
    return found.b_F
