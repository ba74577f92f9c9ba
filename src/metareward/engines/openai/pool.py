"""Several servers as one: each request goes to the least busy healthy server, as fast as that server takes requests.

A server is down when it can't be reached or fails three times in a row. It then gets nothing for a pause that doubles
each time, and after it one probe request. A server that throttles is not down: `RateControl` finds its limits.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from collections import deque
from dataclasses import dataclass, field, replace

from metareward.engines.engine import EngineError
from metareward.engines.openai.client import (
    ChatRequest,
    Client,
    Reply,
    ThrottledError,
    TransientError,
    UnreachableError,
)

_LOG = logging.getLogger(__name__)
_FAILURES_IN_A_ROW = 3
_MIN_REQUESTS = 8  # that a measurement of a rate, and a window of successes, take at least


@dataclass(frozen=True, slots=True)
class Pauses:
    """Seconds: the ``first`` pause after a failure, the ``longest``, and the ``patience`` while no server answers."""

    first: float = 0.5
    longest: float = 60.0
    patience: float = 600.0


@dataclass(slots=True)
class ServerUsage:
    """Counts of one server: requests it answered or failed, those that failed, those it throttled, tokens.

    ``filtered``: choices cut by a content filter. ``takes_n``: false when it gives one choice whatever ``n`` says.
    """

    url: str
    requests: int = 0
    failed: int = 0
    throttled: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    filtered: int = 0
    takes_n: bool = True


@dataclass(slots=True)
class RateControl:
    """How many requests at once and per second one server takes, found by AIMD from its throttle replies.

    Until the first throttle only ``max_concurrency`` and ``max_rate`` (requests/s) bound it. Throttle replies to
    requests of the same round trip count as one throttle. Each throttle

    - pauses the server for Retry-After, or else for a short time that doubles while it takes nothing at all;
    - lowers the concurrency to the requests in flight that the server did take, if it came at a new peak of them;
    - or else lowers the rate to the one measured between throttles (requests taken / time).

    Requests that the server takes then raise both, slowly at first and faster later, as CUBIC does (RFC 9438); until a
    rate has been measured it doubles with every `_MIN_REQUESTS` (slow start). Requests leave at even distances; what
    was missed during a pause, up to the burst that the server took at first, is caught up at twice the rate.
    """

    max_concurrency: int
    max_rate: float
    pauses: Pauses
    throttles: int = 0
    paused_until: float = 0.0
    measured: bool = False
    _concurrency: int = 0
    _rate: float = math.inf
    _burst: float = 0.0
    _pause: float = 0.0
    _rejections: int = 0  # throttles in a row in which nothing was taken
    _began: float = -math.inf  # the last throttle
    _measured_from: float = -math.inf
    _previous_rate: float = math.inf
    _recent: float = math.inf
    _taken: int = 0  # requests taken between _measured_from and the last throttle
    _interval: int = 0
    _sent: int = 0  # since the last throttle
    _sent_full: int = 0  # of these, while as many were in flight as allowed
    _peak: int = 0  # most in flight since the last throttle
    _binding: bool = False
    _probe_every: float = 1.0
    _due: float = -math.inf  # when the next request is due at an even pace
    _times: deque[float] = field(default_factory=lambda: deque([-math.inf], maxlen=2 * _MIN_REQUESTS))

    @property
    def concurrency(self) -> int:
        """Requests that may be in flight."""
        if not self.throttles:
            return self.max_concurrency
        windows = (self._sent_full + 1) / min(self._probe_every, self._window())
        return min(self.max_concurrency, self._concurrency + int(windows + 0.05 * self._concurrency * windows**3))

    @property
    def rate(self) -> float:
        """Requests per second."""
        if self.measured:
            growth = 0.95 + 0.05 * (self._sent / self._window()) ** 3
        else:
            growth = 2 ** min(self._sent / _MIN_REQUESTS, 60)
        return min(self.max_rate, self._rate * growth)

    def ready_at(self) -> float:
        """The earliest moment for the next request."""
        gap = max(0.5 / self.rate, 1 / self.max_rate)
        return max(self.paused_until, self._due, self._times[-1] + gap)

    def sent(self, now: float, in_flight: int) -> None:
        """A request is sent; ``in_flight`` includes it."""
        rate = self.rate
        self._sent_full += in_flight >= self.concurrency
        self._sent += 1
        self._times.append(now)
        self._due = max(self._due, now - (self._burst - 1) / rate) + 1 / rate

    def served(self, in_flight: int) -> None:
        """A request was answered; ``in_flight`` includes it."""
        self._rejections = 0
        self._peak = max(self._peak, in_flight)

    def throttled(self, sent_at: float, now: float, retry_after: float, in_flight: int) -> None:
        """A request sent at ``sent_at`` was throttled; ``in_flight`` includes it."""
        if sent_at > self._began:
            self._begin(now, retry_after, in_flight)
        self.throttles += 1
        self.paused_until = max(self.paused_until, now + retry_after * random.uniform(1.0, 1.1))
        self._taken -= 1
        self._interval -= 1
        if self._binding:
            self._concurrency = max(1, self._concurrency - 1)
        self._set_rate()

    def _begin(self, now: float, retry_after: float, in_flight: int) -> None:
        """A throttle begins."""
        self._rejections = self._rejections + 1 if self._interval <= 0 and self.throttles else 0
        self._binding = in_flight > self._peak
        recent = self._sent / max(now - self.paused_until, 1e-3)
        self._previous_rate = self.rate
        self._recent = recent
        if self._binding and self.throttles and in_flight >= self.concurrency:
            self._probe_every *= 4
        self._concurrency = in_flight if self._binding else self.concurrency
        if self._measured_from == -math.inf or self._taken >= _MIN_REQUESTS:
            self._measured_from, self._taken = self._began, 0
        catching_up = self._due < now - 2 / self._previous_rate
        if self.measured and catching_up:
            self._burst = max(1, self._burst / 2)
        self._taken += self._sent
        self._interval = self._sent
        self._peak = self._sent = self._sent_full = 0
        self._began = self._due = now
        own = min(self.pauses.first, 2 / self._previous_rate if self.measured else math.inf)
        self._pause = retry_after or min(own * 2**self._rejections, self.pauses.longest)
        self.paused_until = now + self._pause * random.uniform(1.0, 1.1 if retry_after else 1.5)

    def _set_rate(self) -> None:
        if self._measured_from == -math.inf:  # the first throttle: nothing is known but the burst
            self._burst = max(1, self._taken)
            self._rate = self._burst / self._pause
        elif self._binding:
            self._rate = min(self._previous_rate, 2 * self._recent)
        elif self._taken >= _MIN_REQUESTS:
            decrease = 0.7 if self.measured else 0.5
            measured = self._taken / max(self._began - self._measured_from, 1e-3)
            self._rate = max(measured, decrease * min(self._previous_rate, self._recent))
            self.measured = True

    def _window(self) -> float:
        """Requests that take long compared to a pause."""
        return max(_MIN_REQUESTS, 20 * self._pause * self._rate)
