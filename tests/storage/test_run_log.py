from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from metareward.errors import UserError
from metareward.storage.run_dir import RunDir
from metareward.storage.run_log import seconds, tell, timed


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def test_an_event_is_a_line_in_the_log_and_one_for_the_user(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    tell(run, "trained", model="M1", loss=0.693147, pairs=12)
    tell(run, "done")
    first, second = map(json.loads, run.log.read_text(encoding="utf-8").splitlines())
    assert (first["event"], first["model"], first["loss"], first["pairs"]) == ("trained", "M1", 0.693147, 12)
    assert first["time"].endswith("+00:00")
    assert second["event"] == "done"
    assert capsys.readouterr().err == "trained model=M1 loss=0.6931 pairs=12\ndone\n"


def test_what_is_told_can_t_drive_the_terminal(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    tell(run, "left behind", note="\x1b[2J évil\nline\u202e")
    assert capsys.readouterr().err == "left behind note= [2J évil line \n"
    assert len(run.log.read_bytes().splitlines()) == 1


def test_a_log_that_can_t_be_written_is_one_line(run: RunDir) -> None:
    run.log.mkdir()
    with pytest.raises(UserError, match=r"log\.jsonl: can't be written: Is a directory; fix: free space"):
        tell(run, "done")


def slow_mistake() -> None:
    time.sleep(0.05)
    raise KeyError


def test_the_clock_goes_on_over_starts_and_errors(run: RunDir) -> None:
    assert seconds(run, 1) == {}
    with timed(run, 1, "generating"):
        time.sleep(0.05)
    with pytest.raises(KeyError), timed(run, 1, "generating"):
        slow_mistake()
    with timed(run, 1, "training"):
        pass
    assert seconds(run, 1)["generating"] >= 0.1
    assert list(seconds(run, 1)) == ["generating", "training"]
    assert seconds(run, 2) == {}
