"""One server: a request sent, and what became of it as a value or as one of a few kinds of error.

    `TroubleError`      may pass: 408, 5xx, a connection that broke, no reply in time, garbage, half a reply
    `BusyError`         429: the server is well and wants fewer requests
    `UnreachableError`  no connection, so nothing was sent
    `RefusedError`      will not pass: any other status

The API key is in the headers of the client and nowhere else, and is taken out of what the server says.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import httpx2

from metareward.engines.base import EngineError
from metareward.engines.endpoint_reply import Reply, UnreadableError, UnusableError, read_reply
from metareward.engines.endpoint_request import ChatRequest
from metareward.engines.endpoint_words import one_line, said_in

_LONGEST_REPLY = 1 << 26
_SECONDS_TO_CONNECT = 10.0
_SECONDS_TO_LIST = 30.0


class TroubleError(Exception):
    """What may pass, in one line that names the server; for ``rest`` seconds the server asks to be left alone."""

    def __init__(self, line: str, server: str, rest: float = 0.0) -> None:
        super().__init__(line)
        self.server = server
        self.rest = rest


class BusyError(TroubleError):
    """The server answers, and asks for fewer requests."""


class UnreachableError(TroubleError):
    """No connection came about, so nothing was asked and nothing is owed."""


class RefusedError(EngineError):
    """The server won't serve this request, however often it is asked."""

    def __init__(self, line: str, server: str, status: int) -> None:
        super().__init__(line)
        self.server = server
        self.status = status


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def title(self) -> str:
        known = self.status in set(HTTPStatus)
        return f"{self.status} {HTTPStatus(self.status).phrase}" if known else str(self.status)


class Server:
    """An OpenAI-compatible server at ``url``, which ends in its version, as in ``http://127.0.0.1:8000/v1``."""

    def __init__(self, url: str, key: str | None, timeout: float) -> None:
        self.url = url
        self._key = key
        self._timeout = timeout
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(None, connect=min(timeout, _SECONDS_TO_CONNECT)),
            limits=httpx2.Limits(max_connections=None),
            follow_redirects=False,
            # A proxy of the environment is for the world outside, and can't reach this machine's own servers.
            trust_env=not _is_here(url),
        )

    async def post(self, request: ChatRequest) -> Reply:
        """What the server makes of ``request``. Raises `TroubleError`, or `EngineError` for what won't pass."""
        headers = {"Content-Type": "application/json"}
        answer = await self._ask("POST", "/chat/completions", self._timeout, headers, request.body)
        if answer.status != HTTPStatus.OK:
            raise self._error(answer, request)
        try:
            return read_reply(answer.raw, request.n, request.top_logprobs)
        except UnreadableError as error:
            raise TroubleError(self._line(f"answered with {error}"), self.url) from None
        except UnusableError as error:
            raise EngineError(self._line(f"{error}; {request.name}")) from None

    async def models(self) -> tuple[str, ...]:
        """The names of the models that it says it serves; none when it doesn't say.

        Raises `RefusedError` when it wants a key or another address, and `UnreachableError` when it isn't there.
        """
        try:
            # On a connection of its own: some servers end one after an error, just as the next request is sent.
            headers = {"Connection": "close"}
            answer = await self._ask("GET", "/models", min(self._timeout, _SECONDS_TO_LIST), headers)
        except UnreachableError:
            raise
        except TroubleError:
            return ()
        if answer.status in (401, 403) or 300 <= answer.status < 400:
            raise self._refusal(answer, "the question for its models")
        return _model_names(answer.raw) if answer.status == HTTPStatus.OK else ()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _ask(
        self, method: str, route: str, seconds: float, headers: Mapping[str, str], body: bytes | None = None
    ) -> _Answer:
        try:
            async with (
                asyncio.timeout(seconds),
                self._client.stream(method, self.url + route, content=body, headers=headers) as response,
            ):
                return _Answer(response.status_code, response.headers, await self._read(response))
        except TimeoutError:
            raise TroubleError(f"{self.url} gave no whole reply within {seconds:g} s", self.url) from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise UnreachableError(self._line(f"can't be reached: {_cause(error)}"), self.url) from None
        except httpx2.RequestError as error:
            raise TroubleError(self._line(f"broke off: {_cause(error)}"), self.url) from None

    async def _read(self, response: httpx2.Response) -> bytes:
        raw = bytearray()
        async for part in response.aiter_bytes():
            raw += part
            if len(raw) > _LONGEST_REPLY:
                raise TroubleError(f"{self.url} sends a reply of more than {_LONGEST_REPLY >> 20} MiB", self.url)
        return bytes(raw)

    def _error(self, answer: _Answer, request: ChatRequest) -> TroubleError | RefusedError:
        if answer.status not in (408, 429) and answer.status < 500:
            return self._refusal(answer, request.name)
        kind = BusyError if answer.status == HTTPStatus.TOO_MANY_REQUESTS else TroubleError
        line = self._line(f"answered {answer.title}: {said_in(answer.raw)}")
        return kind(line, self.url, seconds_to_rest(answer.headers.get("retry-after", "")))

    def _refusal(self, answer: _Answer, what: str) -> RefusedError:
        target = answer.headers.get("location")
        said = f"redirect to {target}, which isn't followed" if target else said_in(answer.raw)
        return RefusedError(self._line(f"refused {what}: {answer.title}: {said}"), self.url, answer.status)

    def _line(self, text: str) -> str:
        hidden = text.replace(self._key, "[key]") if self._key else text
        return f"{self.url} {one_line(hidden)}"


def seconds_to_rest(retry_after: str) -> float:
    """The seconds of a Retry-After header, which may be a number or a date; 0 when it is neither, or over."""
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return 0.0


def _is_here(url: str) -> bool:
    host = httpx2.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _cause(error: httpx2.RequestError) -> str:
    """The system's own error where there is one below: those above it only say that something failed."""
    lowest: BaseException = error
    below = error.__cause__
    while below is not None:
        lowest = below if isinstance(below, OSError) else lowest
        below = below.__cause__ or below.__context__
    return f"{type(lowest).__name__}: {lowest}" if str(lowest) else type(lowest).__name__


def _model_names(raw: bytes) -> tuple[str, ...]:
    try:
        data = json.loads(raw)["data"]
        return tuple(str(entry["id"]) for entry in data)
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()
