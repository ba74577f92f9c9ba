"""What servers are asked for, and what engines warn of, is written to the run's log.

An engine's counts are told when it is closed, so a run that is taken up again adds to what it had before. Those of an
engine that was killed are lost.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from metareward.engines.base import Engine
from metareward.engines.endpoint import EndpointEngine
from metareward.storage.run_dir import RunDir
from metareward.storage.run_log import tell
from metareward.types import Completion, Messages, ModelRole, Sampling

# --- What servers were asked for, and what engines warned of, over all of a run's starts: added up from its log.


USED, WARNED = "server used", "warning"


@dataclass(frozen=True, slots=True)
class Spending:
    """What ``who`` (a model of the run, or a judge) had from ``server``.

    ``failed`` are tries of requests, ``cached`` requests that needed no server, ``filtered`` choices.
    """

    who: str
    server: str
    requests: int
    failed: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    filtered: int


_COUNTS = ("requests", "failed", "cached", "prompt_tokens", "completion_tokens", "filtered")


def spent(run: RunDir) -> tuple[Spending, ...]:
    """What the log says, by who asked and whom, in the order of first use."""
    totals: dict[tuple[str, str], list[int]] = {}
    for entry in _entries(run, USED):
        key = (str(entry.get("who")), str(entry.get("server")))
        counts = (entry.get(name) for name in _COUNTS)
        new = [count if isinstance(count, int) else 0 for count in counts]
        totals[key] = [old + more for old, more in zip(totals.get(key, [0] * len(_COUNTS)), new, strict=True)]
    return tuple(Spending(*key, *sums) for key, sums in totals.items())


def warnings(run: RunDir) -> tuple[str, ...]:
    """The different warnings in the log, in order."""
    return tuple(dict.fromkeys(str(entry.get("text")) for entry in _entries(run, WARNED)))


def _entries(run: RunDir, event: str) -> Iterator[Mapping[str, Any]]:
    """The log's entries of one kind; lines that can't be read are none."""
    if not run.log.is_file():
        return
    with run.log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and entry.get("event") == event:
                yield entry


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
