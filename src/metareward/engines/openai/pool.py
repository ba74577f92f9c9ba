"""Several servers as one: each request goes to the least busy healthy server, as fast as that server takes requests.

A server is down when it can't be reached or fails three times in a row. It then gets nothing for a pause that doubles
each time, and after it one probe request. A server that throttles is not down: `RateControl` finds what it takes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress
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
from metareward.engines.openai.rate_control import Pauses, RateControl

_LOG = logging.getLogger(__name__)
_FAILURES_IN_A_ROW = 3


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
        self.probes = 0
        self.down = False
        self.last_error = ""
        self._down_until = 0.0
        self._pauses = pauses
        self._failures = 0  # in a row
        self._falls = 0  # in a row
        self._logged_limits = False

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

    @contextmanager
    def occupied(self) -> Iterator[None]:
        """While a request is in flight. Those sent before the server went down may hang, and are no probes."""
        probe = self.down
        self.in_flight += 1
        self.probes += probe
        try:
            yield
        finally:
            self.in_flight -= 1
            self.probes -= probe

    async def exchange(self, request: ChatRequest) -> Reply:
        """Send the request and keep account of what becomes of it."""
        sent_at = _now()
        self.control.sent(sent_at, self.in_flight)
        try:
            reply = await self.client.complete(request)
        except UnreachableError as error:
            self.fall(error)
            raise
        except ThrottledError as error:
            self._throttled(error, sent_at)
            raise
        except TransientError as error:
            self._failed(error)
            raise
        except EngineError:
            self.answered()
            raise
        self.answered()
        self._count(request, reply)
        return reply

    def fall(self, error: TransientError) -> None:
        """Set it aside. Requests that were in flight together fail together, and count once."""
        now, self.last_error = _now(), str(error)
        if now < self._down_until:
            return
        if not self.down:
            _LOG.warning("%s; set aside, and tried again from time to time", error)
        self.down = True
        self._down_until = now + min(self._pauses.first * 2**self._falls, self._pauses.longest)
        self._falls = min(self._falls + 1, 30)

    def send_singly(self, why: str) -> None:
        """From now on it gets one request for each completion."""
        if self.usage.takes_n:
            self.usage.takes_n = False
            _LOG.warning("%s %s: from now on one request is sent for each completion", self.client.url, why)

    def log_limits(self, prefix: str) -> None:
        """Log what the server takes, if it ever throttled."""
        if self.usage.throttled:
            rate = f"{self.control.rate:.3g}" if self.control.rate < 1000 else "over 1000"
            found = f"{rate} requests/s, {self.control.concurrency} in flight"
            _LOG.info("%s%s takes about %s; it throttled %d", prefix, self.client.url, found, self.usage.throttled)

    def _throttled(self, error: ThrottledError, sent_at: float) -> None:
        if not self.usage.throttled:
            _LOG.info("%s; sending more slowly", error)
        self.usage.throttled += 1
        self.last_error = str(error)
        self._healthy()
        self.control.throttled(sent_at, _now(), error.retry_after, self.in_flight)

    def _failed(self, error: TransientError) -> None:
        _LOG.info("%s", error)
        self.usage.requests += 1
        self.usage.failed += 1
        self.last_error = str(error)
        self._failures += 1
        if self.down or self._failures >= _FAILURES_IN_A_ROW:
            self.fall(error)

    def answered(self) -> None:
        """A reply or refusal came: it is up."""
        self.usage.requests += 1
        self.control.answered(self.in_flight)
        if self.control.steady and not self._logged_limits:
            self._logged_limits = True
            self.log_limits("")
        self._healthy()

    def _healthy(self) -> None:
        if self.down:
            _LOG.info("%s is back", self.client.url)
        self.down, self._failures, self._falls = False, 0, 0

    def _count(self, request: ChatRequest, reply: Reply) -> None:
        usage = self.usage
        usage.prompt_tokens += reply.prompt_tokens
        usage.completion_tokens += reply.completion_tokens
        if reply.filtered and not usage.filtered:
            _LOG.warning("%s filters what the model writes; a filtered text counts as cut off", self.client.url)
        usage.filtered += reply.filtered
        if reply.offered < request.n:
            self.send_singly(f"gave {reply.offered} of {request.n} completions")


class Pool:
    """``servers``, and the requests that wait for one of them, first come, first served."""

    def __init__(self, servers: Sequence[Server], patience: float) -> None:
        self._servers = servers
        self._patience = patience
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._out_since: float | None = None
        self._closed = False

    async def send(self, request: ChatRequest, avoid: Set[str]) -> Reply | None:
        """The reply of a server, preferably of one whose URL isn't in ``avoid``.

        None if the server gives one choice a request and more are asked for: nothing was sent. A request that is
        throttled, or didn't reach its server, waits for the next free one. Raises `TransientError`, and `EngineError`
        when the request is refused or no server has answered anything for ``patience`` seconds.
        """
        since = _now()
        while True:
            server = await self._choose(request, avoid, since)
            try:
                with server.occupied():
                    if request.n > 1 and not server.usage.takes_n:
                        return None
                    reply = await server.exchange(request)
                    self._out_since = None
                    return reply
            except (ThrottledError, UnreachableError):
                continue
            except EngineError:
                self._out_since = None
                raise
            finally:
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

    async def _choose(self, request: ChatRequest, avoid: Set[str], since: float) -> Server:
        """The free server with the fewest requests in flight, as soon as there is one; to be used at once."""
        async with self._turn:
            while True:
                if self._closed:
                    raise EngineError(f"the engine was closed before {request.name} was finished")
                now = _now()  # one for both looks: a moment that passes between them would never be waited for
                if free := [server for server in self._servers if server.free(now)]:
                    return min(free, key=lambda server: (server.client.url in avoid, server.in_flight))
                await self._wait(request, since, now)

    async def _wait(self, request: ChatRequest, since: float, now: float) -> None:
        """Wait until a server may have become free. Raises `EngineError` when none has answered for too long."""
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


def _now() -> float:
    return asyncio.get_running_loop().time()
