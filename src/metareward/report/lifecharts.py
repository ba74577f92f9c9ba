"""Two small pictures of one prompt's life: answers against the tiers, judgments against each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from markupsafe import Markup

from metareward.report.drawing import AMBER, BLUE, CARD, INK, SOFT, drawing, ticks
from metareward.report.lifefacts import AnswerLife, DisputeLife, Life, Side, Tiers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS: dict[Side | None, str] = {"chosen": BLUE, "rejected": AMBER, None: SOFT}


def answers_chart(life: Life, name: str) -> Markup | None:
    """Each answer's length over its mean score, the two tiers shaded; None when no answer has a score."""
    scored = [answer for answer in life.answers if answer.score is not None]
    if not scored or life.tiers is None:
        return None
    caption = "Length of each answer by its mean score; the chosen and rejected tiers are shaded"
    with drawing(f"{name}-answers", caption, width=310, height=220, margins=(44, 14, 10, 36)) as chart:
        _shade(chart.axes, life.tiers, max(a.score.mean for a in scored if a.score), BLUE, upper=True)
        _shade(chart.axes, life.tiers, min(a.score.mean for a in scored if a.score), AMBER, upper=False)
        for answer in scored:
            _dot(chart.axes, answer)
        chart.axes.set_xlabel("mean score")
        chart.axes.set_ylabel("characters")
        chart.axes.margins(0.14, 0.2)
        chart.axes.yaxis.set_major_locator(ticks(4, integer=True))
        chart.axes.xaxis.set_major_locator(ticks(6, steps=[1, 2, 5, 10]))
    return chart.svg


def _shade(axes: Axes, tiers: Tiers, end: float, colour: str, upper: bool) -> None:
    edges = (tiers.floor, end) if upper else (end, tiers.ceiling)
    axes.axvspan(*edges, color=colour, alpha=0.13, linewidth=0, zorder=0)
    for edge in edges:
        axes.axvline(edge, color=colour, alpha=0.5, linewidth=0.8, zorder=0)


def _dot(axes: Axes, answer: AnswerLife) -> None:
    assert answer.score is not None
    colour = _COLOURS[answer.side]
    face = colour if answer.side else CARD
    at = (answer.score.mean, answer.score.chars)
    axes.plot(*at, "o", color=colour, markerfacecolor=face, markersize=8, markeredgewidth=1.4, zorder=3)
    label = f"{answer.candidate.index} {answer.side}" if answer.side else str(answer.candidate.index)
    below = answer.side == "chosen"  # chosen answers are short: their neighbours' numbers are above them
    lift = (0, -16 if below else 7)
    axes.annotate(label, at, xytext=lift, textcoords="offset points", ha="center", color=INK, fontsize=10, zorder=4)


def ratings_chart(dispute: DisputeLife, name: str) -> Markup:
    """Elo ratings with 95 % intervals, the best judgment on top."""
    ranked = dispute.ranked
    height = 44 + 24 * len(ranked)
    with drawing(
        f"{name}-ratings", "Elo rating of each judgment with its 95 % interval", 310, height, (44, 14, 6, 38)
    ) as chart:
        for row, rated in enumerate(ranked):
            colour = _COLOURS[rated.side]
            if math.isfinite(rated.low) and math.isfinite(rated.high):
                chart.axes.plot([rated.low, rated.high], [row, row], color=colour, linewidth=2, alpha=0.6)
            chart.axes.plot(rated.rating, row, "o", color=colour, markersize=7)
        chart.axes.set_yticks(range(len(ranked)), [str(rated.judgment.index) for rated in ranked])
        chart.axes.set_ylim(len(ranked) - 0.4, -0.6)
        chart.axes.set_xlabel("Elo rating")
        chart.axes.set_ylabel("judgment")
        chart.axes.grid(visible=False, axis="y")
        chart.axes.grid(visible=True, axis="x")
    return chart.svg
