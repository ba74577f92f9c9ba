"""The pocket world for a run: prompts, the oracle (how good an answer or a judgment really is), the packaged model.

No model role sees the oracle. Its five yes-or-no criteria, those of the pocket rubric, are worth a point each:

kind    every item is of the kind asked for (a number, a word, an animal, a filled-in field)
count   there are as many items as asked for
items   no item is wrong, foreign or given too often
order   the right items are in the right order
brief   there is nothing but the answer
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import astuple, dataclass
from itertools import groupby
from pathlib import Path

from metareward.pocket.tasks import draw_instructions, parse_instruction
from metareward.types import Message, Prompt

MODEL = Path(__file__).parent / "model"
CRITERIA = ("kind", "count", "items", "order", "brief")


@dataclass(frozen=True, slots=True)
class Criteria:
    """Which criteria an answer meets; their number is its true score, 0..5."""

    kind: bool
    count: bool
    items: bool
    order: bool
    brief: bool

    @property
    def score(self) -> int:
        """Points out of 5."""
        return sum(astuple(self))


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """An answer's items, and whether it consists of them only."""

    items: tuple[str, ...]
    only_items: bool


def parse_answer(answer: str) -> ParsedAnswer:
    """``[opening:] item, item, item[. closing]`` in its parts. Other words become (wrong) items."""
    opening, colon, rest = answer.strip().rpartition(":")
    body, stop, closing = rest.partition(".")
    items = tuple(item for part in body.split(",") if (item := " ".join(part.split())))
    return ParsedAnswer(items, only_items=not (colon or opening or stop or closing.strip()))


def check_answer(instruction: str, answer: str) -> Criteria:
    """The criteria that ``answer`` meets. Raises `ValueError` for an instruction outside the pocket world."""
    task, parsed = parse_instruction(instruction), parse_answer(answer)
    items = parsed.items
    if not items:
        return Criteria(False, False, False, False, False)
    known = [item for item in items if item in task.allowed]
    if task.any_of_allowed:
        items_right = len(set(items)) == len(items) and set(items) <= task.allowed
        in_order = bool(known)
    else:
        items_right = not Counter(items) - Counter(task.expected)
        remaining = iter(task.expected)
        without_repeats = [item for item, _ in groupby(known)]
        in_order = bool(known) and all(item in remaining for item in without_repeats)
    return Criteria(
        kind=all(item in task.kind for item in items),
        count=len(items) == len(task.expected),
        items=items_right,
        order=in_order,
        brief=parsed.only_items,
    )


_CLAIM = re.compile(rf"\b({'|'.join(CRITERIA)}) (yes|no)\b")


def judgment_errors(criteria: Criteria, judgment: str, score: float) -> tuple[float, int]:
    """The errors of a judgment: its score's distance from the true score, then its number of wrong criteria."""
    claims = dict(_CLAIM.findall(judgment))
    truth = dict(zip(CRITERIA, astuple(criteria), strict=True))
    wrong = sum(claims.get(name) != ("yes" if met else "no") for name, met in truth.items())
    return abs(score - criteria.score), wrong


def prompts(count: int, seed: int, held_out: bool = False) -> tuple[Prompt, ...]:
    """``count`` different instructions, by ``seed``; held-out ones are disjoint from the others for all seeds."""
    name = "held-out" if held_out else "pocket"
    texts = draw_instructions(count, seed, held_out)
    return tuple(Prompt(f"{name}-{number:05d}", (Message("user", text),)) for number, text in enumerate(texts, 1))


class PocketOracle:
    """The ground truth about the pocket world (`metareward.evaluation.held_out.Oracle`)."""

    full_score = float(len(CRITERIA))

    def answer_score(self, prompt: Prompt, answer: str) -> float:
        """The true score, 0..5."""
        return check_answer(prompt.messages[-1].content, answer).score

    def judgment_error(self, prompt: Prompt, answer: str, judgment: str, score: float) -> tuple[float, ...]:
        """The score's distance from the true score, then the number of wrong criteria."""
        return judgment_errors(check_answer(prompt.messages[-1].content, answer), judgment, score)
