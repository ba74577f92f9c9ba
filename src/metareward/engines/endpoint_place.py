"""One server's standing: how busy it is, whether it is well, what it was asked and gave.

It is down when it can't be reached, or after three troubles in a row: then it gets nothing for a pause that doubles
each time, after which one request tries it, and the others follow when that one is answered. A server that asks to be
left alone (Retry-After) is, without being down.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aiolimiter import AsyncLimiter

from metareward.engines.endpoint_reply import Reply
from metareward.engines.endpoint_request import ChatRequest
from metareward.engines.endpoint_server import BusyError, Server, TroubleError

_LOG = logging.getLogger(__name__)
_TROUBLES_IN_A_ROW = 3
_MOST_DOUBLINGS = 30


@dataclass(frozen=True, slots=True)
class Pauses:
    """Seconds: the ``first`` pause after a trouble, the ``longest``, and the ``patience`` while no server is left."""

    first: float = 0.5
    longest: float = 60.0
    patience: float = 600.0


@dataclass(frozen=True, slots=True)
class ServerUsage:
    """What one server was asked and gave: tries of requests, those of them that failed, tokens, filtered choices.

    ``takes_n`` is false when it gives one choice however many are asked for.
    """

    url: str
    requests: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    filtered: int
    takes_n: bool


@dataclass(slots=True)
class Place:
    """A server and what is known of it. Moments are seconds of the event loop's clock."""

    server: Server
    in_flight: int
    limiter: AsyncLimiter | None
    pauses: Pauses
    under_way: int = 0
    probes: int = 0
    down: bool = False
    rests_until: float = 0.0
    last_trouble: str = ""
    takes_n: bool = True
    _in_a_row: int = 0
    _falls: int = 0
    _requests: int = 0
    _failed: int = 0
    _prompt_tokens: int = 0
    _completion_tokens: int = 0
    _filtered: int = 0
    _lavish: bool = False

    def free(self, now: float) -> bool:
        """Whether it may be asked now: one that is down only by one request at a time."""
        return now >= self.rests_until and (self.probes < 1 if self.down else self.under_way < self.in_flight)

    def out(self, now: float) -> bool:
        """Whether it is of no use for the time being, rather than busy."""
        return self.down or now < self.rests_until

    @contextmanager
    def taken(self) -> Iterator[None]:
        """While a request is under way. Those from before it went down may hang, and are no probes of it."""
        probe = self.down
        self.under_way += 1
        self.probes += probe
        try:
            yield
        finally:
            self.under_way -= 1
            self.probes -= probe

    def refused(self) -> None:
        """It turned a request down, so it is well."""
        self._requests += 1
        self._well()

    def answered(self, request: ChatRequest, reply: Reply) -> None:
        """It gave a reply."""
        self.refused()
        self._prompt_tokens += reply.prompt_tokens
        self._completion_tokens += reply.completion_tokens
        if reply.filtered and not self._filtered:
            _LOG.warning("%s filters what the model writes; a filtered text counts as cut off", self.server.url)
        self._filtered += reply.filtered
        if reply.offered < request.n:
            self.ask_singly(f"gave {reply.offered} of {request.n} completions")
        if reply.offered > request.n and not self._lavish:
            self._lavish = True
            _LOG.warning("%s gave %d completions of %d; the rest is left", self.server.url, reply.offered, request.n)

    def troubled(self, trouble: TroubleError, now: float) -> None:
        """A request came to nothing."""
        _LOG.info("%s", trouble)
        self._requests += 1
        self._failed += 1
        self.last_trouble = str(trouble)
        self._in_a_row += 1
        if isinstance(trouble, BusyError):
            self._well()
        elif self.down or self._in_a_row >= _TROUBLES_IN_A_ROW:
            self.fall(trouble, now)
        self.rests_until = max(self.rests_until, now + trouble.rest)

    def fall(self, trouble: TroubleError, now: float) -> None:
        """Set it aside. Requests that were under way together fail together, and count once."""
        self.last_trouble = str(trouble)
        if now < self.rests_until:
            return
        if not self.down:
            _LOG.warning("%s; set aside, and tried again from time to time", trouble)
        self.down = True
        self.rests_until = now + min(self.pauses.first * 2**self._falls, self.pauses.longest)
        self._falls = min(self._falls + 1, _MOST_DOUBLINGS)

    def ask_singly(self, why: str) -> None:
        """From now on it gets one request for each completion."""
        if self.takes_n:
            self.takes_n = False
            _LOG.warning("%s %s: from now on one request is sent for each completion", self.server.url, why)

    def usage(self) -> ServerUsage:
        """The counts so far."""
        tokens = (self._prompt_tokens, self._completion_tokens)
        return ServerUsage(self.server.url, self._requests, self._failed, *tokens, self._filtered, self.takes_n)

    def _well(self) -> None:
        if self.down:
            _LOG.info("%s is back", self.server.url)
        self.down, self._in_a_row, self._falls = False, 0, 0
