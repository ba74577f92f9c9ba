"""What no role can see: how good an answer, a judgment or a meta-judgment of the pocket world really is.

Five yes-or-no criteria, the ones that the pocket rubric names, each worth one point:

kind    every item is of the kind asked for (a number, a word, an animal, a filled-in field)
count   there are as many items as asked for
items   no item is wrong, foreign or given too often
order   the right items stand in the right order
brief   there is nothing but the answer
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import astuple, dataclass

from metareward.pocket.tasks import Task, understand

CRITERIA = ("kind", "count", "items", "order", "brief")
TOP = len(CRITERIA)


@dataclass(frozen=True, slots=True)
class Marks:
    """The five verdicts on one answer; their sum is the true score, 0..5."""

    kind: bool
    count: bool
    items: bool
    order: bool
    brief: bool

    @property
    def score(self) -> int:
        """Points out of 5."""
        return sum(astuple(self))


NOTHING = Marks(False, False, False, False, False)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer taken apart: its items, and whether anything else stands around them."""

    items: tuple[str, ...]
    bare: bool


def take_apart(answer: str) -> Reply:
    """``[opening:] item, item, item[. closing]`` → its parts. Words that are neither become items, wrong ones."""
    opening, colon, rest = answer.strip().rpartition(":")
    body, stop, closing = rest.partition(".")
    items = tuple(item for part in body.split(",") if (item := " ".join(part.split())))
    return Reply(items, bare=not (colon or opening or stop or closing.strip()))


def mark(instruction: str, answer: str) -> Marks:
    """The truth about one answer to one instruction of the pocket world."""
    task, reply = understand(instruction), take_apart(answer)
    if not reply.items:
        return NOTHING
    return Marks(
        kind=all(item in task.kind for item in reply.items),
        count=len(reply.items) == len(task.expected),
        items=_items_right(task, reply.items),
        order=_order_right(task, reply.items),
        brief=reply.bare,
    )


def _items_right(task: Task, items: tuple[str, ...]) -> bool:
    if task.free:
        return len(set(items)) == len(items) and set(items) <= task.allowed
    return not Counter(items) - Counter(task.expected)


def _order_right(task: Task, items: tuple[str, ...]) -> bool:
    """Whether the items that belong to the answer follow each other as they should; with none, no."""
    known = [item for item in items if item in task.allowed]
    if task.free or not known:
        return bool(known)
    remaining = iter(task.expected)
    once = [item for position, item in enumerate(known) if position == 0 or item != known[position - 1]]
    return all(item in remaining for item in once)


_CLAIM = re.compile(rf"\b({'|'.join(CRITERIA)}) (yes|no)\b")


def judgment_errors(marks: Marks, judgment: str, score: float) -> tuple[float, int]:
    """How wrong a judgment is: its score's distance from the truth, then how many criteria it calls wrongly."""
    claims = dict(_CLAIM.findall(judgment))
    truth = dict(zip(CRITERIA, astuple(marks), strict=True))
    wrong = sum(claims.get(name) != ("yes" if right else "no") for name, right in truth.items())
    return abs(score - marks.score), wrong
