"""A second driver never runs in a folder, whatever is deleted there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from metareward.errors import UserError
from metareward.storage.atomic import atomic_dir, write_atomic
from metareward.storage.lock import FolderLock, require_held
from metareward.storage.run_dir import RunDir
from metareward.storage.run_log import log_event
from metareward.storage.store import RecordStore

# Holds the lock of a folder and waits in a system call; says how that ended, as the command line does.
DRIVER = """
import sys, time
from pathlib import Path
from metareward.errors import UserError
from metareward.storage.run_dir import RunDir
try:
    with RunDir(Path(sys.argv[1])).lock():
        print("held", flush=True)
        time.sleep(60)
except UserError as error:
    print(error, flush=True)
"""


@contextmanager
def driver(folder: Path, ignoring: bool = False) -> Iterator[subprocess.Popen[str]]:
    start = (lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignoring else None
    command = [sys.executable, "-c", DRIVER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=start) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="open files can't be deleted there")
def test_a_second_run_is_refused_whatever_is_deleted(tmp_path: Path) -> None:
    with driver(tmp_path / "run") as first:
        run = RunDir(tmp_path / "run")
        for deleted in (("lock",), ("lock.json",), ("lock", "lock.json"), ("lock",)):
            for name in deleted:
                (run.path / name).unlink(missing_ok=True)
            assert run.holder() is not None
            with pytest.raises(UserError, match=r"process .*is running here; fix: wait for it or stop it"), run.lock():
                pass
        assert first.poll() is None
    assert run.holder() is None
    with run.lock():
        pass


def test_a_run_whose_folder_is_replaced_ends_and_leaves_the_new_folder_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with driver(folder) as first:
        assert first.stdout is not None
        folder.rename(tmp_path / "elsewhere")
        with RunDir(folder).lock():
            began = time.monotonic()
            said = first.stdout.readline()
            assert time.monotonic() - began < 5
            assert said.startswith(f"{folder}: the run folder was replaced while the run was going on")
            first.wait()
            assert (folder / "lock.json").is_file(), "the second one's"


def test_a_run_whose_folder_is_deleted_says_so_whatever_error_that_leads_to(tmp_path: Path) -> None:
    def work(run: RunDir) -> None:
        with run.lock():
            shutil.rmtree(run.path)
            run.recipe.read_text()

    with pytest.raises(UserError, match="the run folder was removed or moved away while") as told:
        work(RunDir(tmp_path / "run"))
    assert isinstance(told.value.__cause__, FileNotFoundError)


def test_nothing_is_written_into_a_folder_that_has_taken_the_place_of_the_locked_one(tmp_path: Path) -> None:
    folder, lock = tmp_path / "run", FolderLock(tmp_path / "run")
    folder.mkdir()
    store = RecordStore.open(folder / "records.sqlite", {})
    assert lock.acquire()
    lock.hold()
    try:
        store.put("a", "1")
        require_held(tmp_path / "other/file")
        folder.rename(tmp_path / "moved")
        folder.mkdir()
        for write in (
            lambda: write_atomic(folder / "iter-1/done.json", "{}"),
            lambda: store.put("b", "2"),
            lambda: log_event(RunDir(folder), "event"),
            lambda: atomic_dir(folder / "model").__enter__(),
        ):
            with pytest.raises(UserError, match="the run folder was replaced"):
                write()
        assert list(folder.iterdir()) == []
        assert store.keys() == {"a"}
    finally:
        lock.release()
        store.close()
    require_held(folder / "file")


@pytest.mark.skipif(sys.platform == "win32", reason="open files can't be deleted there")
def test_where_folders_cannot_be_locked_a_deleted_lock_file_ends_the_run(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path, lock_folder=False), FolderLock(tmp_path, lock_folder=False)
    assert first.acquire() and not second.acquire()
    first.hold()
    try:
        write_atomic(tmp_path / "a", "")
        (tmp_path / "lock").unlink()
        with pytest.raises(UserError, match=r"lock: the run folder's lock file was removed or moved away"):
            write_atomic(tmp_path / "b", "")
        assert second.acquire()
        with pytest.raises(UserError, match="lock file was replaced"):
            write_atomic(tmp_path / "b", "")
    except KeyboardInterrupt:
        pytest.fail("the watching thread was not quicker than half a second")
    finally:
        first.release()
        second.release()


@pytest.mark.slow
def test_a_background_job_that_ignores_ctrl_c_ends_too(tmp_path: Path) -> None:
    with driver(tmp_path / "run", ignoring=True) as first:
        shutil.rmtree(tmp_path / "run")
        assert first.wait(10) == -signal.SIGTERM  # the command line's handler says why


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    with RunDir(tmp_path).lock():
        child = os.fork()
        if not child:
            time.sleep(30)
            os._exit(0)
    try:
        with RunDir(tmp_path).lock():
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
