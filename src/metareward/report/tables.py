"""Win rates between the run's models, and what became of each iteration's prompts: pairs built and drop reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from metareward.evaluation.held_out import WinRate
from metareward.report.facts import Evaluation, PairSummary
from metareward.report.labels import drop_label

WIN_RATE_COLUMNS = ("models", "judge", "win rate", "length-adjusted", "wins", "ties", "losses", "excluded", "sign test")
_TERMINAL_COLUMNS = 7


def win_rate_rows(evaluations: Sequence[Evaluation]) -> tuple[tuple[str, ...], ...]:
    """The cells under `WIN_RATE_COLUMNS`, a row for each comparison of two models, in the order of the models."""
    return tuple(_win_rate_row(each.model, rate) for each in evaluations for rate in each.win_rates)


def win_rates_text(evaluations: Sequence[Evaluation]) -> Table | None:
    """The win rates against M0 for the terminal; None when no model was compared with M0."""
    rows = [row for row in win_rate_rows(evaluations) if row[0].endswith("M0")]
    if not rows:
        return None
    caption = "Answers to the same held-out prompts. Win rates in percent, a tie is half a win, with 95 % intervals."
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), caption=caption, caption_justify="left")
    for number, name in enumerate(WIN_RATE_COLUMNS[:_TERMINAL_COLUMNS]):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row[:_TERMINAL_COLUMNS])
    return table


def _win_rate_row(model: str, rate: WinRate) -> tuple[str, ...]:
    # Outcomes that are all equal have no interval: resampling them gives the mean again.
    interval = "all equal" if rate.low == rate.high else f"{rate.low:.1f}–{rate.high:.1f}"
    adjusted = "–"
    if rate.length_adjusted is not None:
        error = "" if rate.length_adjusted_error is None else f" ± {rate.length_adjusted_error:.1f}"
        adjusted = f"{rate.length_adjusted:.1f}{error}"
    return (
        f"{model} vs. {rate.against}",
        "oracle" if rate.judge == "oracle" else model,
        f"{rate.win_rate:.1f} ({interval})",
        adjusted,
        *(f"{count:,}" for count in (rate.wins, rate.draws, rate.losses, rate.left_out)),
        _p_value(rate.p_value),
    )


def _p_value(p_value: float | None) -> str:
    if p_value is None:
        return "–"
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


_LAST_SHADE = 6


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a bar. ``shade`` 0 is a pair; every drop reason has the same shade in all bars."""

    label: str
    count: int
    percent: float
    shade: int


@dataclass(frozen=True, slots=True)
class Bar:
    """One kind of pair in one iteration; the segments add up to all prompts."""

    iteration: int
    label: str
    built: int
    prompts: int
    segments: tuple[Segment, ...]


def pair_bars(summaries: Sequence[PairSummary]) -> tuple[Bar, ...]:
    """A bar of actor pairs and one of judge pairs for each iteration; none where an iteration builds no judge pairs."""
    shades = _shades(summaries)
    return tuple(bar for summary in summaries for bar in _bars(summary, shades))


def _bars(summary: PairSummary, shades: Mapping[str, int]) -> Iterator[Bar]:
    for kind, built in (("actor", summary.actor_pairs), ("judge", summary.judge_pairs)):
        dropped = summary.dropped.get(kind, {})
        if built or dropped:
            segments = tuple(_segments(built, dropped, summary.prompts, shades))
            yield Bar(summary.iteration, f"{kind} pairs", built, summary.prompts, segments)


def _segments(built: int, dropped: Mapping[str, int], prompts: int, shades: Mapping[str, int]) -> Iterator[Segment]:
    accounted = built + sum(dropped.values())
    total = max(prompts, accounted, 1)
    yield Segment("pair", built, 100 * built / total, 0)
    for reason in sorted(dropped, key=lambda reason: shades[reason]):
        yield Segment(drop_label(reason), dropped[reason], 100 * dropped[reason] / total, shades[reason])
    if total > accounted:
        failed = total - accounted
        yield Segment("generation failed", failed, 100 * failed / total, _LAST_SHADE)


def _shades(summaries: Sequence[PairSummary]) -> dict[str, int]:
    """The most frequent reasons have a shade of their own, the rest share the last."""
    totals: Counter[str] = Counter()
    for summary in summaries:
        for reasons in summary.dropped.values():
            totals.update(reasons)
    ordered = sorted(totals, key=lambda reason: (-totals[reason], reason))
    return {reason: min(place, _LAST_SHADE) for place, reason in enumerate(ordered, start=1)}
