"""How completions travel from a worker to its pool: as JSON lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metareward.types import Completion, Step, TopLogprob


def pack(completion: Completion) -> list[Any]:
    """``completion`` as values that JSON knows."""
    steps = [[step.text, [[each.text, each.logprob] for each in step.top_logprobs]] for step in completion.steps]
    return [completion.text, completion.finish, completion.tokens, steps]


def unpack(packed: Sequence[Any]) -> Completion:
    """What `pack` was given."""
    text, finish, tokens, steps = packed
    return Completion(
        text,
        finish,
        tokens,
        tuple(Step(shown, tuple(TopLogprob(*each) for each in top_logprobs)) for shown, top_logprobs in steps),
    )
