"""Annotating many prompts: bounded, resumable, and the same records after any interruption."""

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from scripted_models import SlowEngine, here, prompts, reply, role_of, settings

from metareward.engines.base import Engine, EngineError, ScriptedEngine
from metareward.errors import UserError
from metareward.generation.annotate import annotate_prompt, annotation_fingerprint
from metareward.generation.progress import SILENT, Progress
from metareward.generation.runner import RunnerResult, annotate_prompts, run_tasks
from metareward.storage.records import read_records
from metareward.storage.store import RecordStore
from metareward.types import Messages, Prompt, Sampling


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RecordStore]:
    with RecordStore.open(tmp_path / "records.sqlite", annotation_fingerprint(settings())) as opened:
        yield opened


def run(
    engine: Engine, store: RecordStore, count: int = 12, max_concurrent_prompts: int = 64, progress: Progress = SILENT
) -> RunnerResult:
    return asyncio.run(annotate_prompts(engine, prompts(count), settings(), store, progress, max_concurrent_prompts))


def failing(fails: Callable[[int], bool], error: Exception | None = None, at: str = "actor") -> ScriptedEngine:
    """An engine that fails the prompts whose number ``fails``."""

    def say(messages: Messages, sampling: Sampling, i: int) -> str:
        number = int(messages[-1].content.split("country ")[1].split("?")[0])
        if fails(number) and role_of(messages) == at:
            raise error or EngineError(f"country {number}:\n  unknown")
        return reply(messages, sampling, i)

    return ScriptedEngine(say)


@dataclass
class Log:
    """A progress that remembers."""

    total: dict[str, int] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    finished: int = 0

    def start(self, stage: str, total: Mapping[str, int]) -> None:
        self.total = dict(total)

    def advance(self, role: str, n: int) -> None:
        self.done[role] = self.done.get(role, 0) + n

    def finish(self) -> None:
        self.finished += 1


def test_records_equal_those_of_single_prompts(store: RecordStore) -> None:
    assert run(SlowEngine(0.0005), store) == RunnerResult(12, 0, ())
    alone = [asyncio.run(annotate_prompt(ScriptedEngine(reply), prompt, settings())) for prompt in prompts(12)]
    assert list(read_records(store)) == alone


def test_finished_prompts_are_cached(store: RecordStore) -> None:
    run(ScriptedEngine(reply), store, 5)
    engine, log = ScriptedEngine(reply), Log()
    assert run(engine, store, 8, progress=log) == RunnerResult(3, 5, ())
    assert [call.messages for call in engine.calls if role_of(call.messages) == "actor"] == [
        prompt.messages for prompt in prompts(8)[5:]
    ]
    assert log.total["prompts"] == 3
    assert run(ScriptedEngine(reply), store, 8, progress=(idle := Log())) == RunnerResult(0, 8, ())
    assert (idle.total, idle.finished) == ({}, 0)


def test_concurrency_is_bounded_and_prompts_start_in_order(store: RecordStore) -> None:
    started: list[str] = []
    running = 0

    async def task(prompt: Prompt) -> str:
        nonlocal running
        started.append(prompt.id)
        running += 1
        assert running <= 3
        await asyncio.sleep(0.001 * (1 + len(started) % 3))
        running -= 1
        return "{}"

    asyncio.run(run_tasks(task, prompts(20), store, SILENT, "testing", {}, max_concurrent_prompts=3))
    assert started == [prompt.id for prompt in prompts(20)]
    assert store.keys() == set(started)


def test_progress_counts_every_kind(store: RecordStore) -> None:
    log = Log()
    run(ScriptedEngine(reply), store, 12, progress=log)
    records = list(read_records(store))
    assert log.total == {"prompts": 12, "answers": 48, "judgments": 144, "meta-judgments": 72}
    assert log.done == {
        "prompts": 12,
        "answers": 48,
        "judgments": sum(3 * len(record.candidates_K) for record in records),
        "meta-judgments": sum(len(record.dispute.meta) for record in records if record.dispute),
    }
    assert log.finished == 1


@pytest.mark.parametrize("role", ["actor", "judge", "meta"])
def test_a_failed_prompt_is_stored_and_retried(store: RecordStore, role: str) -> None:
    log = Log()
    outcome = run(failing(lambda number: number in (2, 3, 5, 7, 9), at=role), store, progress=log)
    failed = [key for key, _ in outcome.failed]
    assert failed and set(failed) <= {"p002", "p003", "p005", "p007", "p009"}
    assert (role == "meta") or len(failed) == 5
    assert outcome.failed[0][1] == f"country {int(failed[0][1:])}: unknown"
    assert outcome.finished == 12 - len(failed)
    assert dict(outcome.failed) == store.failures()
    assert log.done["prompts"] == 12
    engine = ScriptedEngine(reply)
    assert run(engine, store, 14) == RunnerResult(len(failed) + 2, outcome.finished, ())
    first = next(call.messages for call in engine.calls if role_of(call.messages) == "actor")
    assert first == prompts(14)[12].messages, "what was never tried comes first"
    assert store.failures() == {}


@pytest.mark.parametrize("at", ["actor", "judge", "meta"])
def test_a_bug_that_one_prompt_finds_fails_that_prompt_and_names_its_place(
    store: RecordStore, caplog: pytest.LogCaptureFixture, at: str
) -> None:
    bad = {6} if at != "meta" else set(range(6, 9))  # not every prompt has meta-judgments
    engine = SlowEngine(0.001, failing(lambda number: number in bad, ZeroDivisionError("ours:\n no"), at))
    outcome = run(engine, store, 24, max_concurrent_prompts=4)
    failed = dict(outcome.failed)
    assert failed and set(failed) <= {f"p{number:03d}" for number in bad}
    assert outcome.finished == 24 - len(failed)
    for key, line in failed.items():
        assert re.fullmatch(r"ZeroDivisionError: ours: no \(test_runner\.py:\d+\)", line)
        assert f"prompt {key} failed with an unexpected error: {line}" in caplog.text
    assert store.failures() == failed


def test_what_the_user_must_mend_ends_the_call_and_cancels_the_rest(store: RecordStore) -> None:
    engine = SlowEngine(0.001, failing(lambda number: number == 6, UserError("the disk is full")))
    log = Log()
    with pytest.raises(UserError, match=r"^the disk is full$"):
        run(engine, store, 200, max_concurrent_prompts=4, progress=log)
    assert engine.in_flight == 0
    assert log.finished == 1
    assert 1 <= len(store.keys()) < 20
    assert store.failures() == {}


def test_a_dead_engine_stops_early(store: RecordStore) -> None:
    run(ScriptedEngine(reply), store, 3)
    engine = failing(lambda number: number >= 30)
    with pytest.raises(UserError) as caught:
        run(engine, store, 500, max_concurrent_prompts=4)
    assert str(caught.value).startswith("20 prompts in a row failed; the last one, p0")
    assert ": unknown; fix:" in str(caught.value) and "\n" not in str(caught.value)
    assert 27 <= len(store.keys()) <= 30, "up to three were under way"
    assert 20 <= len(store.failures()) < 24


def test_bad_prompts_among_good_ones_do_not_stop_the_run(store: RecordStore) -> None:
    engine = SlowEngine(0.0005, failing(lambda number: number % 3 > 0))
    outcome = run(engine, store, 120, max_concurrent_prompts=64)
    assert (outcome.finished, len(outcome.failed)) == (40, 80)


def test_prompts_that_failed_before_do_not_stop_the_next_call(store: RecordStore) -> None:
    engine = failing(lambda number: number % 2 == 0)
    assert len(run(engine, store, 100).failed) == 50
    assert len(run(engine, store, 100).failed) == 50
    assert len(store.keys()) == 50


def test_if_all_prompts_fail_it_is_an_error(store: RecordStore) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match=r"all 5 prompts failed; the last one, p00\d: country \d: unknown; fix:"):
            run(failing(lambda number: True), store, 5)


def test_concurrency_below_one_is_refused(store: RecordStore) -> None:
    with pytest.raises(ValueError, match="max_concurrent_prompts is 0"):
        run(ScriptedEngine(reply), store, max_concurrent_prompts=0)


def test_no_prompts(store: RecordStore) -> None:
    assert run(ScriptedEngine(reply), store, 0) == RunnerResult(0, 0, ())


def test_a_store_that_cannot_be_written_stops_the_run(tmp_path: Path) -> None:
    RecordStore.open(tmp_path / "records.sqlite", {}).close()
    engine = SlowEngine(0.001)
    with RecordStore.read(tmp_path / "records.sqlite") as store, pytest.raises(UserError, match="read-only"):
        run(engine, store)
    assert engine.in_flight == 0


def process(store: Path, count: int, seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, str(here() / "processes.py"), "annotate", str(store), str(count), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def contents(store: Path) -> dict[str, str]:
    with RecordStore.read(store) as opened:
        return dict(opened.documents())


def uninterrupted(folder: Path, count: int) -> dict[str, str]:
    with RecordStore.open(folder / "whole.sqlite", annotation_fingerprint(settings())) as store:
        run(ScriptedEngine(reply), store, count)
        return dict(store.documents())


@pytest.mark.parametrize("sent", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_an_interrupted_run_resumes_to_the_same_records(tmp_path: Path, sent: signal.Signals) -> None:
    store, count = tmp_path / "records.sqlite", 60
    kept: dict[str, str] = {}
    for commits in (1, 9, 14) if sent == signal.SIGKILL else (9,):
        with process(store, count, 0.002) as running:
            assert running.stdout is not None
            said = [running.stdout.readline() for _ in range(commits)]
            running.send_signal(sent)
            said += running.stdout.readlines()
        before, kept = kept, contents(store)
        assert len(before) + said.count("committed\n") <= len(kept) < count
        assert before.items() <= kept.items()
        assert running.returncode == (-signal.SIGKILL if sent == signal.SIGKILL else -signal.SIGINT)
    with process(store, count, 0.0) as running:
        assert running.stdout is not None
        assert running.stdout.readlines()[-1] == f"finished {count - len(kept)} cached {len(kept)} failed 0\n"
    assert contents(store) == uninterrupted(tmp_path, count)
