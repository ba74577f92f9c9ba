"""How many requests in flight and per second a server takes, found by AIMD from its throttle replies.

Until the first throttle only the ceilings apply. Throttle replies to requests of one round trip count as one throttle.
It pauses the server for Retry-After, or else for a short time that doubles while nothing is taken. The rate falls to
the one measured between throttles (requests taken / time), at most by 30 %; at a new peak of requests in flight, the
concurrency falls to those that were taken.

Then both rise with the requests taken, slowly first and faster later, as in CUBIC (RFC 9438); until the rate has been
measured, it doubles with every burst taken (slow start). Requests leave at even distances; what a pause held up is
caught up at twice the rate, as far as the server takes bursts.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

_MIN_REQUESTS = 8  # enough to measure a rate by


@dataclass(frozen=True, slots=True)
class Pauses:
    """Seconds: the ``first`` pause after a failure, the ``longest``, and the ``patience`` while no server answers."""

    first: float = 0.5
    longest: float = 60.0
    patience: float = 600.0


@dataclass(slots=True)
class RateControl:
    """What one server takes; times are seconds of any clock that only goes forward."""

    max_concurrency: int
    max_rate: float
    pauses: Pauses
    paused_until: float = 0.0
    settled: bool = False  # the rate is measured
    _throttles: int = 0  # since then, at most 30
    _concurrency: float = math.inf  # at the last throttle
    _rate: float = math.inf  # at the last throttle
    _burst: float = 1.0
    _pause: float = 0.0
    _probe_every: float = 1.0  # requests at full concurrency before one more is tried
    _due: float = -math.inf  # when the next request is due at an even pace
    _last_sent: float = -math.inf
    _sent: int = 0  # this and the next three: since the last throttle
    _sent_paced: int = 0  # when the pace allowed it, so that a higher rate would have been used
    _sent_full: int = 0  # at full concurrency
    _peak: int = 0  # most requests in flight when one was answered
    _began: float = -math.inf  # this and the following: of the last throttle
    _at_peak: bool = False
    _probing: bool = False  # just above the concurrency of the throttle before it
    _rate_before: float = math.inf
    _rate_start: float = math.inf
    _was_settled: bool = False
    _taken: int = 0  # of the requests sent between the throttle before it and itself
    _barren: int = 0  # throttles in a row before it that found nothing taken
    _window_start: float = -math.inf  # of the measurement of the rate
    _window_taken: int = 0

    @property
    def concurrency(self) -> int:
        """Requests that may be in flight."""
        if self._concurrency == math.inf:
            return self.max_concurrency
        rises = (self._sent_full + 1) / self._probe_every
        return min(self.max_concurrency, int(self._concurrency + rises + 0.05 * self._concurrency * rises**3))

    @property
    def rate(self) -> float:
        """Requests per second; infinite before the first throttle."""
        if self.settled:
            growth = 0.95 + 0.05 * (self._sent_paced / self._period()) ** 3
        else:
            growth = 2 ** min(self._sent_paced / max(_MIN_REQUESTS, self._burst), 60)
        return min(self.max_rate, self._rate * growth)

    @property
    def steady(self) -> bool:
        """Whether the rate is known and has held for a while."""
        return self.settled and 2 * self._sent_paced > self._period()

    def ready_at(self) -> float:
        """The earliest moment for the next request."""
        gap = max(0.5 / self.rate, 1 / self.max_rate)
        return max(self.paused_until, self._due, self._last_sent + gap)

    def sent(self, now: float, in_flight: int) -> None:
        """A request is sent; here and below ``in_flight`` includes it."""
        rate = self.rate
        self._sent_paced += now < self.ready_at() + max(1 / rate, 0.005)
        self._due = max(self._due, now - (self._burst - 1) / rate) + 1 / rate
        self._last_sent = now
        self._sent_full += in_flight >= self.concurrency
        self._sent += 1

    def answered(self, in_flight: int) -> None:
        """A request was answered."""
        self._peak = max(self._peak, in_flight)
        self._barren = 0

    def throttled(self, sent_at: float, now: float, retry_after: float, in_flight: int) -> None:
        """A request sent at ``sent_at`` was throttled; ``retry_after`` is 0 if the server names no time."""
        if sent_at > self._began:
            self._begin_throttle(now, retry_after, in_flight)
        self.paused_until = max(self.paused_until, now + retry_after * random.uniform(1.0, 1.1))
        self._taken -= 1
        self._window_taken -= 1
        if self._at_peak:
            self._concurrency = max(1, self._concurrency - 1)
        self._lower_rate()

    def _begin_throttle(self, now: float, retry_after: float, in_flight: int) -> None:
        first = self._began == -math.inf
        self._barren = 0 if first or self._taken > 0 else self._barren + 1
        self._at_peak = in_flight > self._peak
        self._probing = self._at_peak and in_flight <= self._concurrency + 2 and not first
        if self._probing:
            self._probe_every = min(4 * self._probe_every, 1024)
        self._concurrency = in_flight if self._at_peak else self.concurrency
        self._throttles = min(30, self._throttles + self.settled)
        if self.settled and self._due < now - 2 / self.rate:  # while catching up
            self._burst = max(1, self._burst / 2)
        if self._window_start == -math.inf or self._window_taken >= _MIN_REQUESTS:
            self._window_start, self._window_taken = self._began, 0
        own_pause = self.pauses.first * (
            0.1 if self._probing else min(1, max(0.1, 4 / self.rate)) if self.settled else 1
        )
        self._pause = retry_after or min(own_pause * 2**self._barren, self.pauses.longest)
        self._rate_before, self._rate_start, self._was_settled = self.rate, self._rate, self.settled
        self._window_taken += self._sent
        self._taken = self._sent
        self._sent = self._sent_paced = self._sent_full = self._peak = 0
        self._began = self._due = now
        self.paused_until = now + self._pause * random.uniform(1.0, 1.1 if retry_after else 1.5)

    def _lower_rate(self) -> None:
        if self._window_start == -math.inf:  # the first throttle: only the burst is known
            self._burst = min(self.max_concurrency, max(1, self._taken))
            self._rate = self._burst / self._pause
        elif self._probing:
            self._rate = min(0.9 * self._rate_before, 10 * self.max_concurrency)
        elif self._window_taken >= _MIN_REQUESTS:
            measured = self._window_taken / max(self._began - self._window_start, 1e-3)
            if self._was_settled:
                self._rate = max(measured, 0.7 * self._rate_before)
            else:  # what the rate had grown to with the last request that was taken, those of the burst left out
                reached = self._rate_start * 2 ** (
                    max(0.0, self._taken - self._burst) / max(_MIN_REQUESTS, self._burst)
                )
                self._rate = max(measured, 0.5 * min(reached, self._rate_before))
            self.settled |= not self._at_peak

    def _period(self) -> float:
        """Requests from a throttle until the rate is back: few at first, after some throttles a `_long_period`."""
        return min(_MIN_REQUESTS * 2.0**self._throttles, self._long_period())

    def _long_period(self) -> float:
        """The requests of 20 pauses, so that a pause costs little."""
        return max(_MIN_REQUESTS, 20 * self._pause * self._rate)
