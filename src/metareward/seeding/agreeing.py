"""Judgments that put answers in people's order (Self-Rewarding section 3.1): the others teach a wrong judge.

The n-th judgments of a prompt's answers are a set. The first set whose scores order the answers as people did is kept,
whole; a set with an unreadable judgment is no set. Of many sets some agree by chance: a judge that tosses coins over
two answers gets half of all prompts through in one try, and nearly all of them in eight.

What the papers leave open is how many tries there are, and a tie of the judge where people see a difference: it
disagrees, unless ties are allowed, and then some pair must still be ordered, and none wrongly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from metareward.agreement import pairwise_accuracy
from metareward.seeding.judging import Judged
from metareward.seeding.ranked import Ranked
from metareward.types import Judgment, Scored

Why = Literal["unreadable", "disagrees", "failed"]


@dataclass(frozen=True, slots=True)
class Agreeing:
    """A judgment that is kept: of the answer at ``place`` in the prompt's answers. ``text`` is all that was written."""

    place: int
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Refused:
    """A prompt of which no judgments are kept, and why; ``detail`` gives the numbers."""

    id: str
    reason: Why
    detail: str


def agrees(scores: Sequence[float], ranks: Sequence[float], ties: bool = False) -> bool:
    """Whether ``scores`` (more is better) order as ``ranks`` (less is better) do; pairs that people tie don't count."""
    pairs = pairwise_accuracy(scores, [-rank for rank in ranks])
    return pairs.right > 0 and pairs.wrong == 0 and (ties or pairs.tied == 0)


def agreeing_set(ranked: Ranked, judged: Judged, ties: bool = False) -> tuple[Agreeing, ...] | Refused:
    """One judgment for each answer, in the order of the answers; or why there is no such set."""
    ranks = [answer.rank for answer in ranked.answers]
    sets = [_readable(each) for each in zip(*judged.judgments_AN, strict=True)]
    whole = [each for each in sets if len(each) == len(ranks)]
    for each in whole:
        if agrees([one.score for one in each], ranks, ties):
            return each
    detail = f"{len(ranks)} answers, {len(sets)} sets, {len(whole)} readable, none in people's order"
    return Refused(ranked.prompt.id, "disagrees" if whole else "unreadable", detail)


def _readable(judgments: Sequence[Judgment]) -> tuple[Agreeing, ...]:
    """Those of a set that have a score."""
    return tuple(
        Agreeing(place, judgment.reasoning + judgment.text, judgment.reading.score)
        for place, judgment in enumerate(judgments)
        if isinstance(judgment.reading, Scored)
    )
