"""Request and token counts of servers, and the warnings of engines, in the run's log.

An engine's counts are logged when it is closed, and a resumed run adds to the counts of its earlier starts. The counts
of an engine that was killed are lost.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from metareward.engines.base import Engine
from metareward.engines.openai.engine import OpenAIEngine
from metareward.storage.run_dir import RunDir
from metareward.storage.run_log import log_event
from metareward.types import Completion, Messages, ModelRole, Sampling

USED, WARNED, BENCHMARK = "server used", "warning", "benchmark"


@dataclass(frozen=True, slots=True)
class ServerUsageTotal:
    """The requests of ``client`` (a model of the run, or a judge) to ``server`` over all starts of the run.

    ``failed`` counts attempts, ``cached`` requests answered from the cache, ``filtered`` choices.
    """

    client: str
    server: str
    requests: int
    failed: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    filtered: int


_COUNTS = ("requests", "failed", "cached", "prompt_tokens", "completion_tokens", "filtered")


def read_usage(run: RunDir) -> tuple[ServerUsageTotal, ...]:
    """The totals in the log by client and server, in the order of first use."""
    totals: dict[tuple[str, str], Counter[str]] = {}
    for entry in _entries(run, USED):
        counts = totals.setdefault((str(entry.get("who")), str(entry.get("server"))), Counter())
        counts.update({name: entry[name] for name in _COUNTS if isinstance(entry.get(name), int)})
    return tuple(ServerUsageTotal(*key, *(counts[name] for name in _COUNTS)) for key, counts in totals.items())


def read_warnings(run: RunDir) -> tuple[str, ...]:
    """The distinct warnings in the log, in order."""
    return tuple(dict.fromkeys(str(entry.get("text")) for entry in _entries(run, WARNED)))


def benchmark_seconds(run: RunDir) -> dict[str, float]:
    """The seconds that the results of each benchmark took, by its name; those before a kill aren't known."""
    seconds: dict[str, float] = {}
    for entry in _entries(run, BENCHMARK):
        name, spent = str(entry.get("name")), entry.get("seconds")
        seconds[name] = seconds.get(name, 0.0) + (spent if isinstance(spent, int | float) else 0.0)
    return seconds


def _entries(run: RunDir, event: str) -> Iterator[Mapping[str, Any]]:
    """The log's entries with this event; lines that are not JSON are skipped."""
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


@dataclass(frozen=True, slots=True)
class UsageLoggingEngine:
    """An OpenAI engine whose counts are written to the log of ``run`` when it is closed."""

    run: RunDir
    client: str
    engine: OpenAIEngine

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        """The completions of the wrapped engine."""
        return await self.engine.complete(messages, sampling, n, role)

    async def aclose(self) -> None:
        """Close the engine, then log its counts."""
        await self.engine.aclose()
        usage = self.engine.usage
        for place, server in enumerate(usage.servers):
            log_event(
                self.run,
                USED,
                who=self.client,
                server=server.url,
                requests=server.requests,
                failed=server.failed,
                cached=0 if place else usage.cache_hits,  # the servers share one cache
                prompt_tokens=server.prompt_tokens,
                completion_tokens=server.completion_tokens,
                filtered=server.filtered,
            )


def log_usage(run: RunDir, client: str, engine: Engine) -> Engine:
    """``engine``, with its counts logged if it sends requests to servers."""
    return UsageLoggingEngine(run, client, engine) if isinstance(engine, OpenAIEngine) else engine


@contextmanager
def log_warnings(run: RunDir) -> Iterator[None]:
    """Write all warnings of the package to the log of ``run`` and to standard error inside this context."""
    logger, handler = logging.getLogger("metareward"), _RunLogHandler(run)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _RunLogHandler(logging.Handler):
    def __init__(self, run: RunDir) -> None:
        super().__init__(logging.WARNING)
        self._run = run

    def emit(self, record: logging.LogRecord) -> None:
        log_event(self._run, WARNED, text=record.getMessage())
