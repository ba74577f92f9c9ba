"""The balance over replicas, without Ray: who gets a request, and what becomes of it when a replica fails it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import pytest

from metareward.engines.base import EngineError
from metareward.engines.ray.pool import Replica, ReplicaLostError, ReplicaPool
from metareward.errors import UserError
from metareward.types import Completion, Message, Messages, ModelRole, Sampling

HOT = Sampling(1.0, 1.0, 8)


@dataclass(eq=False)
class Fake:
    """A replica that holds its requests until it is told how they end."""

    name: str
    held: list[asyncio.Future[str]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        self.asked.append(messages[0].content)
        end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.held.append(end)
        text = await end
        return tuple(Completion(f"{text} {i}", "stop", 1) for i in range(n))

    def answer(self, place: int = 0, error: Exception | None = None) -> None:
        end = self.held.pop(place)
        if error is None:
            end.set_result(self.name)
        else:
            end.set_exception(error)


class Scene:
    """A pool of fakes, a clock that is set by hand, and what was lost."""

    def __init__(self, *names: str, max_concurrency: int = 4, timeout: float = 100.0) -> None:
        self.now = 0.0
        self.lost: list[tuple[Replica, str]] = []
        self.pool = ReplicaPool(max_concurrency, timeout, lambda *loss: self.lost.append(loss), lambda: self.now)
        self.fakes = [Fake(name) for name in names]
        for fake in self.fakes:
            self.pool.add(fake)

    async def ask(self, text: str, n: int = 1) -> asyncio.Task[Sequence[Completion]]:
        task = asyncio.create_task(self.pool.complete((Message("user", text),), HOT, n))
        await settle()
        return task


async def settle() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


def played(scene: Callable[[], Awaitable[None]]) -> None:
    async def play() -> None:
        await asyncio.wait_for(scene(), 10)

    asyncio.run(play())


def test_requests_go_to_the_replica_with_the_fewest_completions_in_flight() -> None:
    async def scene() -> None:
        s = Scene("a", "b")
        await s.ask("many", n=5)
        for each in ("x", "y", "z"):
            await s.ask(each, n=2)
        assert [fake.asked for fake in s.fakes] == [["many"], ["x", "y", "z"]]

    played(scene)


def test_what_all_replicas_have_no_room_for_waits_and_a_slow_one_gets_less() -> None:
    async def scene() -> None:
        s = Scene("slow", "fast", max_concurrency=2)
        asked = [await s.ask(f"{i}") for i in range(20)]
        assert [len(fake.held) for fake in s.fakes] == [2, 2]
        while s.fakes[1].held:
            s.fakes[1].answer()
            await settle()
        assert Counter(task.done() for task in asked) == {True: 18, False: 2}
        assert len(s.fakes[1].asked) == 18

    played(scene)


def test_a_replica_that_is_removed_gets_nothing_more_and_others_do_what_it_had() -> None:
    async def scene() -> None:
        s = Scene("a", "b")
        asked = await s.ask("x")
        s.pool.remove(s.fakes[0], "its node is gone")
        s.pool.remove(s.fakes[0], "again")
        await settle()
        assert s.lost == [(s.fakes[0], "its node is gone")] and s.pool.replicas == (s.fakes[1],)
        s.fakes[1].answer()
        await settle()
        assert asked.done() and s.fakes[1].asked == ["x"]

    played(scene)


def test_a_lost_replica_s_requests_come_first_elsewhere_and_nothing_is_lost_or_twice() -> None:
    async def scene() -> None:
        s = Scene("a", max_concurrency=2)
        asked = [await s.ask(f"{i}") for i in range(4)]
        s.fakes[0].answer(0, ReplicaLostError("its node is gone"))
        await settle()
        assert [(replica, reason) for replica, reason in s.lost] == [(s.fakes[0], "its node is gone")]
        assert s.pool.replicas == ()
        other = Fake("b")
        s.pool.add(other)
        await settle()
        assert sorted(other.asked) == ["0", "1"], "before those that nobody had yet"
        s.fakes[0].answer(0, ReplicaLostError("its node is gone"))  # the other request, whose error comes later
        for _ in range(4):
            other.answer()
            await settle()
        assert len(s.lost) == 1
        assert [task.result()[0].text for task in asked] == ["b 0"] * 4
        assert sorted(other.asked) == ["0", "1", "2", "3"]

    played(scene)


def test_a_request_that_one_replica_fails_is_asked_of_another_and_its_error_stays_its_error() -> None:
    async def scene() -> None:
        s = Scene("a", "b")
        good, bad = await s.ask("good"), await s.ask("bad")
        s.fakes[0].answer(0, EngineError("broken"))
        s.fakes[1].answer(0, EngineError("too long"))
        await settle()
        assert s.fakes[1].asked == ["bad", "good"] and s.fakes[0].asked == ["good", "bad"]
        s.fakes[1].answer()
        s.fakes[0].answer(0, EngineError("too long, too"))
        await settle()
        assert good.result()[0].text == "b 0"
        with pytest.raises(EngineError, match=r"^too long$"):
            bad.result()
        assert s.lost == []

    played(scene)


def test_a_replica_that_fails_what_others_answer_is_replaced() -> None:
    async def scene() -> None:
        s = Scene("broken", "well")
        broken, well = s.fakes
        for _ in range(3):
            task = await s.ask("anything")
            broken.answer(0, EngineError("its worker is dead"))
            await settle()
            well.answer()
            await settle()
            assert task.result()[0].text == "well 0"
        assert [(replica, "its worker is dead" in reason) for replica, reason in s.lost] == [(broken, True)]

    played(scene)


def test_a_silent_replica_is_given_up_after_the_timeout_and_a_late_reply_still_counts_once() -> None:
    async def scene() -> None:
        s = Scene("silent", timeout=100.0)
        task = await s.ask("x")
        s.now = 99.0
        s.pool.check()
        assert s.lost == []
        s.now = 101.0
        s.pool.check()
        await settle()
        assert [reason for _, reason in s.lost] == ["it hasn't replied for 100 s"]
        other = Fake("b")
        s.pool.add(other)
        await settle()
        s.fakes[0].answer()
        await settle()
        assert task.result()[0].text == "silent 0"
        other.answer()
        await settle()
        assert task.result()[0].text == "silent 0"

    played(scene)


def test_an_idle_replica_takes_over_what_a_slow_one_has_had_for_long() -> None:
    async def scene() -> None:
        s = Scene("slow", "fast")
        first, second = await s.ask("1"), await s.ask("2")
        s.now = 2.0
        s.fakes[1].answer()
        await settle()
        assert second.done()
        s.pool.check()
        await settle()
        assert s.fakes[1].held == [], "not long ago"
        s.now = 20.0
        s.pool.check()
        await settle()
        s.pool.check()
        await settle()
        assert s.fakes[1].asked == ["2", "1"], "once"
        s.fakes[1].answer()
        await settle()
        assert first.result()[0].text == "fast 0"
        s.fakes[0].answer()
        await settle()
        assert s.lost == []

    played(scene)


def test_a_request_that_takes_replicas_down_fails_alone() -> None:
    async def scene() -> None:
        s = Scene()
        task = await s.ask("poison")
        for number in range(5):
            fake = Fake(str(number))
            s.pool.add(fake)
            await settle()
            fake.answer(0, ReplicaLostError("out of memory"))
            await settle()
        with pytest.raises(EngineError, match="5 replicas were lost with this request; out of memory"):
            task.result()

    played(scene)


def test_requests_wait_for_replicas_or_fail_when_there_will_be_none() -> None:
    async def scene() -> None:
        s = Scene()
        early = await s.ask("early")
        s.pool.fail("no replica is left")
        late = await s.ask("late")
        for task in (early, late):
            with pytest.raises(EngineError, match="no replica is left"):
                await task
        joined = Fake("joined")
        s.pool.add(joined)
        task = await s.ask("now")
        joined.answer()
        await settle()
        assert task.result()[0].text == "joined 0"

    played(scene)


def test_errors_that_are_no_request_s_own_reach_the_caller_at_once() -> None:
    async def scene() -> None:
        s = Scene("a", "b")
        task = await s.ask("x")
        s.fakes[0].answer(0, UserError("the disk is full"))
        await settle()
        with pytest.raises(UserError, match="the disk is full"):
            task.result()
        assert s.fakes[1].asked == []

    played(scene)


def test_a_cancelled_request_leaves_its_place_to_others() -> None:
    async def scene() -> None:
        s = Scene("a", max_concurrency=1)
        first, second, third = [await s.ask(each) for each in ("1", "2", "3")]
        second.cancel()
        first.cancel()
        await settle()
        s.fakes[0].answer()
        await settle()
        assert s.fakes[0].asked == ["1", "3"]
        s.fakes[0].answer()
        await settle()
        assert third.result()[0].text == "a 0"

    played(scene)
