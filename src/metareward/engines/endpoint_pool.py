"""Several servers as one: each request goes to the least busy that is well.

While no server is left requests wait, first come first served, and give up when that lasts longer than their patience.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence, Set
from contextlib import suppress

from metareward.engines.base import EngineError
from metareward.engines.endpoint_place import Place, ServerUsage
from metareward.engines.endpoint_reply import Reply
from metareward.engines.endpoint_request import ChatRequest
from metareward.engines.endpoint_server import TroubleError, UnreachableError


class Pool:
    """The servers at ``places``, and the requests that wait for one of them."""

    def __init__(self, places: Sequence[Place], patience: float) -> None:
        self._places = places
        self._patience = patience
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._out_since: float | None = None
        self._closed = False

    async def send(self, request: ChatRequest, avoid: Set[str]) -> Reply | None:
        """The reply of a server, rather of one whose URL isn't in ``avoid``.

        None when the server whose turn it is gives one choice a request, and more are asked for: nothing was sent.
        Raises `TroubleError`; and `EngineError` when the request is refused or no server is left.
        """
        since = _now()
        while True:
            place = await self._choose(request, avoid, since)
            try:
                with place.taken():
                    if request.n > 1 and not place.takes_n:
                        return None
                    return await self._exchange(place, request)
            except UnreachableError:
                # Nothing was asked, so this is no try of the request: it waits for the next server.
                continue
            finally:
                self._changed.set()

    def place(self, url: str) -> Place:
        """The place at the server with this URL."""
        return next(place for place in self._places if place.server.url == url)

    def usage(self) -> tuple[ServerUsage, ...]:
        """The counts so far, a server each."""
        return tuple(place.usage() for place in self._places)

    async def aclose(self) -> None:
        """Close all connections; what is under way fails with `EngineError`."""
        self._closed = True
        self._changed.set()
        await asyncio.gather(*(place.server.aclose() for place in self._places))

    async def _exchange(self, place: Place, request: ChatRequest) -> Reply:
        if place.limiter:
            await place.limiter.acquire()
            self._require_open(request)
        try:
            reply = await place.server.post(request)
        except UnreachableError as trouble:
            place.fall(trouble, _now())
            raise
        except TroubleError as trouble:
            place.troubled(trouble, _now())
            raise
        except EngineError:
            self._out_since = None
            place.refused()
            raise
        self._out_since = None
        place.answered(request, reply)
        return reply

    async def _choose(self, request: ChatRequest, avoid: Set[str], since: float) -> Place:
        """The free server with the fewest requests under way, as soon as there is one; to be taken at once."""
        async with self._turn:
            while not (free := self._free(request)):
                await self._change(request, since)
            return min(free, key=lambda each: (each.server.url in avoid, each.under_way))

    def _free(self, request: ChatRequest) -> list[Place]:
        self._require_open(request)
        now = _now()
        return [place for place in self._places if place.free(now)]

    def _require_open(self, request: ChatRequest) -> None:
        if self._closed:
            raise EngineError(f"the engine was closed before {request.name} was finished")

    async def _change(self, request: ChatRequest, since: float) -> None:
        """Wait until a server may have become free. Raises `EngineError` when there is none for too long."""
        now = _now()
        moments = [place.rests_until for place in self._places if place.rests_until > now]
        if all(place.out(now) for place in self._places):
            self._out_since = self._out_since or now
            until = max(since, self._out_since) + self._patience
            if now >= until or all(place.rests_until > until for place in self._places):
                causes = "; ".join(place.last_trouble for place in self._places)
                raise EngineError(f"no server is left for {request.name}: {causes}")
            moments.append(until)
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(min(moments, default=None)):
                await self._changed.wait()


def _now() -> float:
    return asyncio.get_running_loop().time()
