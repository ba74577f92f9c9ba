"""A model that thinks before it answers, behind a door that lets only the answer through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from metareward.engines.engine import Engine
from metareward.method.judge import Reasoning
from metareward.types import Completion, Messages, ModelRole, Sampling, Step


class WithoutThinking:
    """``engine`` without what it thinks; it gets ``room`` more tokens than it is asked for, to think in."""

    def __init__(self, engine: Engine, reasoning: Reasoning, room: int = 0) -> None:
        self._engine = engine
        self._reasoning = reasoning
        self._room = room

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        """What follows the thinking, empty where it didn't end, with the steps that wrote it."""
        roomier = replace(sampling, max_tokens=sampling.max_tokens + self._room)
        return [self._said(written) for written in await self._engine.complete(messages, roomier, n, role)]

    async def aclose(self) -> None:
        """Close the engine."""
        await self._engine.aclose()

    def _said(self, written: Completion) -> Completion:
        thinking, answer = self._reasoning.split(written.text)
        return replace(written, text=answer, steps=tuple(_after(written.steps, len(thinking))))


def _after(steps: Sequence[Step], chars: int) -> Iterator[Step]:
    """The steps that wrote anything behind the first ``chars`` characters."""
    end = 0
    for step in steps:
        end += len(step.text)
        if end > chars:
            yield step
