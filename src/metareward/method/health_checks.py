"""What the gates of judge health say of figures, at one point of a run.

A gate fires only if the whole 95 % interval of its figure is past the threshold, so that thin data raises no alarm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from metareward.method.gates import GATES, Gate, Limit, mirrored, show_range, show_value, shown_limit
from metareward.method.judge_health import Figure, Figures

Outcome = Literal["passed", "unclear", "fired"]
Stage = Literal["evaluation", "records", "first prompts"]
FEWEST_PROMPTS = 10  # fewer prompts can't make a gate fire


@dataclass(frozen=True, slots=True)
class GateResult:
    """What gate ``name`` says of a figure. ``unclear``: the value is past the threshold, but the data are too few."""

    name: str
    figure: Figure
    limit: Limit
    outcome: Outcome

    @property
    def fired(self) -> bool:
        """Whether the figure is past the threshold beyond doubt."""
        return self.outcome == "fired"

    @property
    def gate(self) -> Gate:
        """The gate."""
        return GATES[self.name]

    @property
    def finding(self) -> str:
        """The figure with its interval and the threshold, in one sentence without its full stop."""
        gate, figure = self.gate, self.figure
        interval = f"95 % interval {show_range(gate.form, figure.low, figure.high)}"
        stated = gate.statement.format(value=show_value(gate.form, figure.value), n=f"{figure.n:,}")
        detail = f"; {figure.detail}" if figure.detail else ""
        return f"{stated} ({interval}{detail}); the limit is {self.shown_limit}"

    @property
    def shown_limit(self) -> str:
        """The limit in words."""
        return shown_limit(self.gate, self.limit)


def check_gates(figures: Figures, limits: Mapping[str, Limit]) -> tuple[GateResult, ...]:
    """The result of every gate whose figure is there, in the order of `GATES`; ``limits`` are by the gates' names."""
    found = ((gate, gate.of(figures), limits[gate.name]) for gate in GATES.values())
    return tuple(
        GateResult(gate.name, figure, limit, _outcome(gate, figure, limit))
        for gate, figure, limit in found
        if figure is not None
    )


def _outcome(gate: Gate, figure: Figure, limit: Limit) -> Outcome:
    lowest, highest = float("-inf"), float("inf")
    if gate.side in ("above", "either"):
        highest = limit.threshold
    if gate.side == "below":
        lowest = limit.threshold
    elif gate.side == "either":
        lowest = mirrored(gate.form, limit.threshold)
    if lowest <= figure.value <= highest:
        return "passed"
    sure = figure.high < lowest or figure.low > highest
    return "fired" if sure and figure.prompts >= FEWEST_PROMPTS else "unclear"


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """The gates' results about ``model`` at one point of a run.

    ``stage``: its evaluation, an iteration's records, or the first prompts of an iteration that is being generated.
    """

    stage: Stage
    model: str
    iteration: int
    results: tuple[GateResult, ...]

    @property
    def fired(self) -> tuple[GateResult, ...]:
        """The results past their thresholds, most serious first."""
        order = {"stop": 0, "warn": 1, "note": 2}
        return tuple(sorted((each for each in self.results if each.fired), key=lambda each: order[each.limit.action]))

    @property
    def stopping(self) -> tuple[GateResult, ...]:
        """The results that stop the run."""
        return tuple(each for each in self.fired if each.limit.action == "stop")

    @property
    def where(self) -> str:
        """``the evaluation of M1``, ``the records of iteration 2 (by M1)``."""
        if self.stage == "evaluation":
            return f"the evaluation of {self.model}"
        return f"the {self.stage} of iteration {self.iteration} (by {self.model})"
