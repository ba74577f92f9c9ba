"""An engine that is opened when it is first asked: work that finds everything done already opens nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from metareward.engines.engine import Engine
from metareward.types import Completion, Messages, ModelRole, Sampling


class LaterEngine:
    """Stands for the engine that ``opening`` opens, once, however many ask at the same time."""

    def __init__(self, opening: Callable[[], Awaitable[Engine]]) -> None:
        self._opening = opening
        self._engine: Engine | None = None
        self._turn = asyncio.Lock()

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        """What the engine answers. Raises what opening it raises."""
        async with self._turn:
            if self._engine is None:
                self._engine = await self._opening()
        return await self._engine.complete(messages, sampling, n, role)

    async def aclose(self) -> None:
        """Close it if it was opened."""
        if self._engine is not None:
            await self._engine.aclose()
            self._engine = None
