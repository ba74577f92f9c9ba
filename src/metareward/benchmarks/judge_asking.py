"""Scores and comparisons that an engine is asked for: the judge under test grades, a reference judge compares.

Grading uses this project's rubrics, N judgments to an answer; only readable ones become scores. Comparing uses the
label question of AlpacaEval in both orders; the output with more than half of the preference wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from metareward.benchmarks.asking import Asked, Desk, ask
from metareward.benchmarks.judge_files import Comparison, Item
from metareward.benchmarks.label_judge import SAMPLING, LabelPrompt, read_label
from metareward.render import conversation
from metareward.rubric import Rubric
from metareward.seeds import derive
from metareward.types import Prompt, Sampling, Scored, Tied, Won


async def score_responses(
    desk: Desk, rubric: Rubric, items: Sequence[Item], n: int, sampling: Sampling
) -> tuple[Item, ...]:
    """``items`` with ``n`` scores to every response, None for an unreadable one. Raises `UserError` as `ask` does."""
    questions = [
        Prompt(_place(item, i), rubric.ask(Prompt(item.id, item.messages), response.text))
        for item in items
        for i, response in enumerate(item.responses)
    ]

    async def work(question: Prompt) -> dict[str, object]:
        seeded = replace(sampling, seed=derive(desk.seed, "judge quality", question.id))
        written_N = await desk.engine.complete(question.messages, seeded, n, "judge")
        readings = [rubric.read(written.text, written.finish) for written in written_N]
        return {"scores": [reading.score if isinstance(reading, Scored) else None for reading in readings]}

    settings = {
        "rubric": rubric.template.sha256,
        "n": n,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
    }
    asked = await ask(desk, questions, work, settings)
    return tuple(_scored(item, asked) for item in items)


def _place(item: Item, i: int) -> str:
    return f"{item.id} answer {i}"


def _scored(item: Item, asked: Asked) -> Item:
    responses = [
        replace(response, scores_N=tuple(document["scores"]), refused=False)
        if (document := asked.documents.get(_place(item, i))) is not None
        else replace(response, scores_N=(), refused=True)
        for i, response in enumerate(item.responses)
    ]
    return replace(item, responses=tuple(responses))


async def compare_responses(
    desk: Desk, prompt: LabelPrompt, items: Sequence[Item], chosen: Mapping[str, tuple[int, int]]
) -> tuple[Item, ...]:
    """``items`` with the reference judge's verdicts, in both orders, on the two responses that ``chosen`` names.

    Raises `UserError` as `ask` does.
    """
    by_id = {item.id: item for item in items}
    orders = {
        f"{name} {first} {second}": (by_id[name], first, second)
        for name, (one, other) in chosen.items()
        for first, second in ((one, other), (other, one))
    }
    questions = [
        Prompt(key, prompt.ask(conversation(item.messages), item.responses[first].text, item.responses[second].text))
        for key, (item, first, second) in orders.items()
    ]

    async def work(question: Prompt) -> dict[str, object]:
        seeded = replace(SAMPLING, seed=derive(desk.seed, "reference", question.id))
        (written,) = await desk.engine.complete(question.messages, seeded, 1, "judge")
        told = read_label(written)
        return {"first_share": None if told is None else told.share}

    asked = await ask(desk, questions, work, {"prompt": prompt.sha256})
    found: dict[str, list[Comparison]] = {}
    for key, (item, first, second) in orders.items():
        found.setdefault(item.id, []).append(_comparison(asked.documents.get(key), first, second))
    return tuple(replace(item, comparisons=tuple(_merged(item, found))) for item in items)


def _merged(item: Item, found: Mapping[str, Iterable[Comparison]]) -> list[Comparison]:
    """The new verdicts, and stored ones about other responses."""
    new = list(found.get(item.id, ()))
    told = [{each.first, each.second} for each in new]
    return new + [each for each in item.comparisons if {each.first, each.second} not in told]


def _comparison(document: Mapping[str, object] | None, first: int, second: int) -> Comparison:
    share = None if document is None else document.get("first_share")
    if not isinstance(share, float):
        return Comparison(first, second, None)
    verdict = Tied() if share == 0.5 else Won(first if share > 0.5 else second)
    return Comparison(first, second, verdict)
