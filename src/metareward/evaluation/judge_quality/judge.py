"""What an engine is asked about a judge's quality: scores by the judge under test, comparisons by a reference judge.

Scores are N judgments of each response by a rubric of this project. Comparisons are AlpacaEval's question in both
orders; the response with more than half of the preference wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from metareward.evaluation.compare import LabelPrompt, ask_labels
from metareward.evaluation.judge_quality.data import Comparison, Item, PairVerdicts, Winner
from metareward.evaluation.judges import JudgeClient, Output, grade
from metareward.method.judge import RubricGrader
from metareward.method.template import conversation
from metareward.types import Prompt, Tied, Won


async def score_responses(client: JudgeClient, grader: RubricGrader, items: Sequence[Item]) -> tuple[Item, ...]:
    """``items`` with N scores to every response, None for an unreadable one. Raises `UserError` as `grade` does."""
    outputs = [
        Output(f"{item.id} answer {i}", Prompt(item.id, item.messages), response.text)
        for item in items
        for i, response in enumerate(item.responses)
    ]
    documents = (await grade(client, grader, outputs, "judge quality")).documents
    return tuple(_with_scores(item, documents) for item in items)


def _with_scores(item: Item, documents: Mapping[str, Any]) -> Item:
    responses = [
        replace(response, scores_N=tuple(document["scores"]), refused=False)
        if (document := documents.get(f"{item.id} answer {i}")) is not None
        else replace(response, scores_N=(), refused=True)
        for i, response in enumerate(item.responses)
    ]
    return replace(item, responses=tuple(responses))


async def compare_responses(
    client: JudgeClient, prompt: LabelPrompt, items: Sequence[Item], chosen: Mapping[str, tuple[int, int]]
) -> tuple[Item, ...]:
    """``items`` with the judge's comparisons, in both orders, of the two responses that ``chosen`` names by item id.

    Raises `UserError` as `ask_labels` does.
    """
    by_id = {item.id: item for item in items}
    orders = {
        f"{name} {first} {second}": (by_id[name], first, second)
        for name, (one, other) in chosen.items()
        for first, second in ((one, other), (other, one))
    }
    queries = [
        Prompt(key, prompt.query(conversation(item.messages), item.responses[first].text, item.responses[second].text))
        for key, (item, first, second) in orders.items()
    ]
    documents = (await ask_labels(client, prompt, queries, "reference", {})).documents
    found: dict[str, list[Comparison]] = {}
    for key, (item, first, second) in orders.items():
        found.setdefault(item.id, []).append(_comparison(documents.get(key), first, second))
    return tuple(replace(item, comparisons=tuple(_merged(item, found.get(item.id, [])))) for item in items)


def _merged(item: Item, new: list[Comparison]) -> list[Comparison]:
    """The new comparisons, and stored ones of other responses."""
    known = [{each.first, each.second} for each in new]
    return new + [each for each in item.comparisons if {each.first, each.second} not in known]


def _comparison(document: Mapping[str, object] | None, first: int, second: int) -> Comparison:
    share = None if document is None else document.get("first_share")
    if not isinstance(share, float):
        return Comparison(first, second, None)
    verdict = Tied() if share == 0.5 else Won(first if share > 0.5 else second)
    return Comparison(first, second, verdict)


def winner(comparison: Comparison) -> Winner | None:
    """1 or 2 for the first or second response of a pair, 0 for a tie, None for an unreadable verdict."""
    match comparison.verdict:
        case Won(index):
            return 1 if index == 0 else 2
        case Tied():
            return 0
        case None:
            return None


def pair_verdicts(items: Sequence[Item]) -> tuple[PairVerdicts, ...]:
    """The comparisons of each item's responses, in the order in which they were made."""
    return tuple(PairVerdicts(item.id, tuple(map(winner, item.comparisons))) for item in items)
