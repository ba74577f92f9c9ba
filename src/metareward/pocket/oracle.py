"""Ground truth of the pocket world: how good an answer or a judgment really is. No model role sees it.

Five yes-or-no criteria, the ones that the pocket rubric names, each worth one point:

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

from metareward.pocket.tasks import Task, parse_instruction

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
    if not parsed.items:
        return Criteria(False, False, False, False, False)
    return Criteria(
        kind=all(item in task.kind for item in parsed.items),
        count=len(parsed.items) == len(task.expected),
        items=_items_right(task, parsed.items),
        order=_order_right(task, parsed.items),
        brief=parsed.only_items,
    )


def _items_right(task: Task, items: tuple[str, ...]) -> bool:
    if task.any_of_allowed:
        return len(set(items)) == len(items) and set(items) <= task.allowed
    return not Counter(items) - Counter(task.expected)


def _order_right(task: Task, items: tuple[str, ...]) -> bool:
    """Whether the allowed items are in the right order; false if there are none."""
    known = [item for item in items if item in task.allowed]
    if task.any_of_allowed or not known:
        return bool(known)
    remaining = iter(task.expected)
    without_repeats = [item for position, item in enumerate(known) if position == 0 or item != known[position - 1]]
    return all(item in remaining for item in without_repeats)


_CLAIM = re.compile(rf"\b({'|'.join(CRITERIA)}) (yes|no)\b")


def judgment_errors(criteria: Criteria, judgment: str, score: float) -> tuple[float, int]:
    """The errors of a judgment: its score's distance from the true score, then its number of wrong criteria."""
    claims = dict(_CLAIM.findall(judgment))
    truth = dict(zip(CRITERIA, astuple(criteria), strict=True))
    wrong = sum(claims.get(name) != ("yes" if met else "no") for name, met in truth.items())
    return abs(score - criteria.score), wrong
