"""The tables of docs/real-model.md that bench/real_model.py measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from metareward.method.paired import PairedDifference, paired_difference

RESULTS = Path(__file__).parent / "results/real_model.json"
_ARMS: Mapping[str, str] = {
    "program": "oracle (the program)",
    "guards": "the guards alone (a program)",
    "random": "random",
    "longest": "longest answer",
    "shortest": "shortest answer",
    "untrained": "the model itself, not trained to judge",
    "trained": "the model itself after EFT",
}
_KINDS: Mapping[str, str] = {
    "all": "all", "topic": "new topics", "combination": "new combinations", "family": "new families"
}  # fmt: skip
Row = tuple[str, ...]


def _stored() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def _passes(seeds: Sequence[Mapping[str, Any]]) -> Any:
    return np.array([each["passes"] for each in seeds])


def _points(found: PairedDifference) -> str:
    """A paired difference in percentage points, with its interval."""
    assert found.low is not None and found.high is not None
    return f"{100 * found.difference:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def _shares(measured: Mapping[str, Any]) -> list[float]:
    """Constraints met, all guards passed, cut off."""
    return [fmean(measured["constraints"]), measured["all_guards"], measured["cut_off"]]


def arms_rows() -> list[Row]:
    """Each arm: its labels, its pass rate, and its differences to M0 and to random pairs."""
    found = _stored()
    zero, arms = found["m0"], {name: list(seeds.values()) for name, seeds in found["arms"].items()}
    rows: list[Row] = [
        ("pairs by", "seeds", "right : wrong", "chosen longer", "passes", "against M0, points",
         "against random pairs, points", "constraints met", "all guards", "cut off", "tokens"),
        ("M0", "", "", "", f"{100 * fmean(zero['passes']):.1f} %", "", "",
         *(f"{100 * share:.0f} %" for share in _shares(zero)), f"{zero['tokens']:.0f}"),
    ]  # fmt: skip
    for name, seeds in arms.items():
        labels = [each["labels"] for each in seeds]
        right, wrong = (fmean(own[key] for own in labels) for key in ("passing_over_failing", "failing_over_passing"))
        change = paired_difference(_passes([zero]), _passes(seeds))
        control = arms.get("random")
        against = _points(paired_difference(_passes(control), _passes(seeds))) if control and name != "random" else ""
        means = [fmean(values) for values in zip(*map(_shares, seeds), strict=True)]
        rows.append((
            _ARMS[name], f"{len(seeds)}", f"{right:.0f} : {wrong:.0f}",
            f"{100 * fmean(own['chosen_longer'] for own in labels):.0f} %", f"{100 * change.mean_b:.1f} %",
            _points(change), against, *(f"{100 * mean:.0f} %" for mean in means),
            f"{fmean(each['tokens'] for each in seeds):.0f}",
        ))  # fmt: skip
    return rows


def judges_rows() -> list[Row]:
    """The judge before and after EFT beside length and chance: AUC with lengths balanced, on held-out prompts."""
    judges = _stored()["judges"]
    rows: list[Row] = [("judge", *_KINDS.values(), "ECE", "Brier", "mean of max(p, 1 − p)")]
    for name, found in judges.items():
        cells = (
            f"{found[kind]['balanced']:.2f} ({found[kind]['balanced_low']:.2f} to {found[kind]['balanced_high']:.2f})"
            for kind in _KINDS
        )
        held = found.get("calibration")
        figures = (f"{held[key]:.2f}" for key in ("ece", "brier", "confidence")) if held else ("", "", "")
        rows.append((name, *cells, *figures))
    counts = (f"{judges['random'][kind]['comparisons']}, {judges['random'][kind]['prompts']}" for kind in _KINDS)
    rows.append(("comparisons, prompts", *counts, "", "", ""))
    return rows


def checks_rows() -> list[Row]:
    """Each judge over all held-out answers: its AUC for each thing that the program checks."""
    judges = _stored()["judges"]
    things = list(judges["random"]["checks"])
    rows: list[Row] = [("judge", *(name.replace("_", " ") for name in things))]
    for name, found in judges.items():
        cells = (
            f"{mean:.2f} ({low:.2f} to {high:.2f})" for mean, low, high in (found["checks"][each] for each in things)
        )
        rows.append((name, *cells))
    return rows
