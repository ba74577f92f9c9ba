"""The OpenAI engine with real servers of the pocket model: `transformers serve` and vLLM. `make test-servers`.

The servers have environments of their own, which `tests/support/setup_servers.sh` makes; else tests are skipped.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from openai_setup import engine_for, texts

from metareward.engines.base import EngineError
from metareward.engines.openai.engine import OpenAIEngine
from metareward.engines.openai.pool import Pauses
from metareward.errors import UserError
from metareward.generation.annotate import AnnotationSettings, annotation_fingerprint
from metareward.generation.progress import PROMPTS, SilentProgress
from metareward.generation.runner import annotate_prompts
from metareward.method.judge import Rubric
from metareward.method.meta_judge import MetaRubric
from metareward.pocket.world import MODEL, prompts
from metareward.storage.records import read_records
from metareward.storage.store import RecordStore
from metareward.types import Message, PromptRecord, Sampling

pytestmark = [pytest.mark.servers, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[3]
SECONDS_TO_START = 400.0
QUESTION = (Message("user", "List the red fruits."),)
HOT = Sampling(temperature=1.0, top_p=0.95, max_tokens=32, seed=3)
SETTINGS: dict[str, Any] = {
    "model": str(MODEL),
    "max_concurrency": 8,
    "timeout": 120.0,
    "pauses": Pauses(first=0.2, longest=1.0, patience=60.0),
}


@dataclass(frozen=True)
class Served:
    """A server that runs: its address, its process (the leader of its group), the file it writes to."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """End it and its children at once, as a machine that fails does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def answers(self) -> bool:
        assert self.process.poll() is None, f"ended: {self.log.read_text(errors='replace')[-2000:]}"
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def transformers_serve(port: int) -> list[str]:
    return [
        ".venv-serve/bin/transformers",
        "serve",
        str(MODEL),
        *f"--device cpu --host 127.0.0.1 --port {port}".split(),
    ]


def vllm_serve(port: int) -> list[str]:
    options = f"--host 127.0.0.1 --port {port} --dtype float32 --enforce-eager --max-num-seqs 16"
    module = "vllm.entrypoints.openai.api_server"
    return [".venv-vllm/bin/python", "-m", module, "--model", str(MODEL), *options.split()]


def start(command: Callable[[int], list[str]], folder: Path) -> Served:
    """A server under way; skips the test when its environment isn't there."""
    port = free_port()
    program, *words = command(port)
    if not (ROOT / program).exists():
        pytest.skip(f"{program} is not there; tests/support/setup_servers.sh makes it")
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = folder / f"{port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(ROOT / program), *words],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | quiet,
        )
    return Served(f"http://127.0.0.1:{port}", process, log)


def running(commands: Sequence[Callable[[int], list[str]]], folder: Path) -> Iterator[list[Served]]:
    """Servers that answer; what of them is left is killed at the end."""
    served: list[Served] = []
    try:
        served += [start(command, folder) for command in commands]
        until = time.monotonic() + SECONDS_TO_START
        while not all(server.answers() for server in served):
            assert time.monotonic() < until, "a server doesn't come up"
            time.sleep(0.5)
        yield served
    finally:
        for server in served:
            if server.process.poll() is None:
                server.kill()


@pytest.fixture(scope="module")
def transformers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    for (server,) in running([transformers_serve], tmp_path_factory.mktemp("transformers")):
        yield server.url


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    for (server,) in running([vllm_serve], tmp_path_factory.mktemp("vllm")):
        yield server.url


# --- what each of them can do ---


def test_transformers_ignores_n_and_still_gives_what_is_asked_for(transformers: str) -> None:
    async def scene() -> None:
        async with engine_for(transformers, **SETTINGS) as engine:
            written = await engine.complete(QUESTION, HOT, 5)
            (used,) = engine.usage.servers
        assert not used.takes_n and used.requests == 5 and used.failed == 0
        assert len(set(texts(written))) > 1
        assert all(0 < each.tokens <= 32 for each in written)
        assert used.completion_tokens == sum(each.tokens for each in written)

    asyncio.run(scene())


def test_transformers_goes_by_the_seeds_when_asked_one_by_one(transformers: str) -> None:
    """Its generator is one for all requests, and set when one arrives."""

    async def scene() -> None:
        async with engine_for(transformers, **{**SETTINGS, "max_concurrency": 1}) as engine:
            written = await engine.complete(QUESTION, HOT, 4)
            assert await engine.complete(QUESTION, HOT, 4) == written

    asyncio.run(scene())


def test_transformers_gives_no_probabilities_and_that_is_said(transformers: str) -> None:
    async def scene() -> None:
        async with engine_for(transformers, **SETTINGS) as engine:
            with pytest.raises(EngineError, match="gives no token probabilities"):
                await engine.complete(QUESTION, replace(HOT, top_logprobs=3), 1)
            assert engine.usage.servers[0].requests == 1

    asyncio.run(scene())


def test_vllm_takes_n_and_seeds_and_gives_probabilities(vllm: str) -> None:
    async def scene() -> None:
        async with engine_for(vllm, **SETTINGS) as engine:
            written = await engine.complete(QUESTION, HOT, 5)
            assert await engine.complete(QUESTION, HOT, 5) == written, "its seeds decide"
            (used,) = engine.usage.servers
            assert used.takes_n and used.requests == 2
            told = await engine.complete(QUESTION, replace(HOT, top_logprobs=3), 5)
        assert len(set(texts(written))) > 1
        for each in told:
            assert "".join(step.text for step in each.steps) == each.text
            assert all(len(step.top_logprobs) == 3 for step in each.steps)
            assert all(step.top_logprobs[0].logprob >= step.top_logprobs[1].logprob for step in each.steps)
            assert each.tokens >= len(each.steps)

    asyncio.run(scene())


def test_vllm_refuses_what_it_cannot_serve_and_says_why(vllm: str) -> None:
    async def scene() -> None:
        async with engine_for(vllm, **SETTINGS) as engine:
            with pytest.raises(EngineError, match=r"400 Bad Request: .*512 tokens"):
                await engine.complete((Message("user", "red fruits " * 400),), HOT, 1)
            assert engine.usage.servers[0].requests == 1
        with pytest.raises(UserError, match=f"serves {MODEL}, not somebody; fix: "):
            async with engine_for(vllm, **{**SETTINGS, "model": "somebody"}):
                pass

    asyncio.run(scene())


# --- a run, and one of two servers killed in the middle of it ---


def settings() -> AnnotationSettings:
    rubric, metarubric = Rubric.load("pocket_judge"), MetaRubric.load("pocket_metajudge")
    sampling = replace(HOT, max_tokens=48)
    return AnnotationSettings(3, 2, sampling, sampling, replace(HOT, max_tokens=16), rubric, metarubric, 2, True, 5)


class KillAt(SilentProgress):
    """Kills a server when so many prompts are finished."""

    def __init__(self, server: Served, finished: int) -> None:
        self.server = server
        self.left = finished

    def advance(self, role: str, n: int) -> None:
        if role == PROMPTS:
            self.left -= n
            if self.left == 0:
                self.server.kill()


async def swept(engine: OpenAIEngine, store: RecordStore, progress: SilentProgress) -> None:
    outcome = await annotate_prompts(engine, prompts(12, seed=1), settings(), store, progress, max_concurrent_prompts=6)
    assert (outcome.finished, outcome.failed) == (12, ())


def check(records: Sequence[PromptRecord]) -> None:
    """Every prompt once, with every answer and every judgment once."""
    assert sorted(record.prompt.id for record in records) == sorted(prompt.id for prompt in prompts(12, seed=1))
    for record in records:
        numbers = [each.index for each in record.candidates_K] + [each.index for each in record.duplicates]
        assert sorted(numbers) == [0, 1, 2]
        assert all([judgment.index for judgment in each.judgments_N] == [0, 1] for each in record.candidates_K)


@pytest.mark.parametrize(
    "commands",
    [
        pytest.param((transformers_serve, transformers_serve), id="transformers"),
        pytest.param((vllm_serve, transformers_serve), id="vllm-and-transformers"),
    ],
)
def test_one_of_two_servers_killed_in_mid_run_costs_nothing(
    commands: Sequence[Callable[[int], list[str]]], tmp_path: Path
) -> None:
    async def scene(steady: Served, mortal: Served, store: RecordStore) -> None:
        async with engine_for(steady.url, mortal.url, **SETTINGS) as engine:
            # Each answers before one is killed: the first requests take some servers much longer.
            await asyncio.gather(*(engine.complete(QUESTION, HOT, 1) for _ in range(4)))
            await swept(engine, store, KillAt(mortal, 4))
            used = {each.url: each for each in engine.usage.servers}
        print(used)
        assert mortal.process.returncode == -signal.SIGKILL
        assert all(used[f"{server.url}/v1"].requests > used[f"{server.url}/v1"].failed for server in (steady, mortal))
        assert used[f"{mortal.url}/v1"].failed >= 1, "it was killed with requests under way"

    for steady, mortal in running(commands, tmp_path):
        with RecordStore.open(tmp_path / "records.sqlite", annotation_fingerprint(settings())) as store:
            asyncio.run(scene(steady, mortal, store))
            check(list(read_records(store)))
