"""What servers were asked for, and what engines warned of, over all of a run's starts: added up from its log."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from metareward.rundir import RunDir

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
