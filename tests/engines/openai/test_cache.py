"""The cache of replies: what was answered is never asked again, also after a kill."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, Body, FakeChatServer, Manner, choice, completion, error, good, ignores_n
from openai_setup import HOT, ask, engine_for, texts
from scripted_models import here

from metareward.engines.base import EngineError
from metareward.engines.openai.engine import CACHE_FILE
from metareward.errors import UserError
from metareward.storage.store import RecordStore
from metareward.types import Completion, Messages, Sampling

Ask = tuple[Messages, Sampling, int]


def asked(
    manner: Manner, cache: Path, *requests: Ask, **changes: Any
) -> tuple[list[Sequence[Completion]], FakeChatServer, int]:
    """The completions of these requests, made one after the other; the server; and the cache hits."""

    async def scene() -> tuple[list[Sequence[Completion]], FakeChatServer, int]:
        async with FakeChatServer(manner) as server, engine_for(server, cache_dir=str(cache), **changes) as engine:
            written = [await engine.complete(*request) for request in requests]
            return written, server, engine.usage.cache_hits

    return asyncio.run(scene())


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "new" / "cache"


REQUESTS: tuple[Ask, ...] = tuple((ask(f"question {i}"), HOT, n) for i, n in enumerate((1, 3, 2)))


@pytest.mark.parametrize("manner", [good, ignores_n])
def test_the_second_time_nothing_is_sent(cache: Path, manner: Manner) -> None:
    written, server, hits = asked(manner, cache, *REQUESTS)
    assert len(server.bodies) >= 3 and hits == 0
    again, server, hits = asked(manner, cache, *REQUESTS)
    assert server.bodies == [] and hits >= 3
    assert again == written


def test_whatever_bears_on_the_text_is_asked_anew(cache: Path) -> None:
    asked(good, cache, (ask(), HOT, 2))
    others: list[Ask] = [
        (ask("something else"), HOT, 2),
        (ask(), HOT, 3),
        *(
            (ask(), replace(HOT, **change), 2)
            for change in ({"seed": 1}, {"temperature": 0.5}, {"top_p": 0.5}, {"max_tokens": 9})
        ),
    ]
    _, server, hits = asked(good, cache, *others)
    assert len(server.bodies) == 6 and hits == 0
    _, server, hits = asked(good, cache, (ask(), HOT, 2), model="another")
    assert len(server.bodies) == 1


def test_steps_and_endings_are_kept(cache: Path) -> None:
    def told(_: Body, place: int) -> Answer:
        assert place == 0
        top = [{"token": "5", "logprob": -0.25}, {"token": "4", "logprob": -2.0}]
        content = [{"token": "5", "logprob": -0.25, "top_logprobs": top}]
        return Answer(completion(choice("5", finish="length", logprobs={"content": content})))

    request = (ask(), replace(HOT, top_logprobs=2), 1)
    (first, again), server, _ = asked(told, cache, request, request)
    assert first == again and len(first[0].steps[0].top_logprobs) == 2 and first[0].finish == "length"
    assert (server.bodies[0]["logprobs"], server.bodies[0]["top_logprobs"]) == (True, 3)


def test_what_failed_is_not_kept_and_its_siblings_are(cache: Path) -> None:
    """One of three single choices fails: the others are paid for, so only it is asked again."""

    def third_fails(body: Body, place: int) -> Answer:
        return error(400, "no") if place == 2 else replace(ignores_n(body), seconds=0.05)

    with pytest.raises(EngineError, match="no"):
        asked(third_fails, cache, (ask(), HOT, 3))
    (written,), server, _ = asked(ignores_n, cache, (ask(), HOT, 3))
    assert len(set(texts(written))) == 3
    assert [body["n"] for body in server.bodies] == [1]


def test_a_file_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    path = tmp_path / CACHE_FILE
    path.write_text("notes")
    with pytest.raises(UserError, match=re.escape(str(path))):
        asked(good, tmp_path)
    with pytest.raises(UserError, match=f"^cache_dir: {re.escape(str(path))} is no folder"):
        asked(good, path)


def test_neither_prompt_nor_address_is_in_the_file(cache: Path) -> None:
    _, server, _ = asked(lambda *_: Answer(completion(choice("said"))), cache, (ask("private matters"), HOT, 1))
    kept = b"".join(path.read_bytes() for path in cache.iterdir())
    assert b"said" in kept and b"private" not in kept and str(server.port).encode() not in kept


async def process(server: FakeChatServer, cache: Path, count: int) -> asyncio.subprocess.Process:
    program = here() / "openai_process.py"
    return await asyncio.create_subprocess_exec(
        *(sys.executable, str(program), server.url, str(cache), str(count)),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(here()), os.environ.get("PYTHONPATH", "")])},
    )


def kept_in(cache: Path) -> set[str]:
    with RecordStore.read(cache / CACHE_FILE) as store:
        return store.keys()


@pytest.mark.parametrize("manner", [good, ignores_n])
def test_after_a_kill_only_what_was_not_answered_is_asked(cache: Path, manner: Manner) -> None:
    async def scene() -> None:
        async with FakeChatServer(lambda body, place: replace(manner(body, place), seconds=0.005)) as server:
            killed = await process(server, cache, 40)
            assert killed.stdout is not None
            finished = {int(await killed.stdout.readline()) for _ in range(10)}
            killed.kill()
            finished |= {int(line) for line in (await killed.stdout.read()).split()}
            await killed.wait()
            assert 10 <= len(finished) < 40
            await asyncio.sleep(0.05)  # the server sees what was sent before the kill
            kept, first = kept_in(cache), set(server.digests)
            assert len(kept) >= 10 and len(first - kept) <= 4, "no more is lost than was under way at the kill"
            server.digests.clear()
            ended = await process(server, cache, 40)
            out, _ = await ended.communicate()
            assert sorted(map(int, out.split())) == list(range(40))
            assert kept.isdisjoint(server.digests)
            assert len(server.digests) == len(set(server.digests)) == len(kept_in(cache)) - len(kept)

    asyncio.run(scene())
