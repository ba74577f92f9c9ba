"""The metrics a reader may meet: their names in plain words, how to print them, and which way is better."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Form = Literal["score", "share", "chars", "correlation"]
Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table. ``better`` is ``neither`` where a change alone is no gain, such as a length."""

    key: str
    label: str
    group: str
    form: Form
    better: Better
    meaning: str

    def show(self, value: float) -> str:
        """``value`` with the digits its form deserves, without a unit that the label already names."""
        return show(self.form, value)

    def show_change(self, change: float) -> str:
        """A difference, always with its sign; a true minus sign lines up with the plus."""
        return f"{'−' if change < 0 else '+'}{show(self.form, abs(change))}"


def show(form: Form, value: float) -> str:
    """Print a value: shares as percentages, lengths without decimals, the rest with two."""
    if not math.isfinite(value):
        return "not a number"
    if form == "share":
        return f"{100 * value:.1f} %"
    return (
        f"{value:,.0f}"
        if form == "chars" and abs(value) >= 100
        else f"{value:.1f}"
        if form == "chars"
        else f"{value:.2f}"
    )


CATALOGUE = (
    Metric("answer_quality", "Answer quality (0–5)", "Answers", "score", "higher", "Mean score the oracle gives."),
    Metric("answer_perfect", "Perfect answers", "Answers", "share", "higher", "Share with the oracle's full score."),
    Metric(
        "answer_self_score",
        "Own mean score",
        "Answers",
        "score",
        "neither",
        "What the model itself scores its answers.",
    ),
    Metric("answer_chars", "Answer length (characters)", "Answers", "chars", "neither", "Mean length."),
    Metric("answer_truncated", "Answers cut off", "Answers", "share", "lower", "Share that hit the token limit."),
    Metric(
        "judgment_exact",
        "Judgments exactly right",
        "Judge",
        "share",
        "higher",
        "Single judgment equals the oracle's score.",
    ),
    Metric(
        "judgment_rank_correlation",
        "Rank correlation, one judgment",
        "Judge",
        "correlation",
        "higher",
        "With the oracle.",
    ),
    Metric(
        "judgment_mean_rank_correlation",
        "Rank correlation, mean of N",
        "Judge",
        "correlation",
        "higher",
        "With the oracle.",
    ),
    Metric(
        "judgment_valid", "Judgments readable", "Judge", "share", "higher", "Share ending in a score inside the scale."
    ),
    Metric("judgment_chars", "Judgment length (characters)", "Judge", "chars", "neither", "Mean length."),
    Metric(
        "anchor_score",
        "Mean score of M0's answers",
        "Judge",
        "score",
        "neither",
        "Same answers each time: shows drift.",
    ),
    Metric(
        "meta_accuracy", "Meta-judge right", "Meta-judge", "share", "higher", "Picks the judgment nearer to the oracle."
    ),
    Metric("meta_valid", "Verdicts readable", "Meta-judge", "share", "higher", "Share naming a winner."),
    Metric("meta_first_position", "Wins of the first shown", "Meta-judge", "share", "neither", "50 % is unbiased."),
)

BY_KEY = {metric.key: metric for metric in CATALOGUE}


def metric_for(key: str) -> Metric:
    """The catalogue's entry, or a plain one for a metric it has not heard of."""
    return BY_KEY.get(key) or Metric(key, key.replace("_", " "), "Other", "correlation", "neither", "")
