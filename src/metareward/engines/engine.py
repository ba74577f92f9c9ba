"""The one door to any model. All three roles are the same model, so one engine serves them all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from metareward.types import Completion, Messages, Sampling


class EngineError(Exception):
    """The engine can't serve this request; the text names the model or server, the request and the fix."""


class Engine(Protocol):
    """Many ``complete`` calls may be under way at once; the engine gathers them into batches."""

    async def complete(self, messages: Messages, sampling: Sampling, n: int) -> Sequence[Completion]:
        """``n`` completions of one conversation; completion ``i`` depends on ``(sampling.seed, i)`` alone.

        Raises `EngineError` when the model can't answer, for one when the prompt doesn't fit its context.
        """
        ...

    async def aclose(self) -> None:
        """Give back memory, processes and connections."""
        ...
