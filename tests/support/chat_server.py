"""A real chat server on this machine that can be told to behave badly.

Its ``manner`` looks at each request (the JSON it was sent, and how many came before) and says what to answer. Well
behaved, it says a text that follows from the prompt, the seed and the choice's number.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """``body`` after ``seconds`` and ``event``; of one that is ``cut`` so many bytes come, then it ends or ``stalls``.

    ``raw`` is sent instead of head and body, and then the connection is closed; ``reset``: it is cut off without a
    farewell. ``pace``: seconds between two of twenty parts.
    """

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    cut: int | None = None
    stalls: bool = False
    raw: bytes | None = None
    reset: bool = False
    pace: float = 0.0
    event: asyncio.Event | None = None


_NO_LINGER = struct.pack("ii", 1, 0)
Manner = Callable[[Body, int], Answer]
HANG = Answer(b"", seconds=3600.0)
NO_ROUTE = Answer(b'{"detail":"Not Found"}', 404)


def text_of(body: Body, index: int) -> str:
    return f"{body['messages'][-1]['content']}: seed {body['seed']}, choice {index}"


def choice(text: str | None, index: int = 0, finish: str | None = "stop", **more: Any) -> Body:
    return {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": finish, **more}


def completion(*choices: Body, tokens: int = 5) -> bytes:
    usage = {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens}
    return json.dumps({"object": "chat.completion", "choices": choices, "usage": usage}).encode()


def good(body: Body, _: int = 0) -> Answer:
    return Answer(completion(*(choice(text_of(body, i), i) for i in range(body["n"]))))


def ignores_n(body: Body, _: int = 0) -> Answer:
    """One choice, whatever ``n`` says."""
    return Answer(completion(choice(text_of(body, 0))))


def error(status: int, message: str = "out of order", **headers: str) -> Answer:
    said = json.dumps({"error": {"message": message, "type": "test"}}).encode()
    return Answer(said, status, {name.replace("_", "-"): value for name, value in headers.items()})


def model_list(*names: str) -> Answer:
    return Answer(json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in names]}).encode())


class FakeChatServer:
    """``async with FakeChatServer(manner) as server``; ``bodies``, ``digests``, ``headers`` are of chat requests."""

    def __init__(self, manner: Manner = good, models: Answer = NO_ROUTE) -> None:
        self.manner = manner
        self.models = models
        self.bodies: list[Body] = []
        self.digests: list[str] = []
        self.headers: list[str] = []
        self.under_way = 0
        self.most_under_way = 0
        self.port = 0
        self.tls: ssl.SSLContext | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> FakeChatServer:
        await self.live()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.die()

    async def live(self) -> None:
        """Listen; the second time at the port of the first."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def die(self) -> None:
        """Cut all connections and listen no more, as a process that is killed."""
        self._server.close()
        for writer in self._connections:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hide(self) -> None:
        """Listen no more, and leave the connections."""
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections.add(writer)
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client went, or this server dies
        finally:
            writer.close()
            self._connections.discard(writer)
            self._tasks.discard(task)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        fields = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if line)
        raw = await reader.readexactly(int(fields.get("content-length", 0)))
        if head.startswith("GET "):
            return await self._write(writer, self.models)
        assert head.startswith("POST /v1/chat/completions ")
        body, place = json.loads(raw), len(self.bodies)
        self.bodies.append(body)
        self.digests.append(hashlib.sha256(raw).hexdigest())
        self.headers.append(head)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            return await self._write(writer, self.manner(body, place))
        finally:
            self.under_way -= 1

    async def _write(self, writer: asyncio.StreamWriter, answer: Answer) -> bool:
        await asyncio.sleep(answer.seconds)
        if answer.event is not None:
            await answer.event.wait()
        if answer.raw is not None or answer.reset:
            writer.write(answer.raw or b"")
            await writer.drain()
            if answer.reset:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                writer.transport.abort()
            return False
        lines = [
            f"HTTP/1.1 {answer.status} So",
            f"Content-Length: {len(answer.body)}",
            "Content-Type: application/json",
        ]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        whole = "\r\n".join([*lines, "", ""]).encode() + answer.body[: answer.cut]
        size = -(-len(whole) // 20) if answer.pace else len(whole)
        for start in range(0, len(whole), size):
            writer.write(whole[start : start + size])
            await writer.drain()
            if answer.pace:
                await asyncio.sleep(answer.pace)
        if answer.stalls:
            await asyncio.sleep(3600.0)
        return answer.cut is None


@contextmanager
def served_beside(manner: Manner = good, models: Answer = NO_ROUTE) -> Iterator[FakeChatServer]:
    """A server in a thread of its own, for code that starts its own event loop, such as a command."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def call(work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result(10)

    server = FakeChatServer(manner, models)
    call(server.live())
    try:
        yield server
    finally:
        call(server.die())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


class Troubled:
    """``manner``, but the first request with each body gets one of ``troubles`` in turn, which all pass."""

    troubles = (
        error(429, "slow down", retry_after="0.01"),
        error(500, "out of memory"),
        Answer(completion(choice("half of a reply")), cut=40),
        error(503, "loading", retry_after="0.01"),
    )

    def __init__(self, manner: Manner, every: int = 1) -> None:
        self._manner = manner
        self._every = every
        self._seen: set[str] = set()
        self.given = 0

    def __call__(self, body: Body, place: int) -> Answer:
        key = json.dumps(body)
        if key in self._seen:
            return self._manner(body, place)
        self._seen.add(key)
        if len(self._seen) % self._every:
            return self._manner(body, place)
        self.given += 1
        return self.troubles[self.given % len(self.troubles)]


class TokenBucket:
    """Answers ``rate`` requests a second and bursts of ``burst``; others get ``status`` with ``headers``."""

    def __init__(self, rate: float, burst: float, manner: Manner = good, status: int = 429, **headers: str) -> None:
        self.rate = rate
        self.answered = 0
        self.rejections: list[float] = []
        self._burst = self._tokens = burst
        self._manner = manner
        self._rejection = error(status, "slow down", **headers)
        self._last = time.monotonic()

    def __call__(self, body: Body, place: int) -> Answer:
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._last) * self.rate)
        self._last = now
        if self._tokens < 1:
            self.rejections.append(now)
            return self._rejection
        self._tokens -= 1
        self.answered += 1
        return self._manner(body, place)

    def best_seconds(self) -> float:
        """The least time in which this many requests can be answered."""
        return (self.answered - self._burst) / self.rate
