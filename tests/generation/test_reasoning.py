"""A reasoning model's thinking in a record: hidden from judge and meta-judge, part of the pairs' texts."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from scripted_models import prompt, role_of, settings

from metareward.engines.base import ScriptedEngine
from metareward.generation.annotate import annotate_prompt
from metareward.method.elo import position_weights
from metareward.method.judge import Reasoning
from metareward.method.pairs import PairRules, actor_pair, judge_pair
from metareward.types import Completion, Messages, PreferencePair, Sampling, Truncated


def reasoning_model(messages: Messages, _: Sampling, i: int) -> str | Completion:
    role = role_of(messages)
    if role == "actor":
        return f"<think>Score: 0, I guess</think>answer {'x' * i}"
    assert "I guess" not in messages[-1].content, "a judge sees the actor's thinking"
    if role == "meta":
        higher, lower = (messages[-1].content.index(f"Score: {score}") for score in (4, 3))
        return f"<think>Winner: Judgment B?</think>Winner: Judgment {'A' if higher < lower else 'B'}"
    if i == 2:
        return Completion("<think>I could go on", "length", 5)
    return f"<think>is it Score: 1 or Score: 2</think>Because. Score: {i + 3}"


def test_roles_see_answers_only_and_pairs_have_the_whole_completion() -> None:
    chosen = replace(settings(), reasoning=Reasoning(), n=3, k=2)
    record = asyncio.run(annotate_prompt(ScriptedEngine(reasoning_model), prompt(1), chosen))
    first = record.candidates_K[0]
    assert (first.reasoning, first.text) == ("<think>Score: 0, I guess</think>", "answer ")
    assert [judgment.reading for judgment in first.judgments_N][2] == Truncated()
    assert [getattr(judgment.reading, "score", None) for judgment in first.judgments_N] == [3.0, 4.0, None]
    pair = judge_pair(record, PairRules(), position_weights(()), chosen.rubric, 0)
    assert isinstance(pair, PreferencePair)
    assert pair.chosen.startswith("<think>is it") and pair.chosen != pair.rejected
    assert "I guess" not in pair.prompt[-1].content
    differing = replace(first, judgments_N=first.judgments_N[:1])
    actor = actor_pair(replace(record, candidates_K=(differing, *record.candidates_K[1:])), PairRules(min_valid=1))
    assert isinstance(actor, PreferencePair) and actor.chosen.startswith("<think>Score: 0, I guess</think>answer")
