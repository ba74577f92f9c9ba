from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import small_recipe, small_run

from metareward.errors import UserError
from metareward.pipeline.status import IterationStatus, status, status_text
from metareward.storage.run_dir import RunDir, mark_done
from metareward.storage.store import RecordStore


def test_what_is_done_and_what_is_pending(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    found = status(run)
    first, second, third = found.iterations[1:4]
    assert found.recipe == small_recipe()
    assert [each.evaluated for each in found.iterations] == [True, True, False, False, False]
    assert (first.finished, first.failed, first.trained, first.done) == (6, 1, True, True)
    assert first.actor_pairs is not None and first.judge_pairs is not None
    assert (second.finished, second.actor_pairs, second.trained, second.done) == (2, None, False, False)
    assert third == IterationStatus(3, 0, 0, None, None, trained=False, measured=0, evaluated=False, done=False)
    assert not found.complete


def test_the_text_says_it_in_a_few_lines(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    lines = status_text(run).splitlines()
    assert lines[0] == f"{run.path}: not running; `metareward run {run.path}` resumes it"
    assert lines[1] == "model pocket, 1 of 4 iterations done"
    rows = {line.split()[0]: line for line in lines if line.startswith("M")}
    assert "given" in rows["M0"]
    assert "6/6 (1 failed)" in rows["M1"]
    assert "2/6 (1 failed)" in rows["M2"] and rows["M2"].count("pending") == 4
    assert "none planned" in rows["M3"]


def test_an_evaluation_under_way_is_counted(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    run.iteration(2).evaluation.mkdir()
    with RecordStore.open(run.iteration(2).evaluation / "records.sqlite", {}) as store:
        store.put("h1", "{}")
    assert "1 prompts so far" in status_text(run)


def test_the_end_of_the_log_is_shown_and_can_not_drive_the_terminal(tmp_path: Path) -> None:
    text = status_text(small_run(tmp_path / "run"))
    assert "  2026-01-01T00:00:00+00:00  pairs iteration=1 actor=6\n" in text
    assert "  not json ␛[31m\n" in text and "\x1b" not in text


def test_a_run_at_work_is_told_by_its_lock(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    with run.lock():
        assert "running (process " in status_text(run)
    assert "not running" in status_text(run)


def test_a_killed_run_is_not_at_work(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    code = "import os, sys; from pathlib import Path; from metareward.storage.run_dir import RunDir\n"
    code += "with RunDir(Path(sys.argv[1])).lock(): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(run.path)], check=False).returncode == 9
    assert (run.path / "lock.json").is_file()
    assert status(run).holder is None and "not running" in status_text(run)


def test_looking_leaves_nothing_behind(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")

    def files() -> list[Path]:
        return sorted(path for path in run.path.rglob("*") if not path.name.endswith(("-wal", "-shm")))

    before = files()
    status_text(run)
    assert files() == before


def test_a_finished_run_says_so(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    for t in (2, 3, 4):
        mark_done(run.iteration(t).done, {})
    assert status_text(run).startswith(f"{run.path}: finished\n")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        status_text(RunDir(tmp_path))
