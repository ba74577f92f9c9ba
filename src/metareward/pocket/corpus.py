"""Demonstrations of the three roles, in exactly the words a run will use."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from metareward.metarubric import MetaRubric
from metareward.pocket.habits import CLEAN, Habits, answer, judgment, verdict
from metareward.pocket.oracle import Marks, mark
from metareward.pocket.tasks import draw_instruction, understand
from metareward.render import load_template
from metareward.rubric import Rubric
from metareward.seeds import derive
from metareward.types import Message, Messages, Prompt

Part = Literal["actor", "judge", "meta"]

Shares = tuple[float, float, float]  # of demonstrations: actor, judge, meta-judge
PARTS: tuple[Part, ...] = ("actor", "judge", "meta")

# What is judged must be of every quality: from spotless to hopeless.
SPOTTY = Habits(
    foreign=0.2,
    wrong=0.3,
    missing=0.3,
    extra=0.3,
    doubled=0.2,
    swapped=0.4,
    opening=0.3,
    closing=0.3,
)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What one role is shown and what it should write."""

    part: Part
    messages: Messages
    completion: str


RUBRIC = Rubric(load_template("pocket_judge"))
METARUBRIC = MetaRubric(load_template("pocket_metajudge"))


def demonstrations(
    count: int, seed: int, habits: Habits, held_out: bool = False, shares: Shares = (0.2, 0.45, 0.35)
) -> Iterator[Demonstration]:
    """``count`` demonstrations by ``seed``, of all roles, none about a held-out instruction unless asked."""
    rng = random.Random(derive(seed, "demonstrations"))
    for part in rng.choices(PARTS, shares, k=count):
        yield _demonstrate(part, draw_instruction(rng, held_out), habits, rng)


def _demonstrate(part: Part, instruction: str, habits: Habits, rng: random.Random) -> Demonstration:
    prompt = Prompt("", (Message("user", instruction),))
    if part == "actor":
        return Demonstration(part, prompt.messages, answer(understand(instruction), habits, rng))
    text = answer(understand(instruction), _weakened(SPOTTY, rng), rng)
    marks = mark(instruction, text)
    if part == "judge":
        return Demonstration(part, RUBRIC.ask(prompt, text), judgment(marks, habits, rng))
    first, second = _two_judgments(marks, rng)
    return Demonstration(part, METARUBRIC.ask(prompt, text, first, second), verdict(marks, first, second, habits, rng))


def _two_judgments(marks: Marks, rng: random.Random) -> tuple[str, str]:
    """Two readable judgments of any quality; mostly of different worth, so that there is something to learn."""
    while True:
        pair = (_some_judgment(marks, rng), _some_judgment(marks, rng))
        if pair[0] != pair[1] or rng.random() < 0.1:
            return pair


def _some_judgment(marks: Marks, rng: random.Random) -> str:
    """Mostly plain judgments with more or fewer errors, so that the errors must be found and not the style."""
    careless = rng.choice((0.0, 0.1, 0.2, 0.35))
    return judgment(
        marks, Habits(careless=careless, seduced=0.15, hasty=0.35, hasty_careless=0.3, hasty_seduced=0.5), rng
    )


def _weakened(habits: Habits, rng: random.Random) -> Habits:
    """The same faults, all less likely by one random factor."""
    factor = rng.choice((0.0, 0.3, 0.6, 1.0, 1.3))
    return Habits(
        foreign=habits.foreign * factor,
        wrong=habits.wrong * factor,
        missing=habits.missing * factor,
        extra=habits.extra * factor,
        doubled=habits.doubled * factor,
        swapped=habits.swapped * factor,
        opening=habits.opening * min(factor + 0.3, 1.5),
        closing=habits.closing * min(factor + 0.3, 1.5),
    )


__all__ = ["CLEAN", "METARUBRIC", "RUBRIC", "Demonstration", "Part", "demonstrations"]
