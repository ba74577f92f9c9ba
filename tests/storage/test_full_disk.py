"""A disk that fills up stops a run in one line; when there is space again, it ends as if nothing had happened."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from whole_runs import Workspace, run_results

pytestmark = pytest.mark.timeout(3600)

ENOUGH = 4000


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Where a disk can be mounted; skips where that isn't allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    return folder


def starts(workspace: Workspace, disk: Path, run: Path, steps: Sequence[int]) -> tuple[list[dict[str, Any]], object]:
    """What each start ended with, and the outcome in the end."""
    script = [sys.executable, str(Path(__file__).parents[1] / "support" / "processes.py"), "run_on_small_disk"]
    words = [str(workspace.folder), str(disk), str(run), *map(str, steps)]
    done = subprocess.run(["unshare", "-rm", *script, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    *each, last = map(json.loads, done.stdout.splitlines())
    return each, last


def check(each: Sequence[dict[str, Any]]) -> None:
    """Every start but the last one stopped in one line for want of space."""
    for start in each[:-1]:
        assert start["code"] == 2, start
        assert "Traceback" not in start["errors"]
        line = start["errors"].splitlines()[-1]
        assert line.startswith("metareward: ") and ("No space left" in line or "the disk is full" in line), line
    assert each[-1]["code"] == 0, each[-1]


@pytest.mark.slow
def test_full_while_measuring_then_not(workspace: Workspace, disk: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(workspace.reference().path, run)
    shutil.rmtree(run / "iter-2/eval")
    for name in ("iter-2/done.json", "report.html"):
        (run / name).unlink()
    each, found = starts(workspace, disk, run, [8, ENOUGH])
    check(each)
    assert found == json.loads(json.dumps(run_results(workspace.reference())))


@pytest.mark.slow
def test_full_again_and_again_from_the_beginning(workspace: Workspace, disk: Path, tmp_path: Path) -> None:
    each, found = starts(workspace, disk, tmp_path / "none", [1, 2, 6, 12, 12, 20, 20, 30, 60, 60, 90, 90, 120, ENOUGH])
    check(each)
    assert found == json.loads(json.dumps(run_results(workspace.reference())))
