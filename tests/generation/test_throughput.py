"""The engine's speed, measured on engines whose speed is known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
from scripted_models import SlowEngine, prompts, reply, role_of, settings

from metareward.engines.base import EngineError, ScriptedEngine
from metareward.generation.progress import ANSWERS, JUDGMENTS, META
from metareward.generation.throughput import Rates, measure_rates
from metareward.generation.verdicts import VerdictRules
from metareward.types import Completion, Messages, ModelRole, Sampling


class OneByOne:
    """Serves a request at a time, a completion every so many seconds by role."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._engine = ScriptedEngine(reply)
        self._turn = asyncio.Lock()
        self.asked: list[tuple[Messages, int]] = []
        self.spent: dict[str, list[float]] = {role: [] for role in seconds}  # seconds a completion, as they were

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        async with self._turn:
            self.asked.append((messages, sampling.seed))
            began = time.perf_counter()
            await asyncio.sleep(n * self._seconds[role_of(messages)])
            self.spent[role_of(messages)].append((time.perf_counter() - began) / n)
            return await self._engine.complete(messages, sampling, n, role)

    async def aclose(self) -> None:
        pass


def measured(engine: OneByOne, meta_judge: bool = True, seconds: float = 0.3) -> Rates:
    chosen = replace(settings(k=2, n=3), meta_judge=meta_judge)
    return asyncio.run(measure_rates(engine, prompts(5), chosen, seconds))


def test_seconds_and_tokens_of_each_role() -> None:
    engine = OneByOne({"actor": 0.01, "judge": 0.004, "meta": 0.002})
    rates = measured(engine)
    for role, name, seconds in ((ANSWERS, "actor", 0.01), (JUDGMENTS, "judge", 0.004), (META, "meta", 0.002)):
        assert seconds <= rates.seconds_each[role] < 1.5 * max(engine.spent[name]) + 0.005, role  # on a busy machine
        assert rates.tokens_each[role] >= 1
    assert rates.seconds(META, 100, 0) == 100 * rates.seconds_each[META]
    assert len(set(engine.asked)) == len(engine.asked), "a request was measured twice"


def test_verdicts_that_are_drawn_are_part_of_a_judgment() -> None:
    """Their tokens and seconds count; a judgment is one completion however many requests it takes."""

    def say(messages: Messages, sampling: Sampling, index: int) -> Completion:
        return Completion(sampling.choices[0] if sampling.choices else f"text {sampling.seed}", "stop", 10)

    rules = VerdictRules(constrained=True)
    chosen = replace(settings(k=2, n=3), verdicts=rules, meta_verdicts=rules)
    engine = SlowEngine(0.001, ScriptedEngine(say))
    rates = asyncio.run(measure_rates(engine, prompts(5), chosen, 0.1))
    assert rates.tokens_each == {ANSWERS: 10, JUDGMENTS: 20, META: 20}


def test_a_meta_judge_that_the_run_does_not_ask_is_not_measured() -> None:
    rates = measured(OneByOne({"actor": 0.001, "judge": 0.001}), meta_judge=False, seconds=0.1)
    assert set(rates.seconds_each) == {ANSWERS, JUDGMENTS}


class Shared:
    """Serves all requests at once, the slower the more there are: each has its share of one processor."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._running = seconds, 0
        self._engine = ScriptedEngine(reply)

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        left = n * self._seconds
        self._running += 1
        try:
            while left > 0:
                began = time.perf_counter()
                await asyncio.sleep(0.01)
                left -= (time.perf_counter() - began) / self._running
        finally:
            self._running -= 1
        return await self._engine.complete(messages, sampling, n, role)

    async def aclose(self) -> None:
        pass


def test_an_engine_that_is_too_slow_for_so_many_is_measured_with_a_few() -> None:
    chosen, began = replace(settings(k=2, n=3), meta_judge=False), time.perf_counter()
    rates = asyncio.run(measure_rates(Shared(0.02), prompts(5), chosen, 0.1, 64))
    assert time.perf_counter() - began < 4  # all 64 at once take 2.6 s for the answers, and 7.7 for the judgments
    for role in (ANSWERS, JUDGMENTS):
        assert 0.005 < rates.seconds_each[role] < 0.2, role


def test_an_engine_that_fails_says_so() -> None:
    def refuse(messages: Messages, sampling: Sampling, index: int) -> str:
        raise EngineError("no server left")

    with pytest.raises(EngineError, match="no server left"):
        asyncio.run(measure_rates(ScriptedEngine(refuse), prompts(2), settings(), 0.1))
