"""Demonstrations of the three roles, in exactly the words a run will use."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
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

CARELESSNESS = (0.0, 0.1, 0.2, 0.35)

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


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is demonstrated: the roles' habits, the roles' shares, and the judgments that the meta-judge is shown.

    How careless those are is drawn anew for each, so that there are better and worse ones to tell apart.
    """

    habits: Habits
    shares: Shares
    shown: Habits


def demonstrations(count: int, seed: int, lesson: Lesson, held_out: bool = False) -> Iterator[Demonstration]:
    """``count`` demonstrations by ``seed``, none about a held-out instruction unless asked."""
    rng = random.Random(derive(seed, "demonstrations"))
    for part in rng.choices(PARTS, lesson.shares, k=count):
        yield _demonstrate(part, draw_instruction(rng, held_out), lesson, rng)


def _demonstrate(part: Part, instruction: str, lesson: Lesson, rng: random.Random) -> Demonstration:
    prompt, habits = Prompt("", (Message("user", instruction),)), lesson.habits
    if part == "actor":
        return Demonstration(part, prompt.messages, answer(understand(instruction), habits, rng))
    text = answer(understand(instruction), _weakened(SPOTTY, rng), rng)
    marks = mark(instruction, text)
    if part == "judge":
        return Demonstration(part, RUBRIC.ask(prompt, text), judgment(marks, habits, rng))
    first, second = _two_judgments(marks, lesson.shown, rng)
    return Demonstration(part, METARUBRIC.ask(prompt, text, first, second), verdict(marks, first, second, habits, rng))


def _two_judgments(marks: Marks, shown: Habits, rng: random.Random) -> tuple[str, str]:
    """Two readable judgments; mostly different ones, so that there is something to learn."""
    while True:
        first, second = (judgment(marks, replace(shown, careless=rng.choice(CARELESSNESS)), rng) for _ in ("A", "B"))
        if first != second or rng.random() < 0.1:
            return first, second


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
