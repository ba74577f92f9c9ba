from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from fake_run import fake_run
from run_folders import small_run
from whole_runs import invoke

from metareward.errors import UserError
from metareward.pipeline.run_list import age, list_runs
from metareward.storage.run_dir import RunDir


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, a stopped one, two damaged ones, and a folder that is no run."""
    folder = tmp_path_factory.mktemp("runs")
    finished = fake_run(folder / "finished")
    for t in range(1, 5):
        finished.iteration(t).model.mkdir(exist_ok=True)
        (finished.iteration(t).model / "config.json").write_text("{}")
    shutil.copytree(finished.path, folder / "gone")
    shutil.rmtree(folder / "gone/iter-2/model")
    small_run(folder / "deeper" / "stopped")
    fake_run(folder / "damaged", models=2).iteration(1).summary.write_text("{")
    (folder / "no run").mkdir()
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "runs"))


def test_every_run_is_listed_with_its_state(runs: Path) -> None:
    found = {Path(each.path).name: each for each in list_runs(runs)}
    assert {name: each.state for name, each in found.items()} == {
        "finished": "finished",
        "stopped": "stopped",
        "damaged": "damaged",
        "gone": "damaged",
    }
    assert (found["stopped"].iteration, found["stopped"].iterations) == (1, 4)
    assert found["stopped"].stage == "generating (2 of 6)"
    assert (found["finished"].stage, found["finished"].model) == ("", "pocket")
    assert found["finished"].headline == "quality of M4 3.78 (M0: 2.41)"
    assert "M2 is gone, though its iteration is done; fix: restore it" in found["gone"].note
    assert "summary.json" in found["damaged"].note


def test_a_run_that_is_active_is_said_to_run(runs: Path) -> None:
    with RunDir(runs / "deeper/stopped").lock():
        assert [each.state for each in list_runs(runs / "deeper")] == ["running"]
    assert [each.state for each in list_runs(runs / "deeper")] == ["stopped"]


def test_listing_writes_nothing(runs: Path) -> None:
    def contents() -> dict[Path, bytes]:
        paths = (path for path in runs.rglob("*") if path.is_file() and not path.name.endswith(("-shm", "-wal")))
        return {path: path.read_bytes() for path in paths}

    before = contents()
    list_runs(runs)
    assert contents() == before


def test_the_command_prints_a_table_or_json(runs: Path) -> None:
    told = invoke(["list", str(runs / "deeper")])
    assert told.exit_code == 0 and "stopped" in told.output and "1 of 4" in told.output
    rows = json.loads(invoke(["list", str(runs), "--json"]).output)
    assert [row["state"] for row in rows] == ["damaged", "stopped", "finished", "damaged"]
    (runs / "empty").mkdir()
    assert invoke(["list", str(runs / "empty")]).output == f"no runs in {runs / 'empty'}\n"


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder; fix: name one that holds run folders"):
        list_runs(tmp_path / "runs")


@pytest.mark.parametrize(("seconds", "words"), [(0, "now"), (59, "now"), (61, "1 min ago"), (7300, "2 h ago")])
def test_ages(seconds: float, words: str) -> None:
    assert age(time.time() - seconds) == words
    assert age(None) == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folders_that_can_t_be_read_are_passed_over(runs: Path) -> None:
    (runs / "no run").chmod(0)
    assert len(list_runs(runs)) == 4
