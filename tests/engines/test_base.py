"""Roles reach their engines, and every engine is closed once."""

import asyncio

import pytest

from metareward.engines.engine import RoleEngines
from metareward.engines.scripted import ScriptedEngine
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
