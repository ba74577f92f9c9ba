"""Spreads requests over replicas of an engine that may be slow, fall silent, die, leave and join. Knows no Ray.

A request goes to the replica with the fewest completions in flight; when all have their most requests it waits. What a
lost replica had in flight is asked of others, first of all. A request that fails is asked of one other replica, which
shows whether it or the replica is at fault. The first reply counts: completions depend on their seed alone, so it
doesn't matter whose it is.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from metareward.engines.base import EngineError
from metareward.types import Completion, Messages, ModelRole, Sampling

_MOST_LOSSES = 5  # replicas that may be lost with a request before it is taken for the cause
_MOST_TRIES = 2  # replicas that may fail a request
_MOST_STRIKES = 3  # requests in a row that a replica may fail and others answer
# A replica with nothing to do takes over what another has worked on for so many times the usual time, and so long.
_SLOW_TIMES, _SLOW_SECONDS = 4.0, 5.0


class ReplicaLostError(Exception):
    """The replica's process or node is gone; the text says why."""


class Replica(Protocol):
    """An engine somewhere else."""

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        """As `Engine.complete`. Raises `ReplicaLostError` when the replica is gone."""
        ...


@dataclass(eq=False, slots=True)
class _Request:
    """``seats`` work on it since these times; ``failed`` are those that raised ``error``."""

    messages: Messages
    sampling: Sampling
    n: int
    role: ModelRole
    future: asyncio.Future[Sequence[Completion]]
    seats: dict[_Seat, float] = field(default_factory=dict)
    failed: list[_Seat] = field(default_factory=list)
    error: EngineError | None = None
    losses: int = 0


@dataclass(eq=False, slots=True)
class _Seat:
    """A replica and the requests that it has; ``heard``: when it last replied, or began to have requests."""

    replica: Replica
    heard: float
    requests: set[_Request] = field(default_factory=set)
    strikes: int = 0

    @property
    def load(self) -> int:
        """Completions in flight."""
        return sum(request.n for request in self.requests)


class ReplicaPool:
    """An engine over the replicas that are there at the moment; requests wait while there is none.

    ``on_lost`` gets each replica that is given up, with the reason. Call `check` about once a second.
    """

    def __init__(
        self,
        max_concurrency: int,
        timeout: float,
        on_lost: Callable[[Replica, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_concurrency, self._timeout, self._on_lost, self._clock = max_concurrency, timeout, on_lost, clock
        self._seats: list[_Seat] = []
        self._waiting: deque[_Request] = deque()
        self._tasks: set[asyncio.Task[Sequence[Completion]]] = set()
        self._usual = 0.0  # seconds of a request, as a moving average
        self._broken: str | None = None  # why there will be no replica

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The replicas that get requests."""
        return tuple(seat.replica for seat in self._seats)

    def add(self, replica: Replica) -> None:
        """Give requests to ``replica``, too."""
        self._broken = None
        self._seats.append(_Seat(replica, self._clock()))
        self._dispatch()

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        """``n`` completions of one replica. Raises what the replicas raise, `EngineError` when none is left."""
        if self._broken is not None:
            raise EngineError(self._broken)
        future: asyncio.Future[Sequence[Completion]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Request(messages, sampling, n, role, future))
        self._dispatch()
        return await future

    def fail(self, reason: str) -> None:
        """Fail all requests, also those to come, until a replica is added."""
        self._broken = reason
        unfinished = [*self._waiting, *(request for seat in self._seats for request in seat.requests)]
        self._waiting.clear()
        for request in unfinished:
            _settle(request, EngineError(reason))

    def check(self) -> None:
        """Give up replicas that have fallen silent; let idle ones take over what slow ones have had for long."""
        now = self._clock()
        for seat in [seat for seat in self._seats if seat.requests and now - seat.heard > self._timeout]:
            self._lose(seat, f"it hasn't replied for {self._timeout:.0f} s")
        if self._waiting:
            return
        limit = max(_SLOW_SECONDS, _SLOW_TIMES * self._usual)
        alone = [request for seat in self._seats for request in seat.requests if len(request.seats) == 1]
        slow = [request for request in alone if now - min(request.seats.values()) > limit and not request.failed]
        idle = [seat for seat in self._seats if not seat.requests]
        for request, seat in zip(sorted(slow, key=lambda each: min(each.seats.values())), idle, strict=False):
            self._give(request, seat)

    def _dispatch(self) -> None:
        while self._waiting:
            free = [seat for seat in self._seats if len(seat.requests) < self._max_concurrency]
            if not free:
                return
            request = self._waiting.popleft()
            if not request.future.done():  # its caller may have been cancelled
                self._give(request, min(free, key=lambda seat: seat.load))

    def _give(self, request: _Request, seat: _Seat) -> None:
        now = self._clock()
        if not seat.requests:
            seat.heard = now
        seat.requests.add(request)
        request.seats[seat] = now
        reply = seat.replica.complete(request.messages, request.sampling, request.n, request.role)
        task = asyncio.ensure_future(reply)
        self._tasks.add(task)
        task.add_done_callback(partial(self._take, request, seat))

    def _take(self, request: _Request, seat: _Seat, task: asyncio.Task[Sequence[Completion]]) -> None:
        """Take a reply, also one that comes after its replica was given up."""
        self._tasks.discard(task)
        since = request.seats.pop(seat, None)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, ReplicaLostError):
            request.seats |= {} if since is None else {seat: since}
            self._lose(seat, str(error))
            return
        seat.requests.discard(request)
        seat.heard = self._clock()
        if isinstance(error, EngineError):
            self._fail_once(request, seat, error)
        elif error is not None:
            _settle(request, error)
        else:
            self._succeed(request, seat, task.result(), since)
        self._dispatch()

    def _succeed(self, request: _Request, seat: _Seat, result: Sequence[Completion], since: float | None) -> None:
        seat.strikes = 0
        if since is not None:
            self._usual += 0.1 * (self._clock() - since - self._usual)
        if request.future.done():
            return
        request.future.set_result(result)
        for failed in request.failed:
            failed.strikes += 1
            if failed.strikes >= _MOST_STRIKES:
                self._lose(failed, f"it fails requests that others answer: {request.error}")

    def _fail_once(self, request: _Request, seat: _Seat, error: EngineError) -> None:
        """Ask another replica, if there is one that hasn't failed this request."""
        request.failed.append(seat)
        request.error = request.error or error
        if request.seats or request.future.done():  # another one is at it
            return
        others = [each for each in self._seats if each not in request.failed]
        if others and len(request.failed) < _MOST_TRIES:
            self._give(request, min(others, key=lambda each: each.load))
        else:
            _settle(request, request.error)

    def _lose(self, seat: _Seat, reason: str) -> None:
        if seat not in self._seats:
            return
        self._seats.remove(seat)
        again = []
        for request in seat.requests:
            request.seats.pop(seat, None)
            request.losses += 1
            if request.seats or request.future.done():
                continue
            if request.losses >= _MOST_LOSSES:
                _settle(request, EngineError(f"{request.losses} replicas were lost with this request; {reason}"))
            else:
                again.append(request)
        seat.requests.clear()
        self._waiting.extendleft(again)
        self._on_lost(seat.replica, reason)
        self._dispatch()


def _settle(request: _Request, error: BaseException) -> None:
    if not request.future.done():
        request.future.set_exception(error)
