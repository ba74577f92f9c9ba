"""How completions travel from a worker to its pool: as JSON lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metareward.types import Alternative, Completion, Step


def pack(completion: Completion) -> list[Any]:
    """``completion`` as values that JSON knows."""
    steps = [[step.text, [[each.text, each.logprob] for each in step.alternatives]] for step in completion.steps]
    return [completion.text, completion.finish, completion.tokens, steps]


def unpack(packed: Sequence[Any]) -> Completion:
    """What `pack` was given."""
    text, finish, tokens, steps = packed
    return Completion(
        text,
        finish,
        tokens,
        tuple(Step(shown, tuple(Alternative(*each) for each in alternatives)) for shown, alternatives in steps),
    )
