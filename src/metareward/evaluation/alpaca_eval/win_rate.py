"""The raw numbers of AlpacaEval 2: win rate, its standard error, and the discrete win rate.

With p the evaluated model's share of each readable preference: win rate = 100 mean(p), standard error =
100 std(p, ddof=1) / sqrt(n), discrete win rate = 100 mean(1 if p > 1/2, 1/2 if p = 1/2, else 0). Swapping the two
models turns a win rate w into 100 - w. Without anything to count a number is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class WinRate:
    """The leaderboard's columns of these names; rates in percent."""

    win_rate: float | None
    standard_error: float | None
    discrete_win_rate: float | None
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int


def win_rate(shares: Sequence[float]) -> WinRate:
    """``shares`` are the readable preferences, in [0, 1]."""
    p = np.asarray(shares, dtype=np.float64)
    wins, losses = int((p > 0.5).sum()), int((p < 0.5).sum())
    draws = len(p) - wins - losses
    return WinRate(
        win_rate=100 * float(p.mean()) if len(p) else None,
        standard_error=standard_error(shares),
        discrete_win_rate=100 * (wins + draws / 2) / len(p) if len(p) else None,
        n_wins=wins,
        n_wins_base=losses,
        n_draws=draws,
        n_total=len(p),
    )


def standard_error(shares: Sequence[float]) -> float | None:
    """That of the mean, in percent; None for fewer than two values."""
    return 100 * float(np.std(shares, ddof=1)) / len(shares) ** 0.5 if len(shares) > 1 else None


def mean_chars(lengths: Sequence[int], missing: int = 0) -> int | None:
    """The average length in whole characters, as the leaderboard cuts it; ``missing`` outputs count as empty."""
    count = len(lengths) + missing
    return sum(lengths) // count if count else None
