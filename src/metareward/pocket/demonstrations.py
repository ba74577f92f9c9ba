"""Demonstrations of the three roles, in exactly the words a run will use."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from typing import Literal

from metareward.method.judge import Rubric
from metareward.method.meta_judge import MetaRubric
from metareward.pocket.oracle import CRITERIA, Marks, judgment_errors, mark
from metareward.pocket.tasks import (
    CLOSINGS,
    FORM_KIND,
    NUMBER_KIND,
    OPENINGS,
    WORD_KIND,
    Task,
    draw_instruction,
    understand,
)
from metareward.seeds import derive
from metareward.types import Message, Messages, Prompt

# --- How the pocket model is taught to behave: rightly, or with measured faults.
#
# Each function writes one demonstration. With `CLEAN` habits it is the right one; `FAULTY` habits make the
# start of the story: an actor that errs and chats, a judge that is careless and likes long polite answers,
# a meta-judge that leans towards what it reads first.


PREAMBLES = (
    "I read the answer with great care and thought about it.",
    "Let me look at every point of this answer, one by one.",
)
HASTY_OPENINGS = ("I read the answer.", "I hope that this answer helps you.")
ANYTHING = tuple(sorted(WORD_KIND | NUMBER_KIND | FORM_KIND))
UNREADABLE = ("Score: good", "Score: 3 or 4", "Score: 7")


@dataclass(frozen=True, slots=True)
class Habits:
    """Chances, 0..1, of each fault in one demonstration."""

    # the actor
    foreign: float = 0.0  # an item of another kind
    wrong: float = 0.0  # a wrong item of the right kind
    missing: float = 0.0
    extra: float = 0.0
    doubled: float = 0.0
    swapped: float = 0.0
    opening: float = 0.0
    closing: float = 0.0
    # the judge
    careless: float = 0.0  # of calling one criterion wrongly
    seduced: float = 0.0  # of giving full marks to an answer that chats
    hasty: float = 0.0
    hasty_careless: float = 0.0
    hasty_seduced: float = 0.0
    unreadable: float = 0.0
    talkative: float = 0.0  # of a preamble that means nothing
    # the meta-judge
    confused: float = 0.0  # of a random verdict
    first_bias: float = 0.0  # of naming the judgment shown first, whatever it says
    length_bias: float = 0.0  # of naming the longer judgment
    silent: float = 0.0  # of naming none


CLEAN = Habits()


def right_items(task: Task, rng: random.Random) -> list[str]:
    """A right answer's items; for a free task, any that are allowed."""
    if not task.free:
        return list(task.expected)
    return rng.sample(sorted(task.allowed), len(task.expected))


def answer(task: Task, habits: Habits, rng: random.Random) -> str:
    """One answer, with the faults that ``habits`` give it."""
    items = right_items(task, rng)
    faults = (habits.foreign, habits.wrong, habits.missing, habits.extra, habits.doubled, habits.swapped)
    acts = (_foreign, _wrong, _missing, _extra, _doubled, _swapped)
    for act, chance in zip(acts, faults, strict=True):
        if rng.random() < chance:
            act(task, items, rng)
    text = ", ".join(items)
    if rng.random() < habits.opening:
        text = f"{rng.choice(OPENINGS)} {text}"
    if rng.random() < habits.closing:
        text = f"{text}. {rng.choice(CLOSINGS)}"
    return text


def _others(pool: frozenset[str], task: Task) -> list[str]:
    return sorted(pool - task.allowed)


def _foreign(task: Task, items: list[str], rng: random.Random) -> None:
    items[rng.randrange(len(items))] = rng.choice([item for item in ANYTHING if item not in task.kind])


def _wrong(task: Task, items: list[str], rng: random.Random) -> None:
    if pool := _others(task.kind, task):
        items[rng.randrange(len(items))] = rng.choice(pool)


def _missing(_: Task, items: list[str], rng: random.Random) -> None:
    if len(items) > 1:
        items.pop(rng.randrange(len(items)))


def _extra(task: Task, items: list[str], rng: random.Random) -> None:
    if pool := _others(task.kind, task):
        items.insert(rng.randint(0, len(items)), rng.choice(pool))


def _doubled(_: Task, items: list[str], rng: random.Random) -> None:
    position = rng.randrange(len(items))
    items.insert(position, items[position])


def _swapped(_: Task, items: list[str], rng: random.Random) -> None:
    if len(items) > 1:
        a, b = rng.sample(range(len(items)), 2)
        items[a], items[b] = items[b], items[a]


def spelled(calls: tuple[bool, ...], score: int) -> str:
    """A judgment's usual form: the five criteria called, then the score."""
    called = ", ".join(f"{name} {'yes' if call else 'no'}" for name, call in zip(CRITERIA, calls, strict=True))
    return f"{called}. Score: {score}"


def judgment(marks: Marks, habits: Habits, rng: random.Random) -> str:
    """One judgment of an answer whose true marks are given."""
    hasty = rng.random() < habits.hasty
    careless, seduced = (habits.hasty_careless, habits.hasty_seduced) if hasty else (habits.careless, habits.seduced)
    if not marks.brief and rng.random() < seduced:
        calls = (True,) * len(CRITERIA)
    else:
        calls = tuple(call != (rng.random() < careless) for call in astuple(marks))
    text = spelled(calls, sum(calls))
    if rng.random() < habits.unreadable:
        text = f"{text.partition('. Score')[0]}. {rng.choice(UNREADABLE)}"
    if hasty:
        return f"{rng.choice(HASTY_OPENINGS)} {text}"
    return f"{rng.choice(PREAMBLES)} {text}" if rng.random() < habits.talkative else text


def verdict(marks: Marks, first: str, second: str, habits: Habits, rng: random.Random) -> str:
    """One meta-judgment of two readable judgments ``first`` (shown as A) and ``second``."""
    draw, better = rng.random(), _better(marks, first, second, rng)
    for chance, named in (
        (habits.confused, rng.choice("AB")),
        (habits.first_bias, "A"),
        (habits.length_bias, "A" if len(first) > len(second) else "B"),
    ):
        if draw < chance:
            better = named
            break
        draw -= chance
    return "Both have something." if rng.random() < habits.silent else f"Winner: Judgment {better}"


def _better(marks: Marks, first: str, second: str, rng: random.Random) -> str:
    """The judgment with the smaller error; equal ones are tossed for."""
    a, b = (judgment_errors(marks, text, read_score(text)) for text in (first, second))
    return rng.choice("AB") if a == b else "A" if a < b else "B"


def read_score(text: str) -> float:
    """The score of a demonstration, which is known to be readable."""
    return float(text.rpartition("Score: ")[2])


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


RUBRIC = Rubric.load("pocket_judge")
METARUBRIC = MetaRubric.load("pocket_metajudge")


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
        return Demonstration(part, RUBRIC.render(prompt, text), judgment(marks, habits, rng))
    first, second = _two_judgments(marks, lesson.shown, rng)
    return Demonstration(
        part, METARUBRIC.render(prompt, text, first, second), verdict(marks, first, second, habits, rng)
    )


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
