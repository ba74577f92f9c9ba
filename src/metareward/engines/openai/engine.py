"""OpenAI-compatible servers as an `Engine`: vLLM, SGLang, llama.cpp, ``transformers serve``, hosted ones.

All samples of a request are asked for at once (``n``). A server that gives fewer, or refuses that, is asked for one at
a time from then on. What may pass is tried again with growing, random pauses, on another server if there is one: 408,
429, 5xx, broken connections, no reply in time, half a reply; nothing else is. An answered request comes back once,
and with a cache is never sent again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aiolimiter import AsyncLimiter
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from metareward.engines.base import EngineError
from metareward.engines.endpoint_address import api_key, base_urls
from metareward.engines.endpoint_cache import ReplyCache
from metareward.engines.endpoint_place import Pauses, Place, ServerUsage
from metareward.engines.endpoint_pool import Pool
from metareward.engines.endpoint_reply import Reply
from metareward.engines.endpoint_request import ChatRequest, chat_request
from metareward.engines.endpoint_server import RefusedError, Server, TroubleError, UnreachableError
from metareward.engines.endpoint_words import one_line
from metareward.errors import UserError
from metareward.types import Completion, Messages, ModelRole, Sampling

_LOG = logging.getLogger(__name__)
# Servers that take only n=1 say so with one of these.
_BAD_REQUEST = (400, 422)


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Where the servers are and how they are asked.

    ``urls``: base addresses, with or without ``/v1``. ``model``: the name under which they know the model.
    ``key_variable``: the environment variable that holds the API key. ``in_flight`` and ``requests_per_minute``:
    limits for each server. ``timeout``: seconds for one request. ``attempts``: tries of a request before it fails.
    ``cache``: folder that keeps what was answered.
    """

    urls: tuple[str, ...]
    model: str
    key_variable: str | None
    in_flight: int
    requests_per_minute: int | None
    timeout: float
    attempts: int
    cache: Path | None
    pauses: Pauses = field(default_factory=Pauses)


@dataclass(frozen=True, slots=True)
class Usage:
    """What was used so far, by server; ``cache_hits`` counts the requests that needed none."""

    servers: tuple[ServerUsage, ...]
    cache_hits: int


class EndpointEngine:
    """Completions from the servers of ``settings``; made by `open_endpoint`."""

    def __init__(self, settings: EndpointSettings, pool: Pool, cache: ReplyCache | None) -> None:
        self._settings = settings
        self._pool = pool
        self._cache = cache
        self._cache_hits = 0

    @property
    def usage(self) -> Usage:
        """The counts so far."""
        return Usage(self._pool.usage(), self._cache_hits)

    async def complete(
        self,
        messages: Messages,
        sampling: Sampling,
        n: int,
        role: ModelRole = "actor",  # noqa: ARG002 - one model in all roles
    ) -> Sequence[Completion]:
        """``n`` completions; see `Engine`. Greedy ones are all the same, so one is asked for."""
        if sampling.temperature == 0 and n > 1:
            return tuple(await self.complete(messages, sampling, 1)) * n
        one_each = [chat_request(self._settings.model, messages, sampling, 1, i) for i in range(n)]
        whole = chat_request(self._settings.model, messages, sampling, n)
        written = await self._together(whole, one_each)
        rest = (self._ask(request) for request in one_each[len(written) :])
        # One that fails doesn't stop the others: they are paid for, and the cache keeps them.
        outcomes = await asyncio.gather(*rest, return_exceptions=True)
        return (*written, *(choice for outcome in _raised(outcomes) for choice in outcome))

    async def aclose(self) -> None:
        """Close all connections and the cache; requests under way fail with `EngineError`."""
        await self._pool.aclose()
        if self._cache:
            self._cache.close()

    async def _together(self, whole: ChatRequest, one_each: Sequence[ChatRequest]) -> tuple[Completion, ...]:
        """The first of the completions, as many as come from one request; none if they are to be asked for singly."""
        if not self._kept(whole) and any(self._kept(request) for request in one_each):
            return ()
        try:
            return await self._ask(whole)
        except RefusedError as refused:
            if whole.n == 1 or refused.status not in _BAD_REQUEST:
                raise
            # Was it for the number, or for what would be refused singly too? Then this raises.
            first = await self._ask(one_each[0])
            self._pool.place(refused.server).ask_singly(f"refuses to give {whole.n} completions at once")
            return first

    def _kept(self, request: ChatRequest) -> tuple[Completion, ...]:
        return self._cache.get(request) if self._cache else ()

    async def _ask(self, request: ChatRequest) -> tuple[Completion, ...]:
        """The choices of one request, from the cache or a server; none if the server gives one at a time."""
        if kept := self._kept(request):
            self._cache_hits += 1
            return kept
        reply = await self._send(request)
        if reply is None:
            return ()
        if self._cache:
            self._cache.put(request, reply.choices)
        return reply.choices

    async def _send(self, request: ChatRequest) -> Reply | None:
        troubles: list[TroubleError] = []

        async def once() -> Reply | None:
            try:
                return await self._pool.send(request, {trouble.server for trouble in troubles})
            except TroubleError as trouble:
                troubles.append(trouble)
                raise

        pauses = self._settings.pauses
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(TroubleError),
            stop=stop_after_attempt(self._settings.attempts),
            wait=wait_random_exponential(multiplier=pauses.first, max=pauses.longest),
            reraise=True,
        )
        try:
            return await retrying(once)
        except TroubleError as last:
            servers = " and ".join(dict.fromkeys(trouble.server for trouble in troubles))
            tries = f"{len(troubles)} {'try' if len(troubles) == 1 else 'tries'}"
            raise EngineError(f"{last}; {request.name} failed after {tries} at {servers}") from last


def _raised(outcomes: Sequence[tuple[Completion, ...] | BaseException]) -> list[tuple[Completion, ...]]:
    """The outcomes if all are results. Else raises a failure: a mistake rather than what one request can't have."""
    failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    if failures:
        raise min(failures, key=lambda error: isinstance(error, EngineError))
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]


async def open_endpoint(settings: EndpointSettings) -> EndpointEngine:
    """The engine over these servers, after a look at which of them are there and what they serve.

    Raises `UserError` for a URL that is none, a missing key, a server that refuses the key or lists models without
    this one, and if no server is there at all; one that isn't there is set aside while others are. A server that
    doesn't list its models is taken at its word.
    """
    key = api_key(settings.key_variable)
    urls = base_urls(settings.urls)
    places = [_place(Server(url, key, settings.timeout), settings) for url in urls]
    pool = Pool(places, settings.pauses.patience)
    try:
        troubles = await asyncio.gather(*(_look(place, settings) for place in places))
        if all(troubles):
            raise UserError(f"{troubles[0]}; fix: start the server, or correct urls")
        cache = ReplyCache.open(settings.cache) if settings.cache else None
    except BaseException:
        await pool.aclose()
        raise
    return EndpointEngine(settings, pool, cache)


def _place(server: Server, settings: EndpointSettings) -> Place:
    # Requests at even distances: a bucket of a minute's size could let twice the limit through in its first minute.
    per_minute = settings.requests_per_minute
    limiter = AsyncLimiter(1, 60 / per_minute) if per_minute else None
    return Place(server, settings.in_flight, limiter, settings.pauses)


async def _look(place: Place, settings: EndpointSettings) -> UnreachableError | None:
    """Ask a server for its models; what it says when it isn't there."""
    server, model = place.server, settings.model
    try:
        models = await server.models()
    except UnreachableError as trouble:
        place.fall(trouble, asyncio.get_running_loop().time())
        return trouble
    except RefusedError as refused:
        fix = "correct urls" if refused.status < 400 else f"put a valid key into {_variable(settings)}"
        raise UserError(f"{refused}; fix: {fix}") from None
    if models and model not in models:
        listed = one_line(", ".join(models))
        # Some list what they have downloaded, and serve a folder that is not among it.
        if not (Path(model).is_absolute() or Path(model).is_dir()):
            raise UserError(
                f"{server.url} serves {listed}, not {model}; fix: set model to one of them, or correct urls"
            )
        _LOG.warning("%s lists %s, not %s", server.url, listed, model)
    return None


def _variable(settings: EndpointSettings) -> str:
    return settings.key_variable or "an environment variable and name it in key_variable"
