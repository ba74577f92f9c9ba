"""Servers that limit rate or concurrency: no failed prompt, and hardly longer than the limit makes it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scripted_models
from chat_server import Answer, Body, FakeChatServer, TokenBucket, error, good
from openai_setup import HOT, MODEL, ask, engine_for, scripted_answer

from metareward.engines.base import EngineError
from metareward.engines.openai.engine import OpenAIEngine, OpenAISettings, open_openai
from metareward.engines.openai.pool import Pauses, RateControl
from metareward.generation.annotate import annotation_fingerprint
from metareward.generation.progress import SILENT
from metareward.generation.runner import annotate_prompts, run_tasks
from metareward.storage.store import RecordStore
from metareward.types import Prompt

SLACK = 2.0  # seconds: three test processes share two cores, and a Retry-After of 1 s is a step of 1 s
HEADERS = [pytest.param({"retry_after": "1"}, id="Retry-After"), pytest.param({}, id="no header")]


async def run_single_requests(engine: OpenAIEngine, folder: Path, count: int) -> None:
    """The runner with one request for each prompt; every prompt must succeed."""

    async def work(prompt: Prompt) -> str:
        (completion,) = await engine.complete(prompt.messages, HOT, 1)
        return completion.text

    with RecordStore.open(folder / "single.sqlite", {}) as store:
        outcome = await run_tasks(work, scripted_models.prompts(count), store, SILENT, "asking", {})
    assert (outcome.finished, outcome.failed) == (count, ())


async def run_prompts(engine: OpenAIEngine, folder: Path, count: int) -> None:
    """The runner as a run uses it: answers, judgments and meta-judgments of each prompt."""
    settings = scripted_models.settings()
    with RecordStore.open(folder / "records.sqlite", annotation_fingerprint(settings)) as store:
        outcome = await annotate_prompts(engine, scripted_models.prompts(count), settings, store, SILENT)
    assert (outcome.finished, outcome.failed) == (count, ())


def seconds_of(work: Callable[[OpenAIEngine], Awaitable[None]], *servers: FakeChatServer) -> float:
    """How long ``work`` takes with these servers at default settings."""

    async def scene() -> float:
        async with contextlib.AsyncExitStack() as stack:
            for server in servers:
                await stack.enter_async_context(server)
            settings = OpenAISettings.model_validate({"base_urls": [each.url for each in servers], "model": MODEL})
            engine = await open_openai(settings)
            stack.push_async_callback(engine.aclose)
            began = time.monotonic()
            await work(engine)
            return time.monotonic() - began

    return asyncio.run(scene())


@pytest.mark.parametrize("headers", HEADERS)
def test_prompts_of_one_request_take_as_long_as_the_rate_limit_makes_them(
    tmp_path: Path, headers: dict[str, Any]
) -> None:
    bucket = TokenBucket(20, 20, **headers)
    seconds = seconds_of(lambda engine: run_single_requests(engine, tmp_path, 60), FakeChatServer(bucket))
    assert seconds <= 1.3 * bucket.best_seconds() + SLACK


@pytest.mark.parametrize("headers", HEADERS)
def test_prompts_of_many_requests_take_as_long_as_the_rate_limit_makes_them(
    tmp_path: Path, headers: dict[str, Any]
) -> None:
    bucket = TokenBucket(20, 20, scripted_answer, **headers)
    seconds = seconds_of(lambda engine: run_prompts(engine, tmp_path, 8), FakeChatServer(bucket))
    assert seconds <= 1.3 * bucket.best_seconds() + SLACK


@pytest.mark.slow
@pytest.mark.parametrize("headers", HEADERS)
def test_ten_requests_a_second(tmp_path: Path, headers: dict[str, Any]) -> None:
    bucket = TokenBucket(10, 10, **headers)
    assert seconds_of(lambda engine: run_single_requests(engine, tmp_path, 100), FakeChatServer(bucket)) <= 11.7
    bucket = TokenBucket(10, 10, scripted_answer, **headers)
    seconds = seconds_of(lambda engine: run_prompts(engine, tmp_path, 100), FakeChatServer(bucket))
    assert seconds <= 1.3 * bucket.best_seconds()


def test_503_with_retry_after_is_a_throttle_too(tmp_path: Path) -> None:
    bucket = TokenBucket(50, 10, status=503, retry_after="0.1")
    seconds_of(lambda engine: run_single_requests(engine, tmp_path, 80), FakeChatServer(bucket))
    assert bucket.rejections


@pytest.mark.slow
def test_a_server_that_limits_requests_in_flight_gets_as_many(tmp_path: Path) -> None:
    server = FakeChatServer()
    rejected = 0

    def at_most_eight(body: Body, _: int) -> Answer:
        nonlocal rejected
        busy = server.under_way > 8
        rejected += busy
        return error(429) if busy else replace(good(body), seconds=0.4)

    server.manner = at_most_eight
    seconds = seconds_of(lambda engine: run_single_requests(engine, tmp_path, 100), server)
    assert seconds <= 1.6 * 100 * 0.4 / 8
    assert rejected <= 80


@pytest.mark.slow
def test_a_rate_that_changes_is_found_again(tmp_path: Path) -> None:
    bucket = TokenBucket(30, 10)

    def slower_and_faster(body: Body, place: int) -> Answer:
        bucket.rate = 30 if bucket.answered < 50 else 10 if bucket.answered < 70 else 40
        return bucket(body, place)

    seconds = seconds_of(lambda engine: run_single_requests(engine, tmp_path, 150), FakeChatServer(slower_and_faster))
    assert seconds <= 2 * (40 / 30 + 20 / 10 + 80 / 40)


def test_the_other_server_takes_what_a_throttled_one_does_not(tmp_path: Path) -> None:
    throttled, free = (
        TokenBucket(5, 5, retry_after="1"),
        FakeChatServer(lambda body, _: replace(good(body), seconds=0.1)),
    )
    seconds = seconds_of(lambda engine: run_single_requests(engine, tmp_path, 200), FakeChatServer(throttled), free)
    assert 5 <= throttled.answered <= 30
    assert seconds < 10, "the throttled server alone takes 39 s"


def test_requests_held_up_by_a_throttle_are_sent_spread_out(tmp_path: Path) -> None:
    moments: list[float] = []
    bucket = TokenBucket(20, 20, retry_after="0.5")

    def timed(body: Body, place: int) -> Answer:
        moments.append(time.monotonic())
        return bucket(body, place)

    seconds_of(lambda engine: run_single_requests(engine, tmp_path, 100), FakeChatServer(timed))
    later = [moment for moment in moments if moment > bucket.rejections[0] + 0.4]
    assert len(later) >= 50
    most_at_once = max(sum(moment <= other < moment + 0.05 for other in later) for moment in later)
    assert most_at_once <= 30, "64 wait"


@pytest.mark.parametrize("failure", [error(429, "never"), error(503, "never", retry_after="0.01")])
def test_a_server_that_throttles_for_ever_ends_in_one_clear_error(failure: Answer) -> None:
    async def scene() -> None:
        async with FakeChatServer(lambda *_: failure) as server, engine_for(server, max_attempts=1) as engine:
            began = time.monotonic()
            asked = (engine.complete(ask(str(number)), HOT, 1) for number in range(8))
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            assert 0.25 < time.monotonic() - began < 2
            assert all("no server is left for request" in str(outcome) for outcome in outcomes)
            assert all(isinstance(outcome, EngineError) and "never" in str(outcome) for outcome in outcomes)
            assert engine.usage.servers[0].failed == 0
            assert engine.usage.servers[0].throttled >= 8

    asyncio.run(scene())


def test_what_the_server_takes_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "metareward")
    bucket = TokenBucket(30, 10)
    seconds_of(lambda engine: run_single_requests(engine, tmp_path, 150), FakeChatServer(bucket))
    found = re.findall(r"takes at most about (\S+) requests/s, \d+ in flight; it throttled (\d+)", caplog.text)
    assert len(found) >= 3, "at the 1st, 2nd, 4th... throttle and at the end"
    assert 8 < float(found[-1][0]) < 120
    assert int(found[-1][1]) == len(bucket.rejections)


def test_nothing_is_held_back_before_the_first_throttle() -> None:
    control = RateControl(64, math.inf, Pauses())
    for number in range(64):
        assert control.ready_at() <= 0.0
        control.sent(0.0, number + 1)
    assert control.concurrency == 64


def test_throttles_of_one_round_trip_lower_the_limits_once() -> None:
    control = RateControl(64, math.inf, Pauses())
    for number in range(64):
        control.sent(0.0, number + 1)
    for number in range(54):
        control.throttled(0.0, 0.01, 1.0, 64 - number)
    assert control.concurrency == 10  # those that were taken
    assert 1.0 < control.ready_at() < 1.2
    for number in range(54):
        control.sent(2.0, number % 8 + 1)
        control.answered(number % 8 + 1)
    control.throttled(2.0, 2.1, 1.0, 5)
    assert control.rate == pytest.approx(0.95 * 53 / 2.09)  # taken between the throttles
