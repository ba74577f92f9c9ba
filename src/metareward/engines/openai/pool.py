"""Several servers as one: each request goes to the least busy healthy server, as fast as that server takes requests.

A server is down when it can't be reached or fails three times in a row. It then gets nothing for a pause that doubles
each time, and after it one probe request. A server that throttles is not down: `RateControl` finds what it takes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from metareward.engines.base import EngineError
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
_MIN_PERIOD = 8  # requests: enough to measure a rate by


@dataclass(frozen=True, slots=True)
class Pauses:
    """Seconds: the ``first`` pause after a failure, the ``longest``, and the ``patience`` while no server answers."""

    first: float = 0.5
    longest: float = 60.0
    patience: float = 600.0


@dataclass(slots=True)
class RateControl:
    """Requests in flight and per second that one server takes, by additive increase and multiplicative decrease.

    Only the ceilings apply until the server throttles. The throttle replies of one round trip count as one throttle. It
    pauses the server for Retry-After, or a short time that doubles while nothing is taken. With more requests in flight
    than when any was answered, ``concurrency`` falls to those taken; else ``rate`` falls to the measured one, at most
    by 30 %. Both rise with the requests sent at the limit, slowly first and faster later, as in CUBIC (RFC 9438).
    Requests leave at even distances; what a pause held up follows at twice the rate. Times are seconds of any clock.
    """

    max_concurrency: int
    max_rate: float
    pauses: Pauses
    paused_until: float = 0.0
    _throttles: int = 0
    _limit: float = math.inf  # requests in flight, after the last throttle
    _rate: float = math.inf  # requests per second, after the last throttle
    _rate_before: float = math.inf
    _at_peak: bool = False  # the last throttle came with more requests in flight than when any was answered
    _began: float = -math.inf  # moment of the last throttle
    _seconds: float = 0.0  # between the throttle before it and itself
    _taken: int = 0  # requests in these seconds
    _pause: float = math.inf
    _sent: int = 0  # since the last throttle, as the next two
    _sent_at_limit: int = 0
    _peak: int = 0  # most requests in flight when one was answered
    _due: float = -math.inf  # when the next request is due at an even pace
    _last_sent: float = -math.inf

    @property
    def concurrency(self) -> int:
        """Requests that may be in flight."""
        return int(min(self.max_concurrency, self._limit * (1 + 0.1 * self._growth())))

    @property
    def rate(self) -> float:
        """Requests per second; infinite before the first throttle."""
        return min(self.max_rate, self._rate * (0.95 + 0.05 * self._growth()))

    def ready_at(self) -> float:
        """The earliest moment for the next request."""
        return max(self.paused_until, self._due, self._last_sent + max(0.5 / self.rate, 1 / self.max_rate))

    def sent(self, now: float, in_flight: int) -> None:
        """A request is sent; here and below ``in_flight`` includes it."""
        rate = self.rate
        paced = now < self.ready_at() + max(1 / rate, 0.005)
        self._sent_at_limit += paced or in_flight >= self.concurrency
        self._sent += 1
        self._due = max(self._due, now - self.max_concurrency / rate) + 1 / rate
        self._last_sent = now

    def answered(self, in_flight: int) -> None:
        """A request was answered."""
        self._peak = max(self._peak, in_flight)

    def throttled(self, sent_at: float, now: float, retry_after: float, in_flight: int) -> None:
        """A request sent at ``sent_at`` was throttled; ``retry_after`` is 0 if the server names no time."""
        if sent_at > self._began:
            self._rate_before, self._limit, self._at_peak = self.rate, self.concurrency, in_flight > self._peak
            pause = self.pauses.first
            if self._throttles:
                nothing_taken = self._sent == 1
                pause = 2 * self._pause if nothing_taken else pause * min(1.0, max(0.1, 4 / self._rate_before))
            self._pause = retry_after or min(pause, self.pauses.longest) * random.uniform(1.0, 1.5)
            self._seconds = now - self._began if self._throttles else self._pause
            self._throttles += 1
            self._taken, self._sent, self._sent_at_limit, self._peak = self._sent, 0, 0, 0
            self._began = self._due = now
            self.paused_until = max(self.paused_until, now + self._pause)
        self.paused_until = max(self.paused_until, now + retry_after * random.uniform(1.0, 1.1))
        self._taken -= 1
        if self._at_peak:
            self._limit = max(1.0, min(self._limit, in_flight - 1))
        else:
            measured = max(1, self._taken) / max(self._seconds, 1e-3)
            lowest = 0.7 * self._rate_before if self._rate_before < math.inf else 0.0
            self._rate = min(self._rate_before, max(measured, lowest))

    def _growth(self) -> float:
        """How far the limits have risen again: 1 is where the server throttled. A costly pause makes them rise late."""
        period = min(_MIN_PERIOD * 2.0 ** min(self._throttles, 30), 10 * self._pause * self._rate)
        return (self._sent_at_limit / max(_MIN_PERIOD, period)) ** 3


@dataclass(slots=True)
class ServerUsage:
    """What one server was sent and gave. ``requests``: answered or failed ones, not those that it throttled.

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


class Server:
    """A server's health, load and counts. Times are seconds of the event loop's clock."""

    def __init__(self, client: Client, control: RateControl, pauses: Pauses) -> None:
        self.client = client
        self.control = control
        self.usage = ServerUsage(client.url)
        self.in_flight = 0
        self.probes = 0  # requests sent while it was down; those sent before may hang, and are none
        self.last_error = ""
        self._down_until = 0.0
        self._pauses = pauses
        self._failures = 0  # in a row

    @property
    def down(self) -> bool:
        """Whether it is set aside."""
        return self._failures >= _FAILURES_IN_A_ROW

    @property
    def resting_until(self) -> float:
        """Until then it gets nothing, because it is down or asked for it."""
        return max(self._down_until, self.control.paused_until)

    def ready_at(self) -> float:
        """When the next request may be sent, if one more may be in flight."""
        return max(self._down_until, self.control.ready_at())

    def free(self, now: float) -> bool:
        """Whether a request may be sent now; a server that is down gets one at a time."""
        room = self.probes < 1 if self.down else self.in_flight < self.control.concurrency
        return room and now >= self.ready_at()

    def out(self, now: float) -> bool:
        """Whether it is of no use for now, rather than busy."""
        return self.down or now < self.resting_until

    async def exchange(self, request: ChatRequest) -> Reply:
        """Send the request and keep account of what becomes of it."""
        usage, sent_at, probe = self.usage, _now(), self.down
        self.in_flight += 1
        self.probes += probe
        self.control.sent(sent_at, self.in_flight)
        try:
            reply = await self.client.complete(request)
        except UnreachableError as error:
            self.fall(error)
            raise
        except ThrottledError as error:
            self.last_error = str(error)
            self._is_up()
            self.control.throttled(sent_at, _now(), error.retry_after, self.in_flight)
            usage.throttled += 1
            if usage.throttled.bit_count() == 1:  # the 1st, 2nd, 4th, 8th...
                self.log_limits(f"{error}; ")
            raise
        except TransientError as error:
            _LOG.info("%s", error)
            usage.requests += 1
            usage.failed += 1
            self.last_error = str(error)
            if self._failures + 1 < _FAILURES_IN_A_ROW:
                self._failures += 1
            else:
                self.fall(error)
            raise
        except EngineError:
            self.answered()
            raise
        else:
            self.answered()
            usage.prompt_tokens += reply.prompt_tokens
            usage.completion_tokens += reply.completion_tokens
            if reply.filtered and not usage.filtered:
                _LOG.warning("%s filters what the model writes; a filtered text counts as cut off", usage.url)
            usage.filtered += reply.filtered
            if reply.offered < request.n:
                self.send_singly(f"gave {reply.offered} of {request.n} completions")
            return reply
        finally:
            self.in_flight -= 1
            self.probes -= probe

    def fall(self, error: TransientError) -> None:
        """Set it aside. Requests that were in flight together fail together, and count once."""
        now, self.last_error = _now(), str(error)
        if now >= self._down_until:
            if not self.down:
                _LOG.warning("%s; set aside, and tried again from time to time", error)
            self._failures = max(self._failures + 1, _FAILURES_IN_A_ROW)
            doublings = min(self._failures - _FAILURES_IN_A_ROW, 30)
            self._down_until = now + min(self._pauses.first * 2**doublings, self._pauses.longest)

    def answered(self) -> None:
        """A reply or refusal came: it is up."""
        self.usage.requests += 1
        self.control.answered(self.in_flight)
        self._is_up()

    def send_singly(self, why: str) -> None:
        """From now on it gets one request for each completion."""
        if self.usage.takes_n:
            self.usage.takes_n = False
            _LOG.warning("%s %s: from now on one request is sent for each completion", self.client.url, why)

    def log_limits(self, prefix: str) -> None:
        """Log what the server takes, if it ever throttled."""
        if self.usage.throttled:
            rate, places = min(self.control.rate, 1000.0), self.control.concurrency
            found = f"takes at most about {rate:.3g} requests/s, {places} in flight"
            _LOG.info("%s%s %s; it throttled %d", prefix, self.client.url, found, self.usage.throttled)

    def _is_up(self) -> None:
        if self.down:
            _LOG.info("%s is back", self.client.url)
        self._failures = 0


class Pool:
    """``servers``, and the requests that wait for one of them, first come, first served."""

    def __init__(self, servers: Sequence[Server], patience: float) -> None:
        self._servers = servers
        self._patience = patience
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._out_since: float | None = None
        self._closed = False

    async def send(self, request: ChatRequest, avoid: list[str]) -> Reply | None:
        """The reply of a server, preferably of one whose URL isn't in ``avoid``.

        None if the server gives one choice a request and more are asked for: nothing was sent. A request that is
        throttled, or didn't reach its server, waits for the next free one. Raises `TransientError` after adding the
        server to ``avoid``, and `EngineError` when the request is refused or no server was of use for ``patience``.
        """
        since = _now()
        while True:
            server = await self._choose(request, avoid, since)
            if request.n > 1 and not server.usage.takes_n:
                return None
            try:
                return await server.exchange(request)
            except (ThrottledError, UnreachableError):
                continue
            except TransientError:
                avoid.append(server.client.url)
                raise
            finally:
                if not server.out(_now()):
                    self._out_since = None
                self._changed.set()

    def server(self, url: str) -> Server:
        """The server with this URL."""
        return next(server for server in self._servers if server.client.url == url)

    def usage(self) -> tuple[ServerUsage, ...]:
        """The counts so far, one for each server."""
        return tuple(replace(server.usage) for server in self._servers)

    async def aclose(self) -> None:
        """Close all connections; requests in flight and waiting ones fail with `EngineError`."""
        if not self._closed:
            for server in self._servers:
                server.log_limits("closed: ")
        self._closed = True
        self._changed.set()
        await asyncio.gather(*(server.client.aclose() for server in self._servers))

    async def _choose(self, request: ChatRequest, avoid: list[str], since: float) -> Server:
        """The free server with the fewest requests in flight, as soon as there is one; to be used at once."""
        async with self._turn:
            while not self._closed:
                now = _now()  # one for all looks: a moment that passes between them would never be waited for
                if free := [server for server in self._servers if server.free(now)]:
                    return min(free, key=lambda server: (server.client.url in avoid, server.in_flight))
                moments = [server.ready_at() for server in self._servers if server.ready_at() > now]
                if all(server.out(now) for server in self._servers):
                    self._out_since = self._out_since or now
                    until = max(since, self._out_since) + self._patience
                    if now >= until or all(server.resting_until > until for server in self._servers):
                        causes = "; ".join(server.last_error for server in self._servers)
                        raise EngineError(f"no server is left for {request.name}: {causes}")
                    moments.append(until)
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(min(moments, default=None)):
                        await self._changed.wait()
            raise EngineError(f"the engine was closed before {request.name} was finished")


def _now() -> float:
    return asyncio.get_running_loop().time()
