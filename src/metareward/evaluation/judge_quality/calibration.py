"""Calibration of a judge: whether what it predicts with probability p is right in a share p of the cases.

    ECE = sum over bins of n_bin / n * |mean predicted - mean observed|     (Guo et al., arXiv 1706.04599; equal widths)
    Brier = mean (predicted - observed)^2                                    confidence = mean max(p, 1 - p)

A prediction is the probability that output 1 of a pair is better: of the two labels' probabilities, or, where the judge
scores each output N times, the share of the pairs of scores that output 1 wins, equal scores half. Where the
probabilities of the scores' tokens are known, a score counts as all scores that it could have been.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metareward.errors import UserError
from metareward.evaluation.judge_quality.data import PairVerdicts, Winner
from metareward.storage.atomic import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """Predictions from ``low`` to ``high``: how many, their mean, and the share that came true."""

    low: float
    high: float
    n: int
    predicted: float
    observed: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Of ``n`` predictions; ``bins`` without any are left out."""

    n: int
    ece: float
    brier: float
    confidence: float
    bins: tuple[Bin, ...]


def calibration(predicted_N: Sequence[float], observed_N: Sequence[bool]) -> Calibration | None:
    """The calibration of probabilities in [0, 1] that ``observed_N`` came true; None without any."""
    if not predicted_N:
        return None
    p_N, y_N = np.asarray(predicted_N, dtype=np.float64), np.asarray(observed_N, dtype=np.float64)
    bin_N = np.minimum((p_N * BINS).astype(int), BINS - 1)
    bins = tuple(
        Bin(i / BINS, (i + 1) / BINS, int(inside.sum()), float(p_N[inside].mean()), float(y_N[inside].mean()))
        for i in range(BINS)
        if (inside := bin_N == i).any()
    )
    return Calibration(
        n=len(p_N),
        ece=sum(each.n * abs(each.predicted - each.observed) for each in bins) / len(p_N),
        brier=float(((p_N - y_N) ** 2).mean()),
        confidence=float(np.maximum(p_N, 1 - p_N).mean()),
        bins=bins,
    )


def verdict_calibration(labels: Mapping[str, Winner], verdicts: Sequence[PairVerdicts]) -> Calibration | None:
    """The calibration of a judge's probabilities, one in each order, on the pairs whose label names an output."""
    rows = [
        (probability, labels[each.id] == 1)
        for each in verdicts
        for probability in each.probabilities
        if labels.get(each.id) and probability is not None and not each.refused
    ]
    return calibration([p for p, _ in rows], [y for _, y in rows])


def write_reliability_plot(path: Path, by_judge: Mapping[str, Mapping[str, Any]]) -> None:
    """A reliability diagram of every judge's calibration (as a dict).

    The ending of ``path`` says the format. Raises `UserError` for one that Matplotlib doesn't write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", label="calibrated")
    for name, each in by_judge.items():
        predicted, observed = ([b[side] for b in each["bins"]] for side in ("predicted", "observed"))
        label = f"{name}: ECE {each['ece']:.3f}".replace("$", r"\$")  # Matplotlib reads $ as mathematics
        axes.plot(predicted, observed, marker="o", label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted: output 1 is better", ylabel="labels: output 1 is better")
    axes.legend()
    write_figure(figure, path)


def write_figure(figure: Figure, path: Path) -> None:
    """Write a plot in the format that ``path`` ends in. Raises `UserError` for one that Matplotlib doesn't write."""
    form, content = path.suffix.removeprefix("."), BytesIO()
    if form not in figure.canvas.get_supported_filetypes():
        raise UserError(f"{path}: no format of that name; fix: end it in .svg or .png")
    figure.savefig(content, format=form)
    write_atomic(path, content.getvalue())
