"""The worlds: prompt sources whose right answers a program knows (a recipe's ``prompts.source``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from metareward.evaluation.constraints.prompts import CONSTRAINTS, draw_held_out, draw_prompts
from metareward.evaluation.constraints.world import ConstraintOracle, require_checkers
from metareward.evaluation.held_out import Oracle
from metareward.pocket import world
from metareward.types import Prompt

Draw = Callable[[int, int], tuple[Prompt, ...]]


@dataclass(frozen=True, slots=True)
class World:
    """``draw_prompts`` and ``draw_held_out`` give so many different prompts by a seed, disjoint for all seeds.

    ``oracle``: for a rubric's scale, from its lowest to its highest score. ``check`` raises `UserError` for a missing
    package.
    """

    draw_prompts: Draw
    draw_held_out: Draw
    oracle: Callable[[float, float], Oracle]
    check: Callable[[], None]


def _pocket_oracle(_low: float, _high: float) -> Oracle:
    return world.PocketOracle()  # its rubric has one scale


WORLDS: Mapping[str, World] = {
    "pocket": World(world.prompts, partial(world.prompts, held_out=True), _pocket_oracle, lambda: None),
    CONSTRAINTS: World(draw_prompts, draw_held_out, ConstraintOracle, require_checkers),
}


def oracle_of(source: str, low: float, high: float) -> Oracle | None:
    """The oracle of a prompt source for a rubric's scale; None if no program knows what is right."""
    return WORLDS[source].oracle(low, high) if source in WORLDS else None
