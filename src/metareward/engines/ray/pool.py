"""Spreads requests over replicas of an engine that may be slow, fall silent, die, leave and join. Independent of Ray.

A request goes to the replica with the fewest completions in flight; when all have `max_concurrency`
requests it waits. The requests of a lost replica are sent to others before the waiting ones. A request that fails is
sent to one other replica, which shows whether the request or the replica is at fault. The first reply counts:
completions depend on their seed alone, so any replica's will do.
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
_MOST_FAILURES = 3  # requests in a row that a replica may fail and others answer
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
    """``attempts``: the replicas that work on it, and since when; ``failed``: those that raised, first ``error``."""

    messages: Messages
    sampling: Sampling
    n: int
    role: ModelRole
    future: asyncio.Future[Sequence[Completion]]
    attempts: dict[_ReplicaState, float] = field(default_factory=dict)
    failed: list[_ReplicaState] = field(default_factory=list)
    error: EngineError | None = None
    losses: int = 0


@dataclass(eq=False, slots=True)
class _ReplicaState:
    """A replica's requests in flight; ``last_reply``: when it last replied, or got a request while it had none.

    ``failures``: requests in a row that it failed and others answered.
    """

    replica: Replica
    last_reply: float
    requests: set[_Request] = field(default_factory=set)
    failures: int = 0

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
        self._states: list[_ReplicaState] = []
        self._waiting: deque[_Request] = deque()
        self._tasks: set[asyncio.Task[Sequence[Completion]]] = set()
        self._mean_seconds = 0.0  # of a request, as a moving average
        self._unavailable: str | None = None  # why requests fail: no replica can start

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The replicas that get requests."""
        return tuple(state.replica for state in self._states)

    def add(self, replica: Replica) -> None:
        """Give requests to ``replica``, too."""
        self._unavailable = None
        self._states.append(_ReplicaState(replica, self._clock()))
        self._dispatch()

    def remove(self, replica: Replica, reason: str) -> None:
        """Give up ``replica``, if it is still there, and send what it had to others."""
        for state in [state for state in self._states if state.replica is replica]:
            self._drop(state, reason)

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        """``n`` completions of one replica. Raises what the replicas raise, `EngineError` when none is left."""
        if self._unavailable is not None:
            raise EngineError(self._unavailable)
        future: asyncio.Future[Sequence[Completion]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Request(messages, sampling, n, role, future))
        self._dispatch()
        return await future

    def fail(self, reason: str) -> None:
        """Fail all requests, also those to come, until a replica is added."""
        self._unavailable = reason
        unfinished = [*self._waiting, *(request for state in self._states for request in state.requests)]
        self._waiting.clear()
        for request in unfinished:
            _fail(request, EngineError(reason))

    def check(self) -> None:
        """Give up replicas that have fallen silent; let idle ones take over what slow ones have had for long."""
        now = self._clock()
        for state in [state for state in self._states if state.requests and now - state.last_reply > self._timeout]:
            self._drop(state, f"it hasn't replied for {self._timeout:.0f} s")
        if self._waiting:
            return
        limit = max(_SLOW_SECONDS, _SLOW_TIMES * self._mean_seconds)
        alone = [request for state in self._states for request in state.requests if len(request.attempts) == 1]
        slow = [request for request in alone if now - min(request.attempts.values()) > limit and not request.failed]
        idle = [state for state in self._states if not state.requests]
        for request, state in zip(sorted(slow, key=lambda each: min(each.attempts.values())), idle, strict=False):
            self._send(request, state)

    def _dispatch(self) -> None:
        while self._waiting:
            free = [state for state in self._states if len(state.requests) < self._max_concurrency]
            if not free:
                return
            request = self._waiting.popleft()
            if not request.future.done():  # its caller may have been cancelled
                self._send(request, min(free, key=lambda state: state.load))

    def _send(self, request: _Request, state: _ReplicaState) -> None:
        now = self._clock()
        if not state.requests:
            state.last_reply = now
        state.requests.add(request)
        request.attempts[state] = now
        reply = state.replica.complete(request.messages, request.sampling, request.n, request.role)
        task = asyncio.ensure_future(reply)
        self._tasks.add(task)
        task.add_done_callback(partial(self._on_reply, request, state))

    def _on_reply(self, request: _Request, state: _ReplicaState, task: asyncio.Task[Sequence[Completion]]) -> None:
        """Take a reply, also one that comes after its replica was given up."""
        self._tasks.discard(task)
        since = request.attempts.pop(state, None)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, ReplicaLostError):
            request.attempts |= {} if since is None else {state: since}
            self._drop(state, str(error))
            return
        state.requests.discard(request)
        state.last_reply = self._clock()
        if isinstance(error, EngineError):
            self._retry_elsewhere(request, state, error)
        elif error is not None:
            _fail(request, error)
        else:
            self._succeed(request, state, task.result(), since)
        self._dispatch()

    def _succeed(
        self, request: _Request, state: _ReplicaState, result: Sequence[Completion], since: float | None
    ) -> None:
        state.failures = 0
        if since is not None:
            self._mean_seconds += 0.1 * (self._clock() - since - self._mean_seconds)
        if request.future.done():
            return
        request.future.set_result(result)
        for failed in request.failed:
            failed.failures += 1
            if failed.failures >= _MOST_FAILURES:
                self._drop(failed, f"it fails requests that others answer: {request.error}")

    def _retry_elsewhere(self, request: _Request, state: _ReplicaState, error: EngineError) -> None:
        """Send a failed request to a replica that hasn't failed it, if there is one; else raise its error."""
        request.failed.append(state)
        request.error = request.error or error
        if request.attempts or request.future.done():  # another replica works on it
            return
        others = [each for each in self._states if each not in request.failed]
        if others and len(request.failed) < _MOST_TRIES:
            self._send(request, min(others, key=lambda each: each.load))
        else:
            _fail(request, request.error)

    def _drop(self, state: _ReplicaState, reason: str) -> None:
        if state not in self._states:
            return
        self._states.remove(state)
        again = []
        for request in state.requests:
            request.attempts.pop(state, None)
            request.losses += 1
            if request.attempts or request.future.done():
                continue
            if request.losses >= _MOST_LOSSES:
                _fail(request, EngineError(f"{request.losses} replicas were lost with this request; {reason}"))
            else:
                again.append(request)
        state.requests.clear()
        self._waiting.extendleft(again)
        self._on_lost(state.replica, reason)
        self._dispatch()


def _fail(request: _Request, error: BaseException) -> None:
    if not request.future.done():
        request.future.set_exception(error)
