"""`Engine`: the interface to any model. An engine serves one model in all three roles, or one model for each role."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Protocol

from metareward.types import Completion, Messages, ModelRole, Sampling


class EngineError(Exception):
    """The engine can't serve this request; the text names the model or server, the request and the fix."""


class Engine(Protocol):
    """Many ``complete`` calls may run concurrently; the engine batches them."""

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        """``n`` completions of one conversation; completion ``i`` depends on ``(sampling.seed, i)`` alone.

        ``role``: what the model is used as; engines that serve one model ignore it. Raises `EngineError` when the
        model can't answer, for example when the prompt doesn't fit its context.
        """
        ...

    async def aclose(self) -> None:
        """Release memory, processes and connections."""
        ...


class RoleEngines:
    """Sends each request to the engine of its role: for example an external judge beside a local actor."""

    def __init__(self, engines: Mapping[ModelRole, Engine]) -> None:
        self._engines = dict(engines)

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        """The completions of the role's engine."""
        return await self._engines[role].complete(messages, sampling, n, role)

    async def aclose(self) -> None:
        """Close each distinct engine once, all of them even if closing one fails."""
        async with contextlib.AsyncExitStack() as stack:
            for engine in {id(engine): engine for engine in self._engines.values()}.values():
                stack.push_async_callback(engine.aclose)
