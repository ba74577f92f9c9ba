"""Logistic regression with weights, soft targets in [0, 1] and a ridge, to its exact optimum by Newton's method.

Minimises over b:   sum_i w_i (log(1 + exp(x_i b)) - y_i x_i b)  +  1/2 sum_j r_j b_j^2

A soft target y with weight w stands for a row of label 1 with weight w y and one of label 0 with weight w (1 - y). With
every r_j > 0 the optimum is finite and unique for any data, also where one side always wins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Array = NDArray[np.float64]

_STEPS = 100
_ENOUGH = 1e-10  # largest component of the gradient, per unit of weight


def fit(x_RF: Array, y_R: Array, weights_R: Array, ridge_F: Array, start_F: Array | None = None) -> Array:
    """The coefficients, of shape (F,), for R rows of F features. Raises `ValueError` when no optimum was reached."""
    found = np.zeros(x_RF.shape[1]) if start_F is None else start_F
    enough = _ENOUGH * max(1.0, float(weights_R.sum()))
    for _ in range(_STEPS):
        chance = expit(x_RF @ found)
        gradient = x_RF.T @ (weights_R * (y_R - chance)) - ridge_F * found
        if np.abs(gradient).max(initial=0.0) <= enough:
            return found
        curvature = x_RF.T @ (x_RF * (weights_R * chance * (1 - chance))[:, None]) + np.diag(ridge_F)
        direction = np.linalg.solve(curvature, gradient)
        found = _downhill(found, np.asarray(direction, dtype=np.float64), x_RF, y_R, weights_R, ridge_F)
    raise ValueError("the regression did not settle: give its features a ridge")


def _downhill(here: Array, direction: Array, x_RF: Array, y_R: Array, weights_R: Array, ridge_F: Array) -> Array:
    """The Newton step, or as much of it as doesn't raise the loss (beyond rounding)."""
    now = _loss(here, x_RF, y_R, weights_R, ridge_F)
    ceiling = now + 1e-12 * (1.0 + abs(now))
    scale = 1.0
    while scale > 1e-6 and _loss(here + scale * direction, x_RF, y_R, weights_R, ridge_F) > ceiling:
        scale /= 2
    return here + scale * direction


def _loss(b_F: Array, x_RF: Array, y_R: Array, weights_R: Array, ridge_F: Array) -> float:
    margins = x_RF @ b_F
    return float(weights_R @ (np.logaddexp(0.0, margins) - y_R * margins) + ridge_F @ b_F**2 / 2)
