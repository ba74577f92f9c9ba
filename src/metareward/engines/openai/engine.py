"""OpenAI-compatible servers as an `Engine`: vLLM, SGLang, llama.cpp, hosted ones.

All samples of a request are asked for at once (``n``); a server that gives fewer, or refuses that, gets one request for
each from then on. What may pass is tried again with growing random pauses, preferably on another server. An answered
request is returned once, and with a cache never sent again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from metareward.engines.base import EngineError
from metareward.engines.chat import escape_messages, folder_control_strings
from metareward.engines.openai.choices import CHOICE_FIELDS, PROBE, PROBE_SAMPLING, ChoiceField
from metareward.engines.openai.client import (
    ChatRequest,
    Client,
    Reply,
    RequestError,
    TransientError,
    UnreachableError,
    api_key,
    base_url,
    chat_request,
)
from metareward.engines.openai.pool import Pauses, Pool, RateControl, Server, ServerUsage
from metareward.errors import UserError
from metareward.method.template import CONTROL_STARTS, control_starts
from metareward.settings import Count, Section, Text
from metareward.storage.store import RecordStore
from metareward.text import one_line
from metareward.types import Completion, Messages, ModelRole, Sampling

_LOG = logging.getLogger(__name__)
_BAD_REQUEST = (400, 422)  # how servers that take only n=1 refuse others
CACHE_FILE = "replies.sqlite"


class OpenAISettings(Section):
    """Servers that speak OpenAI's protocol, started by the user."""

    kind: Literal["openai"] = Field("openai", description="OpenAI-compatible servers that you run")
    base_urls: Annotated[tuple[Text, ...], Field(strict=False, min_length=1)] = Field(
        description="Base URLs, such as [http://127.0.0.1:8000]; requests go to the least busy"
    )
    model: Text = Field("m{t}", description="The model's name on the servers; {t} is its iteration, 0 for M0")
    tokenizer: Text | None = Field(
        None, description="Folder of the served model's tokenizer, for the control strings that requests must not hold"
    )
    api_key_env: Text | None = Field(None, description="The environment variable that holds the API key")
    max_concurrency: Count = Field(
        64, description="Most requests in flight for each server; fewer where it throttles (429, Retry-After)"
    )
    requests_per_minute: Count | None = Field(None, description="No more requests than this, for each server")
    timeout: float = Field(600.0, gt=0.0, description="Seconds that one request may take")
    max_attempts: Count = Field(
        6, description="Attempts at a request before its prompt counts as failed; throttled ones don't count"
    )
    choices_field: Literal["auto"] | ChoiceField = Field(
        "auto", description="The request's field that makes constrained verdicts possible; 'auto' tries them in turn"
    )
    cache_dir: Text | None = Field(None, description="Folder that caches replies, so that no request is paid twice")


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts so far, by server; ``cache_hits``: requests that no server was needed for."""

    servers: tuple[ServerUsage, ...]
    cache_hits: int


class ReplyCache:
    """The choices of answered requests by the request's digest: no prompts, addresses or keys.

    A row is on the disk before its completions are returned. The model counts by its name: another model under the same
    name needs another folder.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cache_dir: {folder} is no folder ({error.strerror}); fix: name another one") from error
        self._store = RecordStore.open(folder / CACHE_FILE, {"content": "replies of chat servers"})
        self._choices = TypeAdapter(tuple[Completion, ...])
        self.close = self._store.close

    def get(self, request: ChatRequest) -> tuple[Completion, ...]:
        """The cached choices, perhaps fewer than asked for; none if the request was never answered."""
        document = self._store.get(request.digest)
        return () if document is None else self._choices.validate_json(document)

    def put(self, request: ChatRequest, choices: tuple[Completion, ...]) -> None:
        """Keep ``choices``. Raises `UserError` when the disk is full or can't be written."""
        self._store.put(request.digest, self._choices.dump_json(choices).decode())


class OpenAIEngine:
    """Completions from the servers of ``settings``; made by `open_openai`."""

    def __init__(
        self,
        settings: OpenAISettings,
        pauses: Pauses,
        pool: Pool,
        cache: ReplyCache | None,
        controls: re.Pattern[str] = CONTROL_STARTS,
    ) -> None:
        self._settings = settings
        self._pauses = pauses
        self._pool = pool
        self._cache = cache
        self._cache_hits = 0
        self._choice_field = None if settings.choices_field == "auto" else settings.choices_field
        self._no_choice_field = ""  # the error message, once every field has failed
        self._probing = asyncio.Lock()
        self._controls = controls

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
        """``n`` completions; see `Engine`. Greedy ones are equal, so one is asked for."""
        if sampling.temperature == 0 and n > 1:
            return tuple(await self.complete(messages, sampling, 1)) * n
        messages = escape_messages(messages, self._controls)
        model, field = self._settings.model, await self._find_choice_field() if sampling.choices else None
        whole = chat_request(model, messages, sampling, n, choice_field=field)
        singles = [chat_request(model, messages, sampling, 1, i, field) for i in range(n)]
        choices: tuple[Completion, ...] = ()
        if self._cached(whole) or not any(self._cached(request) for request in singles):
            try:
                choices = await self._ask(whole)
            except RequestError as refused:
                if n == 1 or refused.status not in _BAD_REQUEST:
                    raise
                choices = await self._ask(singles[0])  # raises if it was not the number that was refused
                self._pool.server(refused.server).send_singly(f"refuses to give {n} completions at once")
        # One that fails doesn't cancel the others: they are paid for, and the cache keeps them.
        rest = await asyncio.gather(*map(self._ask, singles[len(choices) :]), return_exceptions=True)
        if failures := [outcome for outcome in rest if isinstance(outcome, BaseException)]:
            raise min(failures, key=lambda error: isinstance(error, EngineError))  # a bug before a failed request
        return (*choices, *(choice for outcome in rest if isinstance(outcome, tuple) for choice in outcome))

    async def aclose(self) -> None:
        """Close all connections and the cache; requests in flight fail with `EngineError`."""
        await self._pool.aclose()
        if self._cache:
            self._cache.close()

    async def _find_choice_field(self) -> ChoiceField:
        """The field that holds the servers to choices, tried out once. Raises `EngineError` if there is none."""
        async with self._probing:
            if self._no_choice_field:
                raise EngineError(self._no_choice_field)
            for field in () if self._choice_field else CHOICE_FIELDS:
                try:
                    await self._ask(chat_request(self._settings.model, PROBE, PROBE_SAMPLING, 1, choice_field=field))
                except RequestError as refused:
                    if refused.status not in (0, *_BAD_REQUEST):
                        raise
                    self._no_choice_field = (
                        f"{refused}; the server takes none of {', '.join(CHOICE_FIELDS)}, which constrained verdicts "
                        "need; fix: set judgments.verdict and meta_judgments.verdict to text, or use vLLM or SGLang"
                    )
                else:
                    self._choice_field, self._no_choice_field = field, ""
                    break
            if self._choice_field is None:
                raise EngineError(self._no_choice_field)
            return self._choice_field

    def _cached(self, request: ChatRequest) -> tuple[Completion, ...]:
        return self._cache.get(request) if self._cache else ()

    async def _ask(self, request: ChatRequest) -> tuple[Completion, ...]:
        """The choices of one request, from the cache or a server; none if the server gives one at a time."""
        if cached := self._cached(request):
            self._cache_hits += 1
            return cached
        tried: list[str] = []
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(TransientError),
            stop=stop_after_attempt(self._settings.max_attempts),
            wait=wait_random_exponential(multiplier=self._pauses.first, max=self._pauses.longest),
            reraise=True,
        )
        try:
            reply: Reply | None = await retrying(self._pool.send, request, tried)
        except TransientError as last:
            servers = " and ".join(dict.fromkeys(tried))
            attempts = f"{len(tried)} {'attempt' if len(tried) == 1 else 'attempts'}"
            raise EngineError(f"{last}; {request.name} failed after {attempts} at {servers}") from last
        if reply is None:
            return ()
        if self._cache:
            self._cache.put(request, reply.choices)
        return reply.choices


async def open_openai(settings: OpenAISettings, pauses: Pauses | None = None) -> OpenAIEngine:
    """The engine over these servers, after a look at which of them answer and what they serve.

    Raises `UserError` for a bad URL, a missing key, a server that refuses the key or lists models without this one, and
    if no server answers; one that doesn't is set aside while others do. Servers needn't list their models.
    """
    pauses, controls = pauses or Pauses(), _control_starts(settings)
    key, urls = api_key(settings.api_key_env), [base_url(url) for url in settings.base_urls]
    if twice := [url for url in urls if urls.count(url) > 1]:
        raise UserError(f"base_urls: {twice[0]} is there twice; fix: name each server once")
    max_rate = settings.requests_per_minute / 60 if settings.requests_per_minute else math.inf
    servers = [
        Server(Client(url, key, settings.timeout), RateControl(settings.max_concurrency, max_rate, pauses), pauses)
        for url in urls
    ]
    pool = Pool(servers, pauses.patience)
    try:
        errors = await asyncio.gather(*(_check(server, settings) for server in servers))
        if all(errors):
            raise UserError(f"{errors[0]}; fix: start the server, or correct base_urls")
        cache = ReplyCache(Path(settings.cache_dir)) if settings.cache_dir else None
    except BaseException:
        await pool.aclose()
        raise
    return OpenAIEngine(settings, pauses, pool, cache, controls)


def _control_starts(settings: OpenAISettings) -> re.Pattern[str]:
    """Where control strings begin: those of the served model's tokenizer if it is known, else of all known ones."""
    folder = settings.tokenizer or (settings.model if (Path(settings.model) / "tokenizer.json").is_file() else None)
    return CONTROL_STARTS if folder is None else control_starts(folder_control_strings(Path(folder)))


async def _check(server: Server, settings: OpenAISettings) -> UnreachableError | None:
    """Ask a server for its models; the error if there is no server."""
    model, url = settings.model, server.client.url
    try:
        models = await server.client.models()
    except UnreachableError as error:
        server.fall(error)
        return error
    except RequestError as refused:
        variable = settings.api_key_env or "an environment variable and name it in api_key_env"
        fix = "correct base_urls" if refused.status < 400 else f"put a valid key into {variable}"
        raise UserError(f"{refused}; fix: {fix}") from None
    if models and model not in models:
        listed = one_line(", ".join(models))
        # Some servers list what they have downloaded, and also serve folders that they don't list.
        if not (Path(model).is_absolute() or Path(model).is_dir()):
            fix = "fix: set model to one of them, or correct base_urls"
            raise UserError(f"{url} serves {listed}, not {model}; {fix}")
        _LOG.warning("%s lists %s, not %s", url, listed, model)
    return None
