"""One OpenAI-compatible server: chat requests, replies read strictly, and errors by what to do about them.

    `TransientError`    try again: 408, 5xx, a broken connection, a timeout, garbage, half a reply
    `ThrottledError`    send again later, not a failed attempt: 429, or any error status with Retry-After
    `UnreachableError`  no connection, so nothing was sent
    `RequestError`      itself: permanent, any other status or a reply without what is needed

The API key is in the client's headers and nowhere else; it is removed from what the server says.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal

import httpx2
from pydantic import AliasPath, BaseModel, Field, ValidationError

from metareward.engines.base import EngineError, LogprobsUnavailableError
from metareward.engines.openai.choices import ChoiceField, choice_fields, continuation_fields, read_choice
from metareward.errors import UserError
from metareward.seeds import derive
from metareward.text import one_line
from metareward.types import Completion, Messages, Sampling, Step, TopLogprob

_MAX_REPLY_BYTES = 64 << 20  # a reply without end must not fill the memory
_READ_HEADERS = ("retry-after", "location")
_CONNECT_TIMEOUT = 10.0
_MODELS_TIMEOUT = 30.0
_MAX_RETRY_AFTER = 7 * 86400.0  # a longer one is a mistake of the server
_SECRET_LENGTH = 12  # characters: shorter keys, such as EMPTY, are no secrets, and answers may have them
_MAX_TOP_LOGPROBS = 20  # OpenAI's limit
_MOST_PLACES = 1000  # a model that writes so many parts of characters writes nothing else
_PIECES = re.compile("\ufffd|[^\ufffd]+")
_REPLACEMENT = "\ufffd"  # what a token with a part of a character reads as
# A proxy of the environment can't reach this machine's own servers.
_NO_PROXY = dict.fromkeys(("all://localhost", "all://127.0.0.1", "all://[::1]"))


class RequestError(EngineError):
    """A request that failed, in one line that names the server. ``status``: 0 unless the server refused it."""

    def __init__(self, line: str, server: str, status: int = 0, retry_after: float = 0.0) -> None:
        super().__init__(line)
        self.server = server
        self.status = status
        self.retry_after = retry_after


class LogprobsRequestError(RequestError, LogprobsUnavailableError):
    """The server gives no log-probabilities: it refuses to, or leaves them out."""


class TransientError(RequestError):
    """A failure that may pass."""


class UnreachableError(TransientError):
    """There was no connection, so nothing was sent."""


class ThrottledError(TransientError):
    """The server wants fewer requests, and none for ``retry_after`` seconds (0: it names no time)."""


def base_url(url: str) -> str:
    """``url`` with its version: ``/v1`` is added unless the path names one. Raises `UserError` if it is not valid."""
    shown = re.sub(r"//.*@", "//", one_line(url))  # without a password
    try:
        parsed = httpx2.URL(url)
        parsed.host.encode("idna")
        is_base = parsed.scheme in ("http", "https") and parsed.host and not (parsed.query or parsed.fragment)
        if parsed.userinfo or not is_base or not 0 < (parsed.port or 80) < 1 << 16:
            raise ValueError("more or less than protocol, host, port and path")
        path = parsed.path.rstrip("/")
        versioned = any(re.fullmatch(r"v\d\w*", part) for part in path.split("/"))
        return str(parsed.copy_with(path=path if versioned else f"{path}/v1"))
    except (httpx2.InvalidURL, ValueError) as error:
        fix = "write it as http://127.0.0.1:8000, and a password into api_key_env's variable"
        raise UserError(f"base_urls: {shown} is no base URL ({one_line(str(error))}); fix: {fix}") from None


def api_key(variable: str | None) -> str | None:
    """The key in this environment variable. Raises `UserError`, which never shows it, if it can't be used."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not (key and key.isascii() and key.isprintable()):
        problem = "holds characters that no API key has" if key else "is not set"
        raise UserError(f"api_key_env: the environment variable {variable} {problem}; fix: put the API key into it")
    return key


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """The body of a request for ``n`` completions. The same conversation, sampling and number give the same bytes.

    ``choices``: the texts that a completion is among, sent in the field ``choice_field``; without any, it is None.
    """

    body: bytes
    n: int
    top_logprobs: int
    prompt_start: str
    choices: tuple[str, ...] = ()
    choice_field: ChoiceField | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the body: model, messages, sampling, seed and ``n``; neither the server nor the key."""
        return hashlib.sha256(self.body).hexdigest()

    @property
    def name(self) -> str:
        """What error messages call it."""
        return f'request {self.digest[:8]} ("{self.prompt_start}")'


def chat_request(
    model: str,
    messages: Messages,
    sampling: Sampling,
    n: int,
    first: int = 0,
    choice_field: ChoiceField | None = None,
) -> ChatRequest:
    """The request for completions ``first`` to ``first + n - 1``; its seed is that of the first.

    ``choice_field`` is needed if ``sampling`` has choices, and not used otherwise.
    """
    sent, choices = messages, sampling.choices
    if choices and choice_field is not None:
        sent, constraint = choice_fields(messages, choices, choice_field)
    else:
        constraint = continuation_fields(messages)
    fields: dict[str, object] = {
        "model": model,
        "messages": [{"role": message.role, "content": message.content} for message in sent],
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
    body, start = json.dumps(fields | constraint).encode(), one_line(messages[-1].content, 40)
    return ChatRequest(body, n, sampling.top_logprobs, start, choices, choice_field if choices else None)


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


@lru_cache(maxsize=1)
def _certificates() -> ssl.SSLContext:
    """The certificates that are trusted. Loading them takes longer than anything else that a client needs."""
    return httpx2.create_ssl_context()


class Client:
    """Connections to the server at ``url``, a `base_url`."""

    def __init__(self, url: str, key: str | None, timeout: float) -> None:
        self.url = url
        self._key = key
        self._timeout = timeout
        self._http = httpx2.AsyncClient(
            headers={"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=httpx2.Timeout(None, connect=min(timeout, _CONNECT_TIMEOUT)),
            limits=httpx2.Limits(max_connections=None),
            mounts=_NO_PROXY,
            verify=_certificates(),
        )
        self.aclose = self._http.aclose

    async def complete(self, request: ChatRequest) -> Reply:
        """The server's reply. Raises `TransientError` and its kinds, and `RequestError` for what is permanent."""
        response = await self._send("POST", "/chat/completions", self._timeout, content=request.body)
        if response.status_code != httpx2.codes.OK:
            error = self._error(response, request.name)
            if request.top_logprobs and error.status in (400, 422) and "logprob" in str(error).lower():
                raise LogprobsRequestError(str(error), self.url, error.status)
            raise error
        try:
            reply = read_reply(response.content, request.n, request.top_logprobs)
            if self._key and len(self._key) >= _SECRET_LENGTH and any(self._key in each.text for each in reply.choices):
                raise EngineError("repeats the API key in its answer, which is not stored")
            if request.choice_field is None:
                return reply
            if refused := [each.text for each in reply.choices if each.refused]:
                raise EngineError(f"refuses to choose: {refused[0] or 'content_filter'}")
            chosen = (read_choice(each, request.choices, request.choice_field) for each in reply.choices)
            return replace(reply, choices=tuple(chosen))
        except ValueError as error:
            raise TransientError(self._line(f"answered with {error}"), self.url) from None
        except EngineError as error:
            kind = LogprobsRequestError if isinstance(error, LogprobsUnavailableError) else RequestError
            raise kind(self._line(f"{error}; {request.name}"), self.url) from None
        except Exception as error:  # a reply that finds a bug fails its request, and nothing else
            said = f"answered what can't be read ({type(error).__name__}: {error})"
            raise TransientError(self._line(said), self.url) from None

    async def models(self) -> tuple[str, ...]:
        """The names of the models that the server lists; none if it doesn't list them.

        Raises `RequestError` when it wants another key or address, and `UnreachableError` when there is no server.
        """
        try:
            # A connection of its own: some servers close one after an error, just as the next request is sent.
            seconds = min(self._timeout, _MODELS_TIMEOUT)
            response = await self._send("GET", "/models", seconds, headers={"Connection": "close"})
        except UnreachableError:
            raise
        except TransientError:
            return ()
        if response.status_code in (401, 403) or response.is_redirect:
            raise self._error(response, "the request for its models")
        try:
            return tuple(str(model["id"]) for model in response.json()["data"]) if response.is_success else ()
        except (ValueError, KeyError, TypeError, RecursionError):
            return ()

    async def _send(self, method: str, route: str, seconds: float, **options: Any) -> httpx2.Response:
        try:
            async with asyncio.timeout(seconds), self._http.stream(method, self.url + route, **options) as response:
                body = bytearray()
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > _MAX_REPLY_BYTES:
                        limit = f"{_MAX_REPLY_BYTES >> 20} MiB"
                        raise TransientError(f"{self.url} sends a reply of more than {limit}", self.url)
                headers = {name: response.headers[name] for name in _READ_HEADERS if name in response.headers}
                return httpx2.Response(response.status_code, headers=headers, content=bytes(body))
        except TimeoutError:
            raise TransientError(f"{self.url} gave no whole reply within {seconds:g} s", self.url) from None
        except RequestError:
            raise
        except httpx2.RequestError as error:
            # The operating system's own error says more than those above it.
            cause: BaseException = error
            below = error.__cause__
            while below:
                cause = below if isinstance(below, OSError) else cause
                below = below.__cause__ or below.__context__
            said = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
            if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
                raise UnreachableError(self._line(f"can't be reached: {said}"), self.url) from None
            raise TransientError(self._line(f"broke off: {said}"), self.url) from None
        except Exception as error:  # such as of a library, about bytes that are no HTTP
            raise TransientError(self._line(f"broke off: {type(error).__name__}: {error}"), self.url) from None

    def _error(self, response: httpx2.Response, name: str) -> RequestError:
        status, wait = response.status_code, retry_after_seconds(response.headers.get("retry-after", ""))
        title = f"{status} {httpx2.codes.get_reason_phrase(status)}".strip()
        line = self._line(f"answered {title}: {_message(response.content)}")
        if status == httpx2.codes.TOO_MANY_REQUESTS or (status >= 400 and wait is not None):
            return ThrottledError(line, self.url, status, wait or 0.0)
        if status == httpx2.codes.REQUEST_TIMEOUT or status >= 500:
            return TransientError(line, self.url)
        target = response.headers.get("location")
        said = f"redirect to {target}, which isn't followed" if target else _message(response.content)
        return RequestError(self._line(f"refused {name}: {title}: {said}"), self.url, status)

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


def _message(raw: bytes) -> str:
    """The message of an error reply, from the fields that servers use, or else all of it."""
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        return raw.decode("utf-8", "replace")
    for field in ("error", "message", "detail"):
        said = said.get(field, said) if isinstance(said, dict) else said
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
    finish_reason: Literal["stop", "length", "content_filter"]
    tokens: list[_Token] | None = Field(None, validation_alias=AliasPath("logprobs", "content"))

    @property
    def text(self) -> str:
        return self.content or self.refusal or ""

    @property
    def refused(self) -> bool:
        return not self.content and (bool(self.refusal) or self.finish_reason == "content_filter")


_Count = Annotated[int, Field(ge=0, le=10**12)]


class _Usage(BaseModel):
    prompt_tokens: _Count = 0
    completion_tokens: _Count


class _ChatCompletion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def read_reply(raw: bytes, n: int, top_logprobs: int) -> Reply:
    """The choices in the body of a reply to a request for ``n``.

    A text cut by a content filter counts as cut by length: one filtered choice must not cost the whole prompt. Tokens
    of each choice: the server's count for a single one, the listed tokens, or the server's count split by length.
    Raises `ValueError` for what is no whole chat completion, and `EngineError` for one without token counts, or without
    readable log-probabilities although ``top_logprobs`` of them are needed.
    """
    try:
        reply = _ChatCompletion.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or f"{len(raw)} bytes"
        raise ValueError(f"no chat completion ({place}: {first['msg']}): {_message(raw)}") from None
    choices = sorted(reply.choices, key=lambda choice: choice.index)
    if reply.usage and len(choices) == 1:
        counts = [reply.usage.completion_tokens]
    elif all(choice.tokens for choice in choices):
        counts = [len(choice.tokens or ()) for choice in choices]
    elif reply.usage:
        lengths = [0, *accumulate(len(choice.text) + 1 for choice in choices)]  # + 1 for the end token
        ends = [round(reply.usage.completion_tokens * length / lengths[-1]) for length in lengths]
        counts = [end - start for start, end in pairwise(ends)]
    else:
        raise EngineError("counts no tokens (usage.completion_tokens)")
    completions = tuple(
        Completion(
            choice.text,
            "stop" if choice.finish_reason == "stop" else "length",
            count,
            _steps(choice, top_logprobs) if top_logprobs and not choice.refused else (),
            choice.refused,
        )
        for choice, count in zip(choices[:n], counts, strict=False)
    )
    filtered = sum(choice.finish_reason == "content_filter" for choice in choices[:n])
    return Reply(completions, len(choices), filtered, reply.usage.prompt_tokens if reply.usage else 0, sum(counts))


def _steps(choice: _Choice, top_logprobs: int) -> tuple[Step, ...]:
    tokens = choice.tokens or []
    if choice.text and not tokens:
        raise LogprobsUnavailableError(
            "gives no token probabilities (choices.logprobs.content), and this run needs them"
        )
    texts = token_spans([token.text for token in tokens], choice.text)
    if texts is None:
        raise EngineError("gives token probabilities that do not spell its text")
    steps = []
    for text, token in zip(texts, tokens, strict=False):
        for each in token.top_logprobs:
            if not -1e5 < each.logprob < 0.1:  # a rounding error may lift one above 0
                raise EngineError(f"gives {each.logprob!r} as a log-probability")
        best = sorted(token.top_logprobs, key=lambda each: -each.logprob)[:top_logprobs]
        steps.append(Step(text, tuple(TopLogprob(each.text, each.logprob) for each in best)))
    return tuple(steps)


def token_spans(tokens: Sequence[str], text: str) -> list[str] | None:
    """The part of ``text`` that each token wrote, up to the text's end; None when the tokens don't spell it.

    A character that several tokens make up belongs to the last of them. Tokens behind the text's end, such as the end
    token, are left out, and so is a space before the text, which some servers strip.
    """
    found = _spans(tokens, text)
    if found is None and tokens and not text.startswith(tokens[0]):
        found = _spans([tokens[0].lstrip(), *tokens[1:]], text)
    return found


def _spans(tokens: Sequence[str], text: str) -> list[str] | None:
    """`token_spans` for the tokens as they are.

    A token with only a part of a character doesn't tell how far in the text it ends, so all places are followed that
    the tokens so far can have come to.
    """
    reached = [0]
    before: list[list[tuple[str, list[int]]]] = []  # for each token its pieces, each with the places before it
    partial = False
    for token in tokens:
        if reached == [len(text)]:
            break
        steps, now = [], reached
        # Some servers give the rest of a character as "".
        for piece in _PIECES.findall(token or (_REPLACEMENT if partial else "")):
            partial = piece == _REPLACEMENT
            steps.append((piece, now))
            further = [at + len(piece) for at in now if (at < len(text) if partial else text.startswith(piece, at))]
            now = sorted({*now, *further}) if partial else further
        if not now or len(now) > _MOST_PLACES:
            break
        before.append(steps)
        reached = now
    if reached[-1] < len(text):
        return None
    starts, at = [len(text)], len(text)
    for steps in reversed(before):
        for piece, possible in reversed(steps):
            at -= len(piece) if piece != _REPLACEMENT or at - 1 in possible else 0
        starts.append(at)
    return [text[start:stop] for start, stop in pairwise(reversed(starts))]
