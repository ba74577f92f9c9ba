"""Two models on the same prompts: the paired difference, and what can be detected.

With d_p = b_p - a_p over P prompts the difference is mean(d), its standard error s = sd(d) / sqrt(P), the 95 % interval
mean(d) +- t s and the p-value that of the paired t-test. The smallest difference that is found in 80 % of such
comparisons is (t + 0.84) s. Unpaired comparisons need (var a + var b) / var d times as many prompts.

Several seeds of a model add what they vary by beyond their noise on single prompts, which var(d) has already:

    s^2 = var(d) / P + sum over models of max(0, v - w / (S P))                v = var(means of the S seeds) / S

w is the mean square of what is left of the model's values without the means of seeds and prompts. The t distribution
has Satterthwaite's (1946) degrees of freedom, s^4 over the sum of (var(d) / P)^2 / (P - 1) and, for each model whose
seeds add something, v^2 / (S - 1). A model with a single seed adds nothing: the interval is then about that seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

POWER_QUANTILE = 0.8416212335729143  # of the standard normal distribution at 80 %
_LEVEL = 0.975
_EQUAL = 1e-9


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """``difference`` is b's mean minus a's, with its 95 % interval; None where one can't be told.

    Where every prompt has the same difference there is no spread to go by: no interval, and the sign test's p-value.

    ``detectable`` is the smallest difference found with a power of 80 %; ``prompts_saved`` the share of prompts that
    the pairing saves against two separate sets. ``a_better``, ``equal`` and ``b_better`` count prompts.
    """

    mean_a: float
    mean_b: float
    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    detectable: float | None
    prompts_saved: float | None
    a_better: int
    equal: int
    b_better: int
    n_prompts: int
    n_seeds: tuple[int, int]


def paired_difference(a_SP: Array, b_TP: Array) -> PairedDifference:
    """Models a (S seeds) and b (T seeds) on the same P prompts.

    Raises `ValueError` without prompts or for values that are not finite.
    """
    from scipy.special import stdtr, stdtrit  # takes a tenth of a second

    prompts = a_SP.shape[1]
    if not prompts or b_TP.shape[1] != prompts or not (np.isfinite(a_SP).all() and np.isfinite(b_TP).all()):
        raise ValueError("both models need finite values on the same prompts, at least one")
    a_P, b_P = a_SP.mean(axis=0), b_TP.mean(axis=0)
    d_P = b_P - a_P
    difference, seeds = float(d_P.mean()), (len(a_SP), len(b_TP))
    low = high = p_value = detectable = saved = None
    squared, freedom = _squared_error(d_P, a_SP, b_TP) if prompts > 1 else (0.0, 0.0)
    if prompts > 1 and squared**0.5 <= _EQUAL < abs(difference):
        p_value = 2.0 ** (1 - prompts)
    elif prompts > 1:
        error, quantile = squared**0.5, float(stdtrit(freedom, _LEVEL))
        low, high = difference - quantile * error, difference + quantile * error
        t = abs(difference) / error if error > 0 else 0.0
        p_value = 2 * float(stdtr(freedom, -t))
        detectable = (quantile + POWER_QUANTILE) * error
        apart = float(a_P.var(ddof=1) + b_P.var(ddof=1))
        saved = 1 - float(d_P.var(ddof=1)) / apart if apart > 0 else None
    return PairedDifference(
        mean_a=float(a_P.mean()),
        mean_b=float(b_P.mean()),
        difference=difference,
        low=low,
        high=high,
        p_value=p_value,
        detectable=detectable,
        prompts_saved=saved,
        a_better=int((d_P < -_EQUAL).sum()),
        equal=int((np.abs(d_P) <= _EQUAL).sum()),
        b_better=int((d_P > _EQUAL).sum()),
        n_prompts=prompts,
        n_seeds=seeds,
    )


def _squared_error(d_P: Array, a_SP: Array, b_TP: Array) -> tuple[float, float]:
    """The squared standard error of the difference, and its degrees of freedom."""
    prompts = len(d_P)
    parts = [(float(d_P.var(ddof=1)) / prompts, prompts - 1)]
    total = parts[0][0]
    for x_XP in (a_SP, b_TP):
        seeds = len(x_XP)
        if seeds == 1:
            continue
        means_X = x_XP.mean(axis=1)
        rest_XP = x_XP - means_X[:, None] - x_XP.mean(axis=0) + x_XP.mean()
        of_means = float(means_X.var(ddof=1)) / seeds
        added = of_means - float((rest_XP**2).sum()) / ((seeds - 1) * (prompts - 1) * seeds * prompts)
        if added > 0:
            total += added
            parts.append((of_means, seeds - 1))
    doubt = sum(part**2 / freedom for part, freedom in parts)
    return total, total**2 / doubt if doubt > 0 else prompts - 1


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """P-values adjusted for as many comparisons as there are (Holm 1979): what is below 0.05 holds for all together."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return tuple(adjusted)
