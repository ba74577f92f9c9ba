"""AlpacaEval 2's numbers for one or more models: win rate, length-controlled win rate, and what was left out.

With p the evaluated model's share of each readable preference: win rate = 100 mean(p), standard error =
100 std(p, ddof=1) / sqrt(n), discrete win rate = 100 mean(1 if p > 1/2, 1/2 if p = 1/2, else 0). Swapping the two
models turns a win rate w into 100 - w. A number is None where nothing can be counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metareward.evaluation.alpaca_eval.data import BASELINE, Annotations, Gamed, Weights, are_official_tables
from metareward.evaluation.alpaca_eval.length_control import (
    LengthControlled,
    fit_difficulties,
    is_large_change,
    length_adjusted,
    length_controlled,
    row_difficulties,
    standard_error,
    win_rate_of_weights,
)
from metareward.evaluation.input_checks import coverage_caveat

Array = NDArray[np.float64]

OFFICIAL = "length_controlled_v1"
UNOFFICIAL = "upstream's regression, unofficial data"


@dataclass(frozen=True, slots=True)
class WinRate:
    """The leaderboard's columns of the same names; rates in percent."""

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


def mean_chars(lengths: Sequence[int], missing: int = 0) -> int | None:
    """The average length in characters, rounded down as on the leaderboard; ``missing`` outputs count as empty."""
    count = len(lengths) + missing
    return sum(lengths) // count if count else None


@dataclass(frozen=True, slots=True)
class AlpacaResult:
    """One model. Its numbers are the leaderboard's only where ``unofficial``, the reasons against it, is empty."""

    model: str
    baseline: str | None
    mode: str
    raw: WinRate
    controlled: LengthControlled | None
    method: str
    avg_length: int | None
    n_missing: int
    n_unreadable: int
    n_refused: int
    notes: tuple[str, ...]
    judge: str | None = None
    unofficial: tuple[str, ...] = ()

    @property
    def official(self) -> bool:
        """Whether the length-controlled win rate is the leaderboard's."""
        return self.method == OFFICIAL and not self.unofficial

    def as_dict(self) -> dict[str, object]:
        """For JSON, with the leaderboard's column names only where the numbers are the leaderboard's."""
        name = "length_controlled_winrate" if self.official else "length_adjusted_winrate"
        error = "lc_standard_error" if self.official else "length_adjusted_standard_error"
        fitted = self.controlled
        weights = fitted and {
            "w_len": fitted.weights.length,
            "w_difficulty": fitted.weights.difficulty,
            "w_const": fitted.weights.constant,
        }
        return {
            "model": self.model,
            "baseline": self.baseline,
            "judge": self.judge,
            "official": self.official,
            "unofficial_because": list(self.unofficial),
            "preferences": self.mode,
            **{field: getattr(self.raw, field) for field in WinRate.__slots__},
            name: fitted.win_rate if fitted else None,
            error: fitted.standard_error if fitted else None,
            "length_method": self.method,
            "weights": weights,
            "avg_length": self.avg_length,
            "n_judged": self.raw.n_total,
            "n_missing": self.n_missing,
            "n_unreadable": self.n_unreadable,
            "n_refused": self.n_refused,
            "notes": list(self.notes),
        }


def evaluate(
    models: Sequence[Annotations],
    difficulty: Array | None = None,
    gamed: Gamed | None = None,
    instructions: int | None = None,
    chars: Mapping[str, Sequence[int]] | None = None,
) -> tuple[AlpacaResult, ...]:
    """The numbers of every model.

    ``difficulty`` and ``gamed`` are upstream's tables; with both, and upstream's baseline, the length-controlled win
    rate is the leaderboard's. ``instructions`` is the size of the prompt set, also known from ``difficulty``: missing
    outputs count as empty in the average length. ``chars`` has the lengths of all of a model's outputs, where its
    annotations don't have every one. Raises `UserError` when a row has no difficulty.
    """
    total = instructions or (None if difficulty is None else len(difficulty))
    results, tables = [], tuple[str, ...]()
    if difficulty is not None and gamed is not None and not are_official_tables(difficulty, gamed):
        tables = ("difficulties or gamed rows that aren't the leaderboard's",)
    for each, (controlled, method) in zip(models, _fits(models, difficulty, gamed, not tables), strict=True):
        raw = win_rate([row.preference for row in each.rows if row.preference is not None])
        lengths = (chars or {}).get(each.model) or [row.model_chars for row in each.rows]
        refused = sum(row.refused for row in each.rows)
        results.append(
            AlpacaResult(
                model=each.model,
                baseline=each.baseline,
                mode=each.mode,
                raw=raw,
                controlled=controlled,
                method=method,
                avg_length=mean_chars(lengths, max(0, (total or 0) - len(lengths))),
                n_missing=max(0, (total or len(lengths)) - len(each.rows)),
                n_unreadable=len(each.rows) - raw.n_total - refused,
                n_refused=refused,
                notes=_notes(each, (*each.unofficial, *tables), raw.win_rate, controlled, total or 0),
                judge=each.judge,
                unofficial=(*each.unofficial, *tables),
            )
        )
    return tuple(results)


def _fits(
    models: Sequence[Annotations], difficulty: Array | None, gamed: Gamed | None, official: bool
) -> list[tuple[LengthControlled | None, str]]:
    """Each model's win rate at equal lengths, and the name of the regression; ``official``: the tables are."""
    if difficulty is not None:
        return [
            (
                _official_fit(each, difficulty, gamed),
                OFFICIAL if official and not each.unofficial else UNOFFICIAL,
            )
            if gamed is not None and each.baseline in (None, BASELINE)
            else (
                length_adjusted(each.rows, row_difficulties(each.rows, difficulty)),
                "length, constant, difficulty from the file",
            )
            for each in models
        ]
    numbers = [{row.row for row in each.rows} for each in models]
    one_baseline = len(models) > 1 and len({each.baseline for each in models}) == 1
    if not (one_baseline and set.intersection(*numbers)):
        return [(length_adjusted(each.rows), "length, constant") for each in models]
    shared = fit_difficulties([each.rows for each in models])
    method = f"length, constant, difficulty fitted on these {len(models)} models"
    difficulties = [np.array([shared[row.row] for row in each.rows]) for each in models]
    return [
        (length_adjusted(each.rows, difficulty_P), method)
        for each, difficulty_P in zip(models, difficulties, strict=True)
    ]


def _official_fit(each: Annotations, difficulty: Array, gamed: Gamed) -> LengthControlled | None:
    """Upstream's fit; by its definition the baseline has 50 against itself."""
    if each.baseline is not None and each.model == each.baseline:
        return win_rate_of_weights(Weights(0.0, 0.0, 0.0), row_difficulties(each.rows, difficulty))
    return length_controlled(each.rows, difficulty, gamed)


def _notes(
    each: Annotations, unofficial: Sequence[str], raw: float | None, controlled: LengthControlled | None, total: int
) -> tuple[str, ...]:
    notes = []
    if unofficial and each.baseline in (None, BASELINE):
        notes.append(f"not comparable with the leaderboard: {'; '.join(unofficial)}")
    partial = coverage_caveat(sum(row.preference is not None for row in each.rows), total, "instructions are judged")
    if partial is not None:
        notes.append(partial)
    if each.by_place and len(each.rows) < total:
        notes.append(
            "rows are missing and were counted by place, as upstream does, which shifts difficulties after a gap; "
            "--by-instruction with --reference counts them right"
        )
    if each.model == each.baseline:
        notes.append("model and baseline have the same name: is it compared with itself?")
    if each.differing_name is not None:
        notes.append(f"the file calls the model {each.differing_name!r}; the folder's name is taken")
    if controlled is not None and raw is not None and is_large_change(raw, controlled.win_rate):
        notes.append(f"controlling length moves the win rate from {raw:.1f} to {controlled.win_rate:.1f}: look at it")
    return tuple(notes)
