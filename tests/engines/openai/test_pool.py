"""Several servers as one pool: load, death, return; nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import scripted_models
from chat_server import HANG, Answer, Body, FakeChatServer, error, good, ignores_n
from openai_setup import HOT, ask, engine_for, scripted_answer, texts

from metareward.engines.base import EngineError
from metareward.engines.openai.client import Client, TransientError
from metareward.engines.openai.engine import OpenAIEngine
from metareward.engines.openai.pool import Pauses, RateControl, Server
from metareward.generation.annotate import annotation_fingerprint
from metareward.generation.progress import SILENT
from metareward.generation.runner import annotate_prompts
from metareward.storage.store import RecordStore

QUICK = Pauses(first=0.005, longest=0.02, patience=2.0)


def slowly(seconds: float) -> Callable[[Body, int], Answer]:
    return lambda body, _: replace(good(body), seconds=seconds)


async def ask_all(engine: OpenAIEngine, count: int, n: int = 1) -> list[list[str]]:
    asked = (engine.complete(ask(f"question {i}"), HOT, n) for i in range(count))
    return [texts(written) for written in await asyncio.gather(*asked)]


def check_all(written: list[list[str]], count: int, n: int = 1) -> None:
    """Every question has its own ``n`` different answers."""
    assert len(written) == count
    for number, answers in enumerate(written):
        assert len(set(answers)) == n
        assert all(answer.startswith(f"question {number}: ") for answer in answers)


def test_the_least_busy_server_is_asked_first() -> None:
    async def scene() -> None:
        async with FakeChatServer(slowly(0.5)) as slow, FakeChatServer() as quick, engine_for(slow, quick) as engine:
            long = asyncio.create_task(engine.complete(ask("long"), HOT, 1))
            while not slow.bodies:
                await asyncio.sleep(0.001)
            for _ in range(5):
                check_all(await ask_all(engine, 1), 1)
            assert (len(slow.bodies), len(quick.bodies)) == (1, 5)
            assert len(await long) == 1

    asyncio.run(scene())


def test_both_servers_work_as_much_as_they_may() -> None:
    """A slow server holds its most requests, the quick one meanwhile answers all others, as many at once as it may."""

    async def scene() -> None:
        most, count, begun, rest_answered = 4, 60, asyncio.Event(), asyncio.Event()

        def quickly(body: Body, place: int) -> Answer:
            if place + 1 >= most:
                begun.set()
            if place + 1 == count - most:
                rest_answered.set()
            return replace(good(body), event=begun)

        async with (
            asyncio.timeout(60),
            FakeChatServer(quickly) as quick,
            FakeChatServer(lambda body, _: replace(good(body), event=rest_answered)) as slow,
            engine_for(quick, slow, max_concurrency=most) as engine,
        ):
            check_all(await ask_all(engine, count), count)
            assert (len(quick.bodies), len(slow.bodies)) == (count - most, most)
            assert quick.most_under_way == slow.most_under_way == most

    asyncio.run(scene())


@pytest.mark.parametrize("n", [1, 3])
def test_a_server_that_dies_in_mid_run_loses_nothing_and_gives_nothing_twice(n: int) -> None:
    async def scene() -> None:
        async with FakeChatServer(slowly(0.002)) as steady, FakeChatServer() as mortal:

            def answer_five_and_die(body: Body, place: int) -> Answer:
                if place == 15:
                    deaths.append(asyncio.create_task(mortal.die()))
                return replace(good(body), seconds=0.0 if place < 5 else 5.0)

            deaths: list[asyncio.Task[None]] = []
            mortal.manner = answer_five_and_die
            async with engine_for(steady, mortal, pauses=QUICK) as engine:
                check_all(await ask_all(engine, 200, n), 200, n)
                used = {server.url: server for server in engine.usage.servers}
            assert len(deaths) == 1
            assert used[f"{mortal.url}/v1"].failed >= 10
            answered = sum(server.requests - server.failed for server in used.values())
            assert answered == 200
            asked = Counter(body["messages"][-1]["content"] for body in steady.bodies)
            assert set(asked.values()) == {1}, "the living server was asked each question once"

    asyncio.run(scene())


def test_a_server_that_comes_back_is_asked_again() -> None:
    async def scene() -> None:
        async with (
            FakeChatServer(slowly(0.002)) as steady,
            FakeChatServer(slowly(0.002)) as mortal,
            engine_for(steady, mortal, pauses=QUICK, max_concurrency=2) as engine,
        ):
            await mortal.die()
            check_all(await ask_all(engine, 20), 20)
            assert len(mortal.bodies) == 0
            await mortal.live()
            check_all(await ask_all(engine, 40), 40)
            assert len(mortal.bodies) > 5

    asyncio.run(scene())


def test_requests_wait_for_the_only_server_to_come_back() -> None:
    async def scene() -> None:
        async with FakeChatServer() as server, engine_for(server, pauses=QUICK, max_attempts=2) as engine:
            await server.die()
            waiting = asyncio.create_task(ask_all(engine, 8))
            await asyncio.sleep(0.1)
            await server.live()
            check_all(await waiting, 8)

    asyncio.run(scene())


def test_requests_that_hang_do_not_keep_a_server_from_being_tried_again() -> None:
    async def scene() -> None:
        async with FakeChatServer(lambda *_: HANG) as server, engine_for(server, pauses=QUICK) as engine:
            hanging = [asyncio.create_task(engine.complete(ask(f"lost {i}"), HOT, 1)) for i in range(2)]
            while server.under_way < 2:
                await asyncio.sleep(0.001)
            server.hide()
            waiting = asyncio.create_task(ask_all(engine, 4))
            await asyncio.sleep(0.05)
            server.manner = good
            await server.live()
            check_all(await waiting, 4)
            assert not any(task.done() for task in hanging)
            for task in hanging:
                task.cancel()
            await asyncio.gather(*hanging, return_exceptions=True)

    asyncio.run(scene())


def test_a_server_that_fails_in_a_row_is_set_aside_and_tried_by_one_request_at_a_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scene() -> None:
        async with FakeChatServer(slowly(0.01)) as steady, FakeChatServer(lambda *_: error(500)) as ill:
            pauses = replace(QUICK, first=0.05, longest=0.05)
            async with engine_for(steady, ill, pauses=pauses, max_concurrency=4) as engine:
                check_all(await ask_all(engine, 40), 40)
                failed_first = len(ill.bodies)
                assert failed_first < 12
                await asyncio.sleep(0.06)
                ill.bodies.clear()
                ill.most_under_way = 0
                ill.manner = lambda body, _: replace(error(500), seconds=0.05)
                check_all(await ask_all(engine, 12), 12)
                assert ill.most_under_way == 1 and 1 <= len(ill.bodies) <= 2

    asyncio.run(scene())
    assert caplog.text.count("set aside") == 1


def test_troubles_with_successes_between_them_are_not_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        moody = FakeChatServer(lambda body, place: error(500) if place % 2 else good(body))
        async with moody, engine_for(moody) as engine:
            for number in range(6):
                await engine.complete(ask(str(number)), HOT, 1)
            assert engine.usage.servers[0].failed == 5

    asyncio.run(scene())
    assert "set aside" not in caplog.text


def test_pauses_double_up_to_the_longest_and_start_anew_after_an_answer() -> None:
    async def scene() -> None:
        pauses = Pauses(first=0.1, longest=0.3)
        client = Client("http://127.0.0.1:1/v1", None, 1.0)
        server = Server(client, RateControl(4, math.inf, pauses), pauses)
        loop = asyncio.get_running_loop()
        error = TransientError("gone", client.url)
        for pause in (0.1, 0.2, 0.3, 0.3):
            began = loop.time()
            server.fall(error)
            server.fall(error)  # of the same moment: counts once
            assert not server.free(began + 0.9 * pause)
            assert server.resting_until == pytest.approx(began + pause, abs=0.02)
            await asyncio.sleep(server.resting_until - loop.time() + 0.001)
            assert server.free(loop.time())
        server.answered()
        server.fall(error)
        assert server.resting_until == pytest.approx(loop.time() + 0.1, abs=0.02)

    asyncio.run(scene())


def test_a_failed_request_goes_to_another_server_first() -> None:
    async def scene() -> None:
        async with (
            FakeChatServer(slowly(0.01)) as well,
            FakeChatServer(lambda *_: error(503)) as ill,
            engine_for(ill, well, max_attempts=2) as engine,
        ):
            check_all(await ask_all(engine, 2), 2)
            assert len(ill.bodies) == 1 and len(well.bodies) == 2

    asyncio.run(scene())


def test_a_busy_server_is_not_a_dead_one(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        async with (
            FakeChatServer(lambda *_: error(429, retry_after="30")) as busy,
            FakeChatServer() as free,
            engine_for(busy, free, max_attempts=2) as engine,
        ):
            check_all(await ask_all(engine, 20), 20)
            assert len(busy.bodies) <= 16 and len(free.bodies) == 20
        many = FakeChatServer(lambda body, place: good(body) if place > 11 else error(429))
        async with many, engine_for(many, max_attempts=20) as engine:
            check_all(await ask_all(engine, 4), 4)

    asyncio.run(scene())
    assert "set aside" not in caplog.text


def test_when_all_are_dead_the_line_names_all() -> None:
    async def scene() -> str:
        async with FakeChatServer() as one, FakeChatServer() as other, engine_for(one, other) as engine:
            await one.die()
            await other.die()
            outcomes = await asyncio.gather(*(engine.complete(ask(), HOT, 1) for _ in range(5)), return_exceptions=True)
            assert all(isinstance(outcome, EngineError) for outcome in outcomes)
            assert all(f"{server.url}/v1 can't be reached" in str(outcomes[-1]) for server in (one, other))
        return str(outcomes[-1])

    began = time.monotonic()
    assert "no server is left for request" in asyncio.run(scene())
    assert time.monotonic() - began < 5


def test_the_line_names_every_server_that_was_tried() -> None:
    async def scene() -> None:
        async with (
            FakeChatServer(lambda *_: error(500, "one")) as one,
            FakeChatServer(lambda *_: HANG) as other,
            engine_for(one, other, max_attempts=2, timeout=0.05) as engine,
        ):
            with pytest.raises(EngineError) as caught:
                await engine.complete(ask(), HOT, 1)
        told = str(caught.value)
        assert told.endswith(f"failed after 2 attempts at {one.url}/v1 and {other.url}/v1")
        assert told.startswith(f"{other.url}/v1 gave no whole reply within 0.05 s; request ")

    asyncio.run(scene())


def test_servers_that_differ_in_n_share_the_work() -> None:
    async def scene() -> None:
        async with (
            FakeChatServer(slowly(0.002)) as whole,
            FakeChatServer(ignores_n) as deaf,
            engine_for(whole, deaf, max_concurrency=3) as engine,
        ):
            check_all(await ask_all(engine, 30, 3), 30, 3)
            assert {server.takes_n for server in engine.usage.servers} == {True, False}
            assert sum(body["n"] > 1 for body in deaf.bodies) <= 3

    asyncio.run(scene())


# --- a whole run of the runner ---


def records_of(folder: Path, dies: bool) -> dict[str, str]:
    """The records of a run over two servers, one of which may die on the way."""

    async def scene(store: RecordStore) -> None:
        async with FakeChatServer(scripted_answer) as steady, FakeChatServer(scripted_answer) as mortal:

            def die_at_sixty(body: Body, place: int) -> Answer:
                if place == 60 and dies:
                    deaths.append(asyncio.create_task(mortal.die()))
                return scripted_answer(body)

            deaths: list[asyncio.Task[None]] = []
            mortal.manner = die_at_sixty
            async with engine_for(steady, mortal, pauses=QUICK) as engine:
                outcome = await annotate_prompts(
                    engine, scripted_models.prompts(24), scripted_models.settings(), store, SILENT
                )
            assert (outcome.finished, outcome.failed) == (24, ())
            assert len(deaths) == int(dies)

    with RecordStore.open(folder / f"{dies}.sqlite", annotation_fingerprint(scripted_models.settings())) as store:
        asyncio.run(scene(store))
        return dict(store.documents())


def test_a_run_whose_server_dies_gives_the_same_records(tmp_path: Path) -> None:
    undisturbed = records_of(tmp_path, dies=False)
    assert len(undisturbed) == 24
    assert records_of(tmp_path, dies=True) == undisturbed
