"""Two models on the same prompts: the paired difference, and what can be detected.

With d_p = b_p - a_p over P prompts the difference is mean(d), its standard error s = sd(d) / sqrt(P), the 95 % interval
mean(d) +- t s and the p-value that of the paired t-test. The smallest difference that is found in 80 % of such
comparisons is (t + 0.84) s. Unpaired comparisons need (var a + var b) / var d times as many prompts.

With several seeds to a model a two-level bootstrap resamples the seeds of each model and the prompts, one fewer than
there are of each, which makes its variance unbiased (McCarthy and Snowden 1985).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from metareward.method.stats import ROUNDS

Array = NDArray[np.float64]

POWER_QUANTILE = 0.8416212335729143  # of the standard normal distribution at 80 %
_LEVEL = 0.975
_CHUNK = 1_000_000  # entries of drawn counts held in memory at once
_EQUAL = 1e-9


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """``difference`` is b's mean minus a's, with its 95 % interval; None where there are too few prompts for one.

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


def paired_difference(a_SP: Array, b_TP: Array, seed: int = 0, rounds: int = ROUNDS) -> PairedDifference:
    """Models a (S seeds) and b (T seeds) on the same P prompts; one seed each gives the t-interval, more the bootstrap.

    Raises `ValueError` without prompts or for values that are not finite.
    """
    prompts = a_SP.shape[1]
    if not prompts or b_TP.shape[1] != prompts or not (np.isfinite(a_SP).all() and np.isfinite(b_TP).all()):
        raise ValueError("both models need finite values on the same prompts, at least one")
    a_P, b_P = a_SP.mean(axis=0), b_TP.mean(axis=0)
    d_P = b_P - a_P
    difference, seeds = float(d_P.mean()), (len(a_SP), len(b_TP))
    low = high = p_value = detectable = saved = None
    if prompts > 1:
        error, quantile = float(d_P.std(ddof=1)) / prompts**0.5, float(stdtrit(prompts - 1, _LEVEL))
        if seeds == (1, 1):
            low, high = difference - quantile * error, difference + quantile * error
            t = abs(difference) / error if error > 0 else np.inf if difference else 0.0
            p_value = 2 * float(stdtr(prompts - 1, -t))
        else:
            drawn_B = _two_level(a_SP, b_TP, seed, rounds)
            error = float(drawn_B.std())
            low, high = (float(end) for end in np.quantile(drawn_B, [1 - _LEVEL, _LEVEL]))
            tail = min((drawn_B <= 0).mean(), (drawn_B >= 0).mean())
            p_value = float(min(1.0, max(2 * tail, 2 / rounds)))
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


def _two_level(a_SP: Array, b_TP: Array, seed: int, rounds: int) -> Array:
    """The difference in each bootstrap round."""
    generator, prompts = np.random.default_rng(seed), a_SP.shape[1]
    at_once = max(1, _CHUNK // prompts)
    found = []
    for start in range(0, rounds, at_once):
        count = min(at_once, rounds - start)
        times_BP = _counts(generator, prompts, count)
        means = [
            np.einsum("bs,sp,bp->b", _counts(generator, len(x_XP), count), x_XP, times_BP, optimize=True)
            for x_XP in (a_SP, b_TP)
        ]
        found.append(means[1] - means[0])
    return np.concatenate(found)


def _counts(generator: np.random.Generator, size: int, rounds: int) -> Array:
    """Shares of ``size`` items in each round: ``size`` - 1 of them are drawn, the only one if there is one."""
    draws = max(1, size - 1)
    drawn = generator.integers(size, size=(rounds, draws)) + size * np.arange(rounds)[:, None]
    return np.asarray(np.bincount(drawn.ravel(), minlength=rounds * size).reshape(rounds, size) / draws)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """P-values adjusted for as many comparisons as there are (Holm 1979): what is below 0.05 holds for all together."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return tuple(adjusted)
