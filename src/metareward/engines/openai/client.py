"""One OpenAI-compatible server: chat requests, replies read strictly, and errors by what to do about them.

    `TransientError`    try again: 408, 5xx, a broken connection, a timeout, garbage, half a reply
    `ThrottledError`    send again later, not a failed attempt: 429, or any error status with Retry-After
    `UnreachableError`  no connection, so nothing was sent
    `RefusedError`      permanent: any other status

The API key is in the client's headers and nowhere else; it is removed from what the server says.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal

import httpx2
from pydantic import AliasPath, BaseModel, Field, NonNegativeInt, ValidationError

from metareward.engines.base import EngineError
from metareward.errors import UserError
from metareward.seeds import derive
from metareward.types import Completion, Messages, Sampling, Step, TopLogprob

_MAX_REPLY_BYTES = 1 << 26
_CONNECT_TIMEOUT = 10.0
_MODELS_TIMEOUT = 30.0
_MAX_RETRY_AFTER = 7 * 86400.0  # a longer one is a mistake of the server
_MAX_TOP_LOGPROBS = 20  # OpenAI's limit
_MAX_MESSAGE = 300
_REPLACEMENT = "\ufffd"  # what a token with a part of a character reads as
_URL_FIX = "fix: write it as http://127.0.0.1:8000"


class TransientError(Exception):
    """A failure that may pass, in one line that names the server."""

    def __init__(self, line: str, server: str) -> None:
        super().__init__(line)
        self.server = server


class ThrottledError(TransientError):
    """The server wants fewer requests, and none for ``retry_after`` seconds (0: it names no time)."""

    def __init__(self, line: str, server: str, retry_after: float) -> None:
        super().__init__(line, server)
        self.retry_after = retry_after


class UnreachableError(TransientError):
    """There was no connection, so nothing was sent."""


class RefusedError(EngineError):
    """The server won't serve this request, however often it is sent."""

    def __init__(self, line: str, server: str, status: int) -> None:
        super().__init__(line)
        self.server = server
        self.status = status


def one_line(text: str, limit: int = _MAX_MESSAGE) -> str:
    """``text`` as one printable line: white space as one space, unprintable characters as "?", at most ``limit``."""
    flat = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text[: 20 * limit].split()))
    return flat if len(flat) <= limit else f"{flat[: limit - 1]}…"


def base_url(url: str) -> str:
    """``url`` with its version: ``/v1`` is added unless the path names one. Raises `UserError` if it is not valid."""
    try:
        parsed = httpx2.URL(url)
        path = parsed.path.rstrip("/")
        versioned = any(re.fullmatch(r"v\d\w*", part) for part in path.split("/"))
        base = parsed.copy_with(path=path if versioned else f"{path}/v1")
        parsed.host.encode("idna")
    except (httpx2.InvalidURL, ValueError) as error:
        raise UserError(f"base_urls: {one_line(url)} is no URL ({one_line(str(error))}); {_URL_FIX}") from None
    if parsed.userinfo:
        raise UserError(f"base_urls: {parsed.host} comes with a password; fix: put it into api_key_env's variable")
    port_exists = parsed.port is None or 0 < parsed.port < 1 << 16
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment or not port_exists:
        raise UserError(f"base_urls: {one_line(url)} is no base URL; {_URL_FIX}")
    return str(base)


def api_key(variable: str | None) -> str | None:
    """The key in this environment variable. Raises `UserError`, which never shows it, if it can't be used."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"api_key_env: the environment variable {variable} is not set; fix: put the API key into it")
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"api_key_env: {variable} holds characters that no API key has; fix: set it again")
    return key


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """The body of a request for ``n`` choices. The same conversation, sampling and number give the same bytes."""

    body: bytes
    n: int
    top_logprobs: int
    prompt_start: str

    @property
    def digest(self) -> str:
        """SHA-256 of the body: model, messages, sampling, seed and ``n``; neither the server nor the key."""
        return hashlib.sha256(self.body).hexdigest()

    @property
    def name(self) -> str:
        """What error messages call it."""
        return f'request {self.digest[:8]} ("{self.prompt_start}")'


def chat_request(model: str, messages: Messages, sampling: Sampling, n: int, first: int = 0) -> ChatRequest:
    """The request for choices ``first`` to ``first + n - 1``; its seed is that of the first."""
    fields: dict[str, object] = {
        "model": model,
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "n": n,
        "seed": derive(sampling.seed, first) >> 32,  # 31 bits: some servers read a signed 32-bit number
    }
    if sampling.top_logprobs:
        # One more, because vLLM puts the sampled token in the place of the last.
        wanted = max(sampling.top_logprobs, min(sampling.top_logprobs + 1, _MAX_TOP_LOGPROBS))
        fields |= {"logprobs": True, "top_logprobs": wanted}
    return ChatRequest(json.dumps(fields).encode(), n, sampling.top_logprobs, one_line(messages[-1].content, 40))


@dataclass(frozen=True, slots=True)
class Reply:
    """At most as many ``choices`` as were asked for, of the ``offered`` ones; ``filtered`` were cut by a filter.

    The token counts are the server's, for all that it offered.
    """

    choices: tuple[Completion, ...]
    offered: int
    filtered: int
    prompt_tokens: int
    completion_tokens: int


class Client:
    """Connections to the server at ``url``, a `base_url`."""

    def __init__(self, url: str, key: str | None, timeout: float) -> None:
        self.url = url
        self._key = key
        self._timeout = timeout
        self._http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(None, connect=min(timeout, _CONNECT_TIMEOUT)),
            limits=httpx2.Limits(max_connections=None),
            follow_redirects=False,
            trust_env=not _is_local(url),  # a proxy of the environment can't reach this machine's own servers
        )

    async def complete(self, request: ChatRequest) -> Reply:
        """The server's reply. Raises `TransientError` and its kinds, and `EngineError` for what is permanent."""
        content = {"Content-Type": "application/json"}
        status, raw, headers = await self._send("POST", "/chat/completions", self._timeout, content, request.body)
        if status != HTTPStatus.OK:
            raise self._error(status, raw, headers, request.name)
        try:
            return read_reply(raw, request.n, request.top_logprobs)
        except TransientError as error:
            raise TransientError(self._line(f"answered with {error}"), self.url) from None
        except EngineError as error:
            raise EngineError(self._line(f"{error}; {request.name}")) from None

    async def models(self) -> tuple[str, ...]:
        """The names of the models that the server lists; none if it doesn't list them.

        Raises `RefusedError` when it wants another key or address, and `UnreachableError` when there is no server.
        """
        try:
            # A connection of its own: some servers close one after an error, just as the next request is sent.
            close = {"Connection": "close"}
            status, raw, headers = await self._send("GET", "/models", min(self._timeout, _MODELS_TIMEOUT), close)
        except UnreachableError:
            raise
        except TransientError:
            return ()
        if status in (401, 403) or 300 <= status < 400:
            raise self._refusal(status, raw, headers, "the request for its models")
        try:
            return tuple(str(model["id"]) for model in json.loads(raw)["data"]) if status == HTTPStatus.OK else ()
        except (ValueError, KeyError, TypeError, RecursionError):
            return ()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _send(
        self, method: str, route: str, seconds: float, headers: Mapping[str, str], body: bytes | None = None
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """Status, body and headers of the response."""
        raw = bytearray()
        try:
            async with (
                asyncio.timeout(seconds),
                self._http.stream(method, self.url + route, content=body, headers=headers) as response,
            ):
                async for part in response.aiter_bytes():
                    raw += part
                    if len(raw) > _MAX_REPLY_BYTES:
                        limit = f"{_MAX_REPLY_BYTES >> 20} MiB"
                        raise TransientError(f"{self.url} sends a reply of more than {limit}", self.url)
                return response.status_code, bytes(raw), response.headers
        except TimeoutError:
            raise TransientError(f"{self.url} gave no whole reply within {seconds:g} s", self.url) from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise UnreachableError(self._line(f"can't be reached: {_cause(error)}"), self.url) from None
        except httpx2.RequestError as error:
            raise TransientError(self._line(f"broke off: {_cause(error)}"), self.url) from None

    def _error(self, status: int, raw: bytes, headers: Mapping[str, str], name: str) -> TransientError | RefusedError:
        wait = retry_after_seconds(headers.get("retry-after", ""))
        line = self._line(f"answered {_title(status)}: {_message(raw)}")
        if status == HTTPStatus.TOO_MANY_REQUESTS or (status >= 400 and wait is not None):
            return ThrottledError(line, self.url, wait or 0.0)
        if status == HTTPStatus.REQUEST_TIMEOUT or status >= 500:
            return TransientError(line, self.url)
        return self._refusal(status, raw, headers, name)

    def _refusal(self, status: int, raw: bytes, headers: Mapping[str, str], name: str) -> RefusedError:
        target = headers.get("location")
        said = f"redirect to {target}, which isn't followed" if target else _message(raw)
        return RefusedError(self._line(f"refused {name}: {_title(status)}: {said}"), self.url, status)

    def _line(self, text: str) -> str:
        return f"{self.url} {one_line(text.replace(self._key, '[key]') if self._key else text)}"


def retry_after_seconds(header: str) -> float | None:
    """The seconds of a Retry-After header, a number or a date; None when it is neither, or longer than a week."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if seconds <= _MAX_RETRY_AFTER else None  # NaN compares false


def _is_local(url: str) -> bool:
    host = httpx2.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _cause(error: httpx2.RequestError) -> str:
    """The operating system's own error if there is one: those above it only say that something failed."""
    lowest: BaseException = error
    below = error.__cause__
    while below is not None:
        lowest = below if isinstance(below, OSError) else lowest
        below = below.__cause__ or below.__context__
    return f"{type(lowest).__name__}: {lowest}" if str(lowest) else type(lowest).__name__


def _title(status: int) -> str:
    return f"{status} {HTTPStatus(status).phrase}" if status in set(HTTPStatus) else str(status)


def _message(raw: bytes) -> str:
    """The message of an error reply, from the fields that servers use, or else all of it."""
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        return raw.decode("utf-8", "replace")
    for field in ("error", "message", "detail"):
        if isinstance(said, dict) and field in said:
            said = said[field]
    return said if isinstance(said, str) else json.dumps(said)


class _Token(BaseModel):
    token: str
    raw: list[Annotated[int, Field(ge=0, le=255)]] | None = Field(None, alias="bytes")
    logprob: float
    top_logprobs: tuple[_Token, ...] = ()

    @property
    def text(self) -> str:
        # Where the bytes are no text by themselves, `token` may be a description of them.
        return bytes(self.raw).decode("utf-8", "replace") if self.raw else self.token


class _Choice(BaseModel):
    index: int = 0
    message: dict[str, Any]
    content: str | None = Field(None, validation_alias=AliasPath("message", "content"))
    refusal: str | None = Field(None, validation_alias=AliasPath("message", "refusal"))
    finish_reason: str | None = None
    tokens: list[_Token] | None = Field(None, validation_alias=AliasPath("logprobs", "content"))

    @property
    def text(self) -> str:
        return self.content or self.refusal or ""


class _Usage(BaseModel):
    prompt_tokens: NonNegativeInt = 0
    completion_tokens: NonNegativeInt


class _ChatCompletion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def read_reply(raw: bytes, n: int, top_logprobs: int) -> Reply:
    """The choices in the body of a reply to a request for ``n``.

    Raises `TransientError` for what is no whole chat completion, and `EngineError` for one without token counts, with
    an unknown finish_reason, or without readable log-probabilities although ``top_logprobs`` of them are needed.
    """
    reply = _parse(raw)
    choices = sorted(reply.choices, key=lambda choice: choice.index)
    endings = [_finish(choice) for choice in choices]
    counts = _token_counts(choices, reply.usage)
    completions = tuple(
        Completion(choice.text, ending, count, _steps(choice, top_logprobs) if top_logprobs else ())
        for choice, ending, count in list(zip(choices, endings, counts, strict=True))[:n]
    )
    filtered = sum(choice.finish_reason == "content_filter" for choice in choices[:n])
    return Reply(completions, len(choices), filtered, reply.usage.prompt_tokens if reply.usage else 0, sum(counts))


def _parse(raw: bytes) -> _ChatCompletion:
    try:
        # Half of a surrogate pair, from a server that cuts inside a character, becomes "?".
        whole = json.dumps(json.loads(raw), ensure_ascii=False).encode("utf-8", "replace")
        return _ChatCompletion.model_validate_json(whole)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise TransientError(f"no chat completion ({place}: {first['msg']}): {_message(raw)}", "") from None
    except (ValueError, RecursionError):
        text = raw.decode("utf-8", "replace")
        raise TransientError(f"no whole JSON ({len(raw)} bytes): {text}", "") from None


def _finish(choice: _Choice) -> Literal["stop", "length"]:
    """A text cut by a content filter counts as cut by length: one filtered choice must not cost the whole prompt."""
    reason = choice.finish_reason
    if reason == "stop":
        return "stop"
    if reason in ("length", "content_filter"):
        return "length"
    if reason in ("abort", "error"):
        raise TransientError(f"half a choice (finish_reason {reason!r})", "")
    raise EngineError(f"ends a choice with finish_reason {reason!r}; known are 'stop', 'length' and 'content_filter'")


def _token_counts(choices: Sequence[_Choice], usage: _Usage | None) -> list[int]:
    """Tokens of each choice: the server's count for a single one, the listed tokens, or its count split by length."""
    if usage and len(choices) == 1:
        return [usage.completion_tokens]
    if all(choice.tokens for choice in choices):
        return [len(choice.tokens or ()) for choice in choices]
    if usage is None:
        raise EngineError("counts no tokens (usage.completion_tokens)")
    lengths = [0, *accumulate(len(choice.text) + 1 for choice in choices)]  # + 1 for the end token
    ends = [round(usage.completion_tokens * length / lengths[-1]) for length in lengths]
    return [end - start for start, end in pairwise(ends)]


def _steps(choice: _Choice, top_logprobs: int) -> tuple[Step, ...]:
    tokens = choice.tokens or []
    if choice.text and not tokens:
        raise EngineError("gives no token probabilities (choices.logprobs.content), and this run needs them")
    texts = token_spans([token.text for token in tokens], choice.text)
    if texts is None:
        raise EngineError("gives token probabilities that do not spell its text")
    return tuple(Step(text, _best(token, top_logprobs)) for text, token in zip(texts, tokens, strict=False))


def _best(token: _Token, top_logprobs: int) -> tuple[TopLogprob, ...]:
    for each in token.top_logprobs:
        if not -1e5 < each.logprob < 0.1:  # a rounding error may lift one above 0
            raise EngineError(f"gives {each.logprob!r} as a log-probability")
    ranked = sorted(token.top_logprobs, key=lambda each: -each.logprob)
    return tuple(TopLogprob(each.text, each.logprob) for each in ranked[:top_logprobs])


def token_spans(tokens: Sequence[str], text: str) -> list[str] | None:
    """The part of ``text`` that each token wrote, up to the text's end; None when the tokens don't spell it.

    A character that several tokens make up belongs to the last of them. Tokens behind the text's end, such as the end
    token, are left out, and so is a space before the text, which some servers strip.
    """
    found = _token_spans(tokens, text)
    return _token_spans([tokens[0].lstrip(), *tokens[1:]], text) if found is None and tokens else found


def _token_spans(tokens: Sequence[str], text: str) -> list[str] | None:
    spans: list[str] = []
    at = 0
    pending = 0  # the most characters that the partial ones since `at` can come to
    for token in tokens:
        if at == len(text):
            return spans
        if _REPLACEMENT in token and not text.startswith(token, at):
            spans.append("")
            pending += len(token)
        elif token:
            start = text.find(token, at, at + pending + len(token))
            if start < 0:
                return None
            if pending:
                spans[-1] = text[at:start]
            spans.append(token)
            at, pending = start + len(token), 0
        else:
            spans.append("")
    if 0 < len(text) - at <= pending:
        spans[-1] = text[at:]
        at = len(text)
    return spans if at == len(text) else None
