"""The worker pool: it spreads work, survives the death of workers, and leaves none behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path

import pytest

from metareward.engines.base import Engine, EngineError
from metareward.engines.local.engine import LocalEngine
from metareward.engines.local.workers import LocalSettings, Worker, WorkerPool, open_local
from metareward.errors import UserError
from metareward.types import Completion, Message, Messages, Sampling

Conversation = Callable[[int, int], Messages]
Ask = tuple[Messages, Sampling, int]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as opened:
        yield opened


@pytest.fixture(scope="module")
def pool(runner: asyncio.Runner, llama: Path) -> Iterator[WorkerPool]:
    """Two workers. The tests below share them in order, as starting one takes seconds; the last ones kill and close."""
    opened = runner.run(
        open_local(llama, LocalSettings(device="cpu", dtype="float32", workers=2, threads=1, max_num_seqs=28))
    )
    assert isinstance(opened, WorkerPool)
    yield opened
    runner.run(opened.aclose())


def gone(pid: int) -> bool:
    """Whether the process has ended within a few seconds; a zombie has."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def asks(conversation: Conversation, count: int, limit: int) -> list[Ask]:
    return [(conversation(i, 4 + i % 9), Sampling(1.0, 0.95, limit, seed=i), (7, 1)[i % 2]) for i in range(count)]


async def complete_all(engine: Engine, requests: Sequence[Ask]) -> list[Sequence[Completion]]:
    return await asyncio.gather(*(engine.complete(*request) for request in requests))


def test_a_pool_generates_the_same_texts_as_one_engine(
    runner: asyncio.Runner, pool: WorkerPool, llama: Path, conversation: Conversation
) -> None:
    requests = asks(conversation, 24, 12)
    alone = LocalEngine.open(llama, device="cpu", dtype="float32", max_num_seqs=28, deterministic=True)
    expected = runner.run(complete_all(alone, requests))
    runner.run(alone.aclose())
    assert runner.run(complete_all(pool, requests)) == expected
    assert len(set(pool.pids)) == 2


def test_warnings_of_a_worker_are_logged_by_the_parent(
    runner: asyncio.Runner, caplog: pytest.LogCaptureFixture
) -> None:
    program = """
import logging
from metareward.engines.local.worker import Replies, WarningForwarder
logging.getLogger("metareward").addHandler(WarningForwarder(Replies()))
logging.getLogger("metareward.engines.local.engine").warning("%s is slow", "it")
"""

    async def heard() -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
        await Worker(process, BytesIO()).listen()

    runner.run(heard())
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("WARNING", "it is slow")]


def test_a_prompt_that_is_too_long_fails_alone(
    runner: asyncio.Runner, pool: WorkerPool, conversation: Conversation
) -> None:
    with pytest.raises(EngineError, match="256 tokens"):
        runner.run(pool.complete(conversation(1, 400), Sampling(1.0, 1.0, 4), 1))


def test_a_cancelled_request_does_not_disturb_the_others(
    runner: asyncio.Runner, pool: WorkerPool, conversation: Conversation
) -> None:
    async def scene() -> Sequence[Completion]:
        hasty = asyncio.create_task(pool.complete(conversation(1, 4), Sampling(1.0, 1.0, 150), 7))
        patient = asyncio.create_task(pool.complete(conversation(2, 4), Sampling(1.0, 1.0, 150), 7))
        await asyncio.sleep(0.05)
        hasty.cancel()
        return await patient

    assert len(runner.run(scene())) == 7


@pytest.mark.slow  # by default: test_a_killed_worker_is_started_again
def test_requests_of_a_killed_worker_are_served_by_another(
    runner: asyncio.Runner, pool: WorkerPool, conversation: Conversation
) -> None:
    requests = asks(conversation, 24, 60)
    undisturbed = runner.run(complete_all(pool, requests))
    victim = pool.pids[0]

    async def scene() -> list[Sequence[Completion]]:
        working = [asyncio.create_task(pool.complete(*request)) for request in requests]
        await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
        os.kill(victim, signal.SIGKILL)
        return await asyncio.gather(*working)

    assert runner.run(scene()) == undisturbed
    assert victim not in pool.pids


async def as_many(pool: WorkerPool, count: int) -> tuple[int, ...]:
    """The workers, when there are as many."""
    while len(pool.pids) < count:
        await asyncio.sleep(0.02)
    return pool.pids


def test_a_killed_worker_is_started_again(
    runner: asyncio.Runner, pool: WorkerPool, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(set(runner.run(as_many(pool, 2)))) == 2


@pytest.mark.slow
def test_a_worker_that_writes_garbage_or_dies_with_its_work_is_started_again(
    runner: asyncio.Runner, pool: WorkerPool, conversation: Conversation, caplog: pytest.LogCaptureFixture
) -> None:
    request = asks(conversation, 1, 60)[0]

    async def scene(victims: Sequence[int]) -> Sequence[Completion]:
        working = asyncio.create_task(pool.complete(*request))
        await asyncio.sleep(0)
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        return await working

    undisturbed = runner.run(scene([]))
    assert runner.run(scene(pool.pids)) == undisturbed, "none was left, so it waits for the first that is there again"
    assert caplog.text.count("ended by signal 9; it is started again") == 2
    assert len(runner.run(as_many(pool, 2))) == 2


@pytest.mark.slow
def test_a_request_that_workers_die_of_fails_alone(llama: Path, conversation: Conversation) -> None:
    poison = (Message("user", "poison"),)

    async def kill_the_poisoned(pool: WorkerPool) -> None:
        while True:
            for worker in pool._alive:
                if any(b"poison" in job.line for job in worker.jobs.values()):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(worker.pid, signal.SIGKILL)
            await asyncio.sleep(0.005)

    async def scene() -> None:
        pool = await opened(llama)
        assert isinstance(pool, WorkerPool)
        killer = asyncio.create_task(kill_the_poisoned(pool))
        asked = [pool.complete(*each) for each in asks(conversation, 12, 8)]
        bad = pool.complete(poison, Sampling(1.0, 1.0, 200), 1)
        failure, *others = await asyncio.gather(bad, *asked, return_exceptions=True)
        killer.cancel()
        assert isinstance(failure, EngineError) and "ended by signal 9; the request was tried 4 times" in str(failure)
        assert not [each for each in others if isinstance(each, BaseException)]
        await pool.aclose()

    asyncio.run(scene())


def test_a_folder_without_a_model_is_rejected_before_workers_start(runner: asyncio.Runner, tmp_path: Path) -> None:
    folder = tmp_path / "nothing"
    with pytest.raises(UserError, match="nothing: no such model folder"):
        runner.run(open_local(folder, LocalSettings(max_num_seqs=8)))


async def opened(folder: Path) -> Engine:
    return await open_local(folder, LocalSettings(device="cpu", dtype="float32", workers=1, threads=1, max_num_seqs=8))


@pytest.mark.slow
def test_load_errors_reach_the_caller(llama: Path, tmp_path: Path) -> None:
    mute = Path(shutil.copytree(llama, tmp_path / "mute"))
    (mute / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="mute: the tokenizer has no chat template"):
        asyncio.run(opened(mute))


def test_closing_ends_the_workers(runner: asyncio.Runner, pool: WorkerPool) -> None:
    """The last test of the pool that the others share."""
    pids = runner.run(as_many(pool, 2))
    runner.run(pool.aclose())
    assert len(pids) == 2 and all(map(gone, pids))
    with pytest.raises(EngineError, match="closed"):
        runner.run(pool.complete((Message("user", "late"),), Sampling(1.0, 1.0, 2), 1))


PARENT = """
import asyncio, sys
from pathlib import Path
from metareward.engines.local.workers import LocalSettings, open_local
from metareward.types import Message, Sampling

async def main():
    settings = LocalSettings(device="cpu", dtype="float32", workers=1, threads=1, max_num_seqs=28, deterministic=False)
    engine = await open_local(Path(sys.argv[1]), settings)
    assert "torch" not in sys.modules
    print(*engine.pids, flush=True)
    ask = (Message("user", "red fruits"),)
    await asyncio.gather(*(engine.complete(ask, Sampling(1.0, 1.0, 200, seed), 7) for seed in range(4000)))

asyncio.run(main())
"""


@pytest.mark.slow  # by default: test_a_worker_that_is_still_starting_dies_with_its_parent
def test_no_worker_outlives_a_parent_that_is_killed(llama: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(llama)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 1
        time.sleep(0.3)
        parent.kill()
    assert all(gone(pid) for pid in pids)


STARTING_PARENT = """
import asyncio, json, os, sys
from metareward.engines.local.workers import Worker

settings = {"parent": os.getpid(), "folder": sys.argv[1], "device": "cpu", "dtype": "float32", "threads": 1,
            "max_num_seqs": 8, "deterministic": False}

async def main():
    start = asyncio.create_task(Worker.start(settings))
    await asyncio.sleep(0.3)
    assert "torch" not in sys.modules
    print("started", flush=True)
    await start

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and PR_SET_PDEATHSIG")
def test_a_worker_that_is_still_starting_dies_with_its_parent(llama: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTING_PARENT, str(llama)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "started\n"
        (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        parent.kill()
        began = time.monotonic()
    assert gone(int(child)) and time.monotonic() - began < 2
