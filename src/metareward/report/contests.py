"""Model against model: one row to a duel, as both the page and the terminal show it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from metareward.duels import Duel
from metareward.report.facts import Evaluation

COLUMNS = ("", "judged by", "win rate", "at equal lengths", "won", "drawn", "lost", "left out", "sign test")


def contests(evaluations: Sequence[Evaluation]) -> tuple[tuple[str, ...], ...]:
    """The cells of every duel under `COLUMNS`, in the order of the models."""
    return tuple(_row(evaluation.model, duel) for evaluation in evaluations for duel in evaluation.duels)


def contests_text(evaluations: Sequence[Evaluation]) -> Table | None:
    """The win rates against M0 for the terminal; None when no model was compared."""
    rows = [row for row in contests(evaluations) if row[0].endswith("M0")]
    if not rows:
        return None
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), caption=_CAPTION, caption_justify="left")
    for number, name in enumerate(COLUMNS[:7]):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row[:7])
    return table


_CAPTION = "Answers to the same held-out prompts. Win rates in percent, draws half, with 95 % intervals."


def _row(model: str, duel: Duel) -> tuple[str, ...]:
    judge = "the oracle" if duel.judge == "oracle" else f"{model} itself"
    counts = (f"{count:,}" for count in (duel.wins, duel.draws, duel.losses, duel.left_out))
    rate = f"{duel.win_rate:.1f} ({duel.low:.1f}–{duel.high:.1f})"
    return (f"{model} against {duel.against}", judge, rate, _adjusted(duel), *counts, _chance(duel.p_value))


def _adjusted(duel: Duel) -> str:
    if duel.length_adjusted is None:
        return "–"
    error = "" if duel.length_adjusted_error is None else f" ± {duel.length_adjusted_error:.1f}"
    return f"{duel.length_adjusted:.1f}{error}"


def _chance(p_value: float | None) -> str:
    if p_value is None:
        return "–"
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
