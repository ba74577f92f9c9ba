"""Manners of rude servers, as a table: what each does, and what must become of prompts that are asked of it.

Every server is a `FakeChatServer` whose good answers are those of a scripted model. Its rudeness is one of

    passes     the first attempt at every few requests gets the trouble: all prompts are finished
    refuses    the prompts of every tenth country get it always: these fail, with their cause, and no others
    dies       after so many requests all get it: the run stops in one line, and goes on with a good server
    shows      all requests get it and nothing is lost by it: all prompts are finished

and the records of finished prompts are the same as with a server that behaves, but where `Rude.others` says so.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from chat_server import HANG, Answer, Body, Manner, choice, completion, error
from openai_setup import scripted_answer

KEY = "sk-canary-7f3a9c1e5b2d8046"
EVERY = 7  # requests with the trouble, of those that pass
_COUNTRY = re.compile(r"country (\d+)\?")

Kind = Literal["passes", "refuses", "dies", "shows"]
Trouble = Callable[[Body], Answer]


@dataclass(frozen=True)
class Rude:
    """A manner. ``long``: it takes minutes with default settings, by the time limits of requests and of patience.

    ``others``: its records are others, as it is asked for one choice at a time, whose seeds are others, or counts the
    tokens of more than it was asked for.
    """

    name: str
    kind: Kind
    trouble: Trouble
    long: bool = False
    others: bool = False
    expected: bool = False  # scores are expected ones, so that log-probabilities are asked for

    def manner(self, dies_after: int) -> Manner:
        """A server's behaviour from its first request on; one that dies does so after so many requests."""
        seen: set[str] = set()

        def answer(body: Body, place: int) -> Answer:
            key = json.dumps(body)
            fresh = key not in seen
            seen.add(key)
            rude = {
                "passes": fresh and len(seen) % EVERY == 0,
                "refuses": refused(body),
                "dies": place >= dies_after,
                "shows": True,
            }[self.kind]
            return self.trouble(body) if rude else good_answer(body)

        return answer


def refused(body: Body) -> bool:
    """Whether the request is about a country that servers refuse."""
    found = _COUNTRY.search(json.dumps(body["messages"]))
    return found is not None and int(found[1]) % 10 == 3


def good_answer(body: Body) -> Answer:
    """The scripted model's, with log-probabilities if they are asked for."""
    answer = scripted_answer(body)
    if not body.get("logprobs"):
        return replace(answer, seconds=0.0)
    reply = json.loads(answer.body)
    for each in reply["choices"]:
        each["logprobs"] = {"content": _tokens(each["message"]["content"], -0.5)}
    return Answer(json.dumps(reply).encode())


def _tokens(text: str, logprob: Any) -> list[dict[str, Any]]:
    """One token for each character, which is its only alternative."""
    return [
        {"token": letter, "logprob": logprob, "top_logprobs": [{"token": letter, "logprob": logprob}]}
        for letter in text
    ]


# --- what a reply can be ---


def _always(answer: Answer) -> Trouble:
    return lambda _: answer


def _body(raw: bytes, **more: Any) -> Trouble:
    return _always(Answer(raw, **more))


def _changed(change: Callable[[dict[str, Any]], object]) -> Trouble:
    """The good reply, changed in place."""

    def trouble(body: Body) -> Answer:
        reply = json.loads(good_answer(body).body)
        change(reply)
        return Answer(json.dumps(reply).encode())

    return trouble


def _text_instead(old: str, new: str) -> Trouble:
    """The good reply with one text of its JSON replaced by what JSON can't say."""
    return lambda body: Answer(good_answer(body).body.replace(old.encode(), new.encode(), 1))


def _each_choice(**fields: Any) -> Trouble:
    return _changed(lambda reply: [each.update(fields) for each in reply["choices"]])


def _each_message(**fields: Any) -> Trouble:
    return _changed(lambda reply: [each["message"].update(fields) for each in reply["choices"]])


def _logprob(value: str) -> Trouble:
    return lambda body: Answer(good_answer(body).body.replace(b"-0.5", value.encode()))


def _whole(body: Body) -> bytes:
    reply = good_answer(body).body
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(reply), reply)


def _raw(raw: bytes) -> Trouble:
    return _always(Answer(b"", raw=raw))


def _says_the_key(status: int, **headers: str) -> Trouble:
    return _always(error(status, f"Incorrect API key provided: Bearer {KEY}", **headers))


def _echoes_the_key(body: Body) -> Answer:
    return Answer(completion(*(choice(f"Your key is {KEY}. Score: 5", at) for at in range(body["n"]))))


_BOMB = gzip.compress(bytes((64 << 20) + 1), 1)
_NOISE = random.Random(1).randbytes(4000)

TRANSIENT: dict[str, Trouble] = {
    "500": _always(error(500)),
    "502 in HTML": _body(b"<html>\r\n<h1>Bad\x07 gateway \x1b[2J</h1>", status=502),
    "503": _always(error(503, "loading")),
    "504 without a body": _body(b"", status=504),
    "408": _always(error(408)),
    "529": _always(error(529, "overloaded")),
    "599": _always(error(599)),
    "429": _always(error(429, "slow down")),
    "429, Retry-After 0.2": _always(error(429, retry_after="0.2")),
    "429, Retry-After below zero": _always(error(429, retry_after="-3")),
    "429, Retry-After not a number": _always(error(429, retry_after="nan")),
    "429, Retry-After 1e308": _always(error(429, retry_after="1e308")),
    "429, Retry-After in words": _always(error(429, retry_after="soon, I hope")),
    "429, Retry-After in the past": _always(error(429, retry_after="Wed, 21 Oct 2015 07:28:00 GMT")),
    "429, Retry-After on day 10^20": _always(error(429, retry_after=f"Wed, 1{'0' * 20} Oct 2115 07:28:00 GMT")),
    "503, Retry-After 0": _always(error(503, retry_after="0")),
    "nothing": _body(b""),
    "half a reply": _body(completion(choice("half of a reply")), cut=60),
    "cut off before the body": _body(completion(choice("none of it")), cut=0),
    "closed without an answer": _raw(b""),
    "reset": _always(Answer(b"", reset=True)),
    "reset in mid-reply": _always(Answer(b"", raw=b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", reset=True)),
    "half a JSON": _body(completion(choice("half"))[:50]),
    "bytes": _body(_NOISE),
    "bytes instead of HTTP": _raw(_NOISE),
    "a JSON 100,000 deep": _body(b"[" * 100_000),
    "a list": _body(b"[]"),
    "null": _body(b"null"),
    "UTF-16": _body(completion(choice("wide")).decode().encode("utf-16")),
    "text that is no UTF-8": lambda body: Answer(good_answer(body).body.replace(b"assistant", b"assist\xff\xfe", 1)),
    "no choices": _changed(lambda reply: reply.update(choices=[])),
    "choices null": _changed(lambda reply: reply.update(choices=None)),
    "choices that are texts": _changed(lambda reply: reply.update(choices=["Paris."])),
    "an error called 200": _body(b'{"error": {"message": "upstream is down"}}'),
    "an aborted choice": _each_choice(finish_reason="abort"),
    "no finish reason": _each_choice(finish_reason=None),
    "an index in words": _each_choice(index="first"),
    "no message": _changed(lambda reply: [each.pop("message") for each in reply["choices"]]),
    "a message that is a text": _each_choice(message="Paris."),
    "content that is a number": _each_message(content=5),
    "content in parts": _each_message(content=[{"type": "text", "text": "Paris."}]),
    "tokens below zero": _changed(lambda reply: reply["usage"].update(completion_tokens=-5)),
    "tokens in words": _changed(lambda reply: reply["usage"].update(completion_tokens="many")),
    "infinitely many tokens": _text_instead('"completion_tokens": 5', '"completion_tokens": 1e999'),
    "HTTP/9.9": _raw(b"HTTP/9.9 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
    "a status in words": _raw(b"HTTP/1.1 FINE OK\r\nContent-Length: 2\r\n\r\n{}"),
    "a length that is too long": _raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n{}"),
    "a length below zero": _raw(b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}"),
    "two lengths": _raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 9\r\n\r\n{}"),
    "a chunk of size x": _raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n{}\r\n"),
    "chunks without end": _raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"),
    "a header of 200 KB": _raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\nContent-Length: 2\r\n\r\n{}"),
    "5,000 headers": _raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000 + b"Content-Length: 2\r\n\r\n{}"),
    "a NUL in a header": _raw(b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\n{}"),
    "gzip that is none": _body(b"plain", headers={"Content-Encoding": "gzip"}),
    "deflate that is none": _body(_NOISE, headers={"Content-Encoding": "deflate"}),
    "an unknown encoding": _body(_NOISE, headers={"Content-Encoding": "x-secret"}),
    "the key in a 500": _says_the_key(500),
    "the key in a 429": _says_the_key(429),
    "the key in a reason phrase": _raw(f"HTTP/1.1 500 Bearer {KEY}\r\nContent-Length: 0\r\n\r\n".encode()),
    "the key in garbage": _body(f"<b>{KEY}</b>".encode()),
}

PERMANENT: dict[str, Trouble] = {
    **{str(status): _always(error(status, "no\n\x1b[31mway")) for status in (400, 401, 403, 404, 405, 413, 418, 422)},
    "204": _body(b"", status=204),
    "206": lambda body: replace(good_answer(body), status=206),
    "300": _body(b"", status=300),
    "301 to itself": _always(error(301, location="/v1/chat/completions")),
    "307 elsewhere": _always(error(307, location="http://elsewhere.example/v1/chat/completions")),
    "308 to another protocol": _always(error(308, location="file:///etc/passwd")),
    "302 with the key": _always(error(302, location=f"http://elsewhere.example/?key={KEY}")),
    "the key in a 401": _says_the_key(401),
    "the key in a 400": _says_the_key(400),
    "the key in the answer": _echoes_the_key,
    "no token counts": _changed(lambda reply: reply.pop("usage")),
}

LOGPROBS: dict[str, Trouble] = {
    "a log-probability of 1e308": _logprob("1e308"),
    "a log-probability of Infinity": _logprob("Infinity"),
    "a log-probability of -Infinity": _logprob("-Infinity"),
    "a log-probability of NaN": _logprob("NaN"),
    "a log-probability of 3": _logprob("3"),
    "a log-probability in words": _logprob('"likely"'),
    "no log-probabilities": _each_choice(logprobs=None),
    "tokens of another text": _changed(
        lambda reply: [each.update(logprobs={"content": _tokens("Other.", -0.5)}) for each in reply["choices"]]
    ),
}

SHOWN: dict[str, Trouble] = {
    "choices in the wrong order": _changed(lambda reply: reply["choices"].reverse()),
    "fields that nobody knows": _changed(lambda reply: reply.update(x={"y": [None] * 100}, id=5)),
    "a cookie of 3 KB": lambda body: replace(good_answer(body), headers={"Set-Cookie": f"a={'x' * 3000}"}),
    "ten times 100 Continue": lambda body: Answer(b"", raw=b"HTTP/1.1 100 Continue\r\n\r\n" * 10 + _whole(body)),
    "closed after each answer": lambda body: Answer(b"", raw=_whole(body)),
    "more bytes than it says": lambda body: Answer(b"", raw=_whole(body) + _NOISE),
    "twenty parts, slowly": lambda body: replace(good_answer(body), pace=0.02),
    "2 s for each answer": lambda body: replace(good_answer(body), seconds=2.0),
    "a text of one choice": lambda body: Answer(json.dumps(_first_choice(body)).encode()),
    "refuses several choices": lambda body: error(400, "n must be 1") if body["n"] > 1 else good_answer(body),
    "a choice too many": _changed(lambda reply: reply["choices"].append(choice("extra", 99))),
}


def _first_choice(body: Body) -> dict[str, Any]:
    reply: dict[str, Any] = json.loads(good_answer(body).body)
    return reply | {"choices": reply["choices"][:1]}


RUDE: tuple[Rude, ...] = (
    *(Rude(name, "passes", trouble) for name, trouble in TRANSIENT.items()),
    *(Rude(name, "refuses", trouble) for name, trouble in PERMANENT.items()),
    *(Rude(name, "refuses", trouble, expected=True) for name, trouble in LOGPROBS.items()),
    *(
        Rude(name, "shows", trouble, others="one choice" in name or "several" in name or "too many" in name)
        for name, trouble in SHOWN.items()
    ),
    Rude("a reply without end", "passes", _body(_BOMB, headers={"Content-Encoding": "gzip"})),
    Rude("hangs", "passes", _always(HANG), long=True),
    Rude("hangs in mid-reply", "passes", _body(completion(choice("slow")), cut=40, stalls=True), long=True),
    Rude("from then on 500", "dies", _always(error(500)), long=True),
    Rude("from then on 401", "dies", _always(error(401, "the key has expired"))),
    Rude("from then on 429", "dies", _always(error(429)), long=True),
    Rude("from then on back tomorrow", "dies", _always(error(429, retry_after="86400"))),
    Rude("from then on garbage", "dies", _body(_NOISE), long=True),
    Rude("from then on closed", "dies", _always(Answer(b"", reset=True)), long=True),
)
