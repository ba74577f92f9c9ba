"""A run folder: its layout, its lock and its done marks."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from metareward.errors import UserError
from metareward.storage.run_dir import RunDir, mark_done, read_done

HOLD = """
import sys, time
from pathlib import Path
from metareward.storage.run_dir import RunDir
with RunDir(Path(sys.argv[1])).lock():
    {then}
    print("held", flush=True)
    time.sleep(60)
"""
FORKED = "import os; os.fork() or time.sleep(60)"
STARTED = "import subprocess; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], close_fds=False)"
SPAWNED = (
    "import multiprocessing as m; child = m.get_context('spawn').Process(target=time.sleep, args=(60,)); child.start()"
)


def holder(folder: Path, then: str = "pass") -> "subprocess.Popen[str]":
    """A process, with its children in a group of its own, that holds the lock of ``folder``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(then=then), folder],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def test_file_names_of_a_run_folder() -> None:
    run = RunDir(Path("runs/a"))
    first = run.iteration(1)
    paths = [run.recipe, run.resolved, run.environment, run.log, run.report]
    assert [str(path) for path in paths] == [
        "runs/a/recipe.yaml",
        "runs/a/resolved.json",
        "runs/a/environment.json",
        "runs/a/log.jsonl",
        "runs/a/report.html",
    ]
    inside = [first.prompts, first.records, first.pairs("actor"), first.pairs("judge"), first.summary, first.dropped]
    inside += [first.model, first.evaluation, first.done]
    assert [str(path.relative_to("runs/a/iter-1")) for path in inside] == [
        "prompts.jsonl",
        "records.sqlite",
        "pairs/actor.parquet",
        "pairs/judge.parquet",
        "pairs/summary.json",
        "dropped.jsonl",
        "model",
        "eval",
        "done.json",
    ]


def test_the_lock_creates_the_folder_and_can_be_taken_again(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "a")
    for _ in range(2):
        with run.lock():
            assert json.loads((run.path / "lock.json").read_text())["pid"] == os.getpid()
    assert run.holder() is None
    assert not (run.path / "lock.json").exists()


def test_a_second_run_is_refused_with_the_holder_named(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with pytest.raises(UserError) as caught, RunDir(tmp_path).lock():
            pass
        assert f"{tmp_path}: process {process.pid} on " in str(caught.value)
        assert "\n" not in str(caught.value)
        assert str(RunDir(tmp_path).holder()).startswith(f"process {process.pid} on ")
    finally:
        end(process)
    assert RunDir(tmp_path).holder() is None


def test_two_locks_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    with RunDir(tmp_path).lock(), pytest.raises(UserError, match=f"process {os.getpid()} "), RunDir(tmp_path).lock():
        pass


def test_the_lock_removes_temporary_files_of_killed_processes(tmp_path: Path) -> None:
    stale = tmp_path / f"iter-1/pairs/.actor.parquet.{2**30}.tmp"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"PAR1")
    with RunDir(tmp_path).lock():
        assert not stale.exists()


def test_the_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), RunDir(tmp_path).lock():
        raise KeyError
    with RunDir(tmp_path).lock():
        pass


@pytest.mark.parametrize("then", ["pass", FORKED, STARTED, SPAWNED], ids=["alone", "forked", "started", "spawned"])
def test_a_killed_holder_leaves_no_lock_even_if_its_child_survives(tmp_path: Path, then: str) -> None:
    process = holder(tmp_path, then)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    living = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    try:
        end(process)
        assert (tmp_path / "lock.json").exists()
        with RunDir(tmp_path).lock():
            assert all(Path(f"/proc/{pid}").exists() for pid in living)
            assert bool(living) == (then != "pass") or not children.parent.parent.parent.exists()
    finally:
        for pid in living:
            os.kill(pid, signal.SIGKILL)


def test_a_file_instead_of_the_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="can't be written"), RunDir(tmp_path / "a").lock():
        pass


def test_a_done_mark_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "done.json"
    assert read_done(path) is None
    mark_done(path, {"é": [1, 2.5], "a": None})
    assert read_done(path) == {"é": [1, 2.5], "a": None}


@pytest.mark.parametrize("content", ["", "{", "[1]", "\xff"])
def test_an_unreadable_done_mark_is_a_user_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "done.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"done\.json: not a .*; fix: delete it"):
        read_done(path)
