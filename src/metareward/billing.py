"""What servers are asked for, and what engines warn of, is told in the run's log (`metareward.spending` adds it up).

An engine's counts are told when it is closed, so a run that is taken up again adds to what it had before. Those of an
engine that was killed are lost.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from metareward.engines.endpoint import EndpointEngine
from metareward.engines.engine import Engine
from metareward.rundir import RunDir
from metareward.runlog import tell
from metareward.spending import USED, WARNED
from metareward.types import Completion, Messages, ModelRole, Sampling


class Billed:
    """An endpoint engine whose counts go into the log of ``run`` when it is closed."""

    def __init__(self, run: RunDir, who: str, engine: EndpointEngine) -> None:
        self._run = run
        self._who = who
        self._engine = engine

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        """The engine's."""
        return await self._engine.complete(messages, sampling, n, role)

    async def aclose(self) -> None:
        """Close the engine, then tell."""
        await self._engine.aclose()
        usage = self._engine.usage
        for place, server in enumerate(usage.servers):
            tell(
                self._run,
                USED,
                who=self._who,
                server=server.url,
                requests=server.requests,
                failed=server.failed,
                cached=0 if place else usage.cache_hits,  # the servers share one cache
                prompt_tokens=server.prompt_tokens,
                completion_tokens=server.completion_tokens,
                filtered=server.filtered,
            )


def billed(run: RunDir, who: str, engine: Engine) -> Engine:
    """``engine``, with its counts told if it asks servers of the user's."""
    return Billed(run, who, engine) if isinstance(engine, EndpointEngine) else engine


@contextmanager
def warnings_told(run: RunDir) -> Iterator[None]:
    """What the engines warn of goes into the log of ``run``, and so to standard error, as long as this lasts."""
    logger, teller = logging.getLogger("metareward.engines"), _Teller(run)
    logger.addHandler(teller)
    try:
        yield
    finally:
        logger.removeHandler(teller)


class _Teller(logging.Handler):
    def __init__(self, run: RunDir) -> None:
        super().__init__(logging.WARNING)
        self._run = run

    def emit(self, record: logging.LogRecord) -> None:
        tell(self._run, WARNED, text=record.getMessage())
