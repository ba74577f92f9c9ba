"""An engine is opened when it is first asked, and once."""

from __future__ import annotations

import asyncio

import pytest

from metareward.engines.engine import Engine
from metareward.engines.later import LaterEngine
from metareward.engines.scripted import ScriptedEngine
from metareward.errors import UserError
from metareward.types import Message, Sampling

ASKED = (Message("user", "Why?"),)
SAMPLING = Sampling(1.0, 1.0, 8)


class Closing(ScriptedEngine):
    def __init__(self) -> None:
        super().__init__(lambda messages, sampling, i: f"because {i}")
        self.closed = 0

    async def aclose(self) -> None:
        self.closed += 1


def test_it_is_opened_once_by_many_and_closed() -> None:
    opened: list[Closing] = []

    async def opening() -> Engine:
        await asyncio.sleep(0.01)
        opened.append(Closing())
        return opened[-1]

    async def ask() -> None:
        engine = LaterEngine(opening)
        assert opened == []
        told = await asyncio.gather(*(engine.complete(ASKED, SAMPLING, 2) for _ in range(5)))
        assert [[each.text for each in one] for one in told] == [["because 0", "because 1"]] * 5
        await engine.aclose()

    asyncio.run(ask())
    assert [each.closed for each in opened] == [1]
    assert len(opened[0].calls) == 5


def test_nobody_asks_and_nothing_is_opened() -> None:
    async def opening() -> Engine:
        raise AssertionError("opened")

    asyncio.run(LaterEngine(opening).aclose())


def test_what_opening_raises_comes_through() -> None:
    async def opening() -> Engine:
        raise UserError("no model here")

    with pytest.raises(UserError, match="no model here"):
        asyncio.run(LaterEngine(opening).complete(ASKED, SAMPLING, 1))
