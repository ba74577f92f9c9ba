"""Engines that wrap engines: one per role, opened lazily, without reasoning."""

import asyncio

import pytest

from metareward.engines.base import Engine, LazyEngine, RoleEngines, ScriptedEngine
from metareward.errors import UserError
from metareward.types import Message, ModelRole, Sampling

QUESTION = (Message("user", "Why?"),)
SAMPLING = Sampling(1.0, 1.0, 10)


class ClosingEngine(ScriptedEngine):
    """Counts how often it is closed; closing may fail."""

    def __init__(self, name: str, failing: bool = False) -> None:
        super().__init__(lambda *_: name)
        self.closed = 0
        self.failing = failing

    async def aclose(self) -> None:
        self.closed += 1
        if self.failing:
            raise OSError("closing failed")


def test_each_role_is_served_by_its_own_engine() -> None:
    local, external = ClosingEngine("local"), ClosingEngine("external")
    engine = RoleEngines({"actor": local, "judge": external, "meta_judge": local})
    roles: tuple[ModelRole, ...] = ("actor", "judge", "meta_judge")

    async def texts() -> list[str]:
        return [(await engine.complete(QUESTION, SAMPLING, 1, role))[0].text for role in roles]

    assert asyncio.run(texts()) == ["local", "external", "local"]
    assert [call.role for call in local.calls] == ["actor", "meta_judge"]
    assert [call.role for call in external.calls] == ["judge"]
    asyncio.run(engine.aclose())
    assert (local.closed, external.closed) == (1, 1)


def test_all_engines_are_closed_even_if_closing_one_fails() -> None:
    first, second = ClosingEngine("first", failing=True), ClosingEngine("second", failing=True)
    with pytest.raises(OSError, match="closing failed"):
        asyncio.run(RoleEngines({"actor": first, "judge": second}).aclose())
    assert (first.closed, second.closed) == (1, 1)


def test_a_lazy_engine_is_opened_once_by_many_requests_and_closed() -> None:
    opened: list[ClosingEngine] = []

    async def open_engine() -> Engine:
        await asyncio.sleep(0.01)
        opened.append(ClosingEngine("because"))
        return opened[-1]

    async def scene() -> None:
        engine = LazyEngine(open_engine)
        assert opened == []
        written = await asyncio.gather(*(engine.complete(QUESTION, SAMPLING, 2, "judge") for _ in range(5)))
        assert [[each.text for each in one] for one in written] == [["because", "because"]] * 5
        await engine.aclose()

    asyncio.run(scene())
    assert [each.closed for each in opened] == [1]
    assert [call.role for call in opened[0].calls] == ["judge"] * 5


def test_a_lazy_engine_without_requests_opens_nothing() -> None:
    async def open_engine() -> Engine:
        raise AssertionError("opened")

    asyncio.run(LazyEngine(open_engine).aclose())


def test_an_error_while_opening_a_lazy_engine_reaches_the_request() -> None:
    async def open_engine() -> Engine:
        raise UserError("no model here")

    with pytest.raises(UserError, match="no model here"):
        asyncio.run(LazyEngine(open_engine).complete(QUESTION, SAMPLING, 1))
