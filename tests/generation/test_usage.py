"""Server usage and engine warnings are in the run's log, in the status and in the report."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path

import pytest
from chat_server import Answer, Body, FakeChatServer, error, good, ignores_n
from openai_setup import HOT, QUICK, ask, settings
from run_folders import small_run

from metareward.engines.base import ScriptedEngine
from metareward.engines.openai.engine import open_openai
from metareward.generation.usage import log_usage, log_warnings, read_usage, read_warnings
from metareward.pipeline.status import status_text
from metareward.report.write import write_report
from metareward.storage.run_dir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return small_run(tmp_path / "run")


def rude_once(body: Body, place: int) -> Answer:
    return good(body) if place else error(503)


async def asked(run: RunDir, server: FakeChatServer, cache: Path | None = None) -> None:
    engine = log_usage(run, "M0", await open_openai(settings(server, cache_dir=str(cache) if cache else None), QUICK))
    try:
        for _ in range(2):
            assert len(await engine.complete(ask(), HOT, 2)) == 2
    finally:
        await engine.aclose()


def test_usage_adds_up_over_the_starts(run: RunDir, tmp_path: Path) -> None:
    async def twice() -> str:
        async with FakeChatServer(rude_once) as server:
            await asked(run, server)
            await asked(run, server, tmp_path / "cache")
            return f"{server.url}/v1"

    url = asyncio.run(twice())
    (total,) = read_usage(run)
    assert (total.client, total.server, total.requests, total.failed, total.cached) == ("M0", url, 4, 1, 1)
    assert (total.prompt_tokens, total.completion_tokens) == (9, 15)
    line = f"  M0 at {url}: 4 requests, 1 failed, 1 from cache, 9 prompt tokens, 15 completion tokens\n"
    assert line in status_text(run)
    write_report(run)
    cells = ">".join(re.findall(r">([^<>]+)<", run.report.read_text()))
    assert f"M0>{url}>4>1>1>" in cells


def test_warnings_are_in_the_log_once_each(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    async def warned() -> None:
        async with FakeChatServer(ignores_n) as server:
            await asked(run, server)

    with log_warnings(run):
        asyncio.run(warned())
        logging.getLogger("metareward.engines.openai").warning("second")
    logging.getLogger("metareward.engines.openai").warning("afterwards")
    first, second = read_warnings(run)
    assert "one request is sent for each completion" in first and second == "second"
    assert first in status_text(run) and "warnings (2), the last ones:" in status_text(run)
    assert capsys.readouterr().err.count("one request is sent") == 1
    write_report(run)
    assert "Warning: second" in run.report.read_text()


def test_other_engines_have_no_usage(run: RunDir) -> None:
    engine = ScriptedEngine(lambda messages, sampling, i: "")
    assert log_usage(run, "M0", engine) is engine
    assert read_usage(run) == () and read_warnings(run) == ()
    assert "server usage" not in status_text(run)
