from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from metareward.errors import UserError
from metareward.storage.run_dir import RunDir
from metareward.storage.run_log import log_event, stage_seconds, timed


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def test_an_event_is_written_to_the_log_and_to_standard_error(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    log_event(run, "trained", model="M1", loss=0.693147, pairs=12)
    log_event(run, "done")
    first, second = map(json.loads, run.log.read_text(encoding="utf-8").splitlines())
    assert (first["event"], first["model"], first["loss"], first["pairs"]) == ("trained", "M1", 0.693147, 12)
    assert first["time"].endswith("+00:00")
    assert second["event"] == "done"
    assert capsys.readouterr().err == "trained model=M1 loss=0.6931 pairs=12\ndone\n"


def test_control_characters_are_not_printed(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    log_event(run, "skipped", note="\x1b[2J évil\nline\u202e")
    assert capsys.readouterr().err == "skipped note= [2J évil line \n"
    assert len(run.log.read_bytes().splitlines()) == 1


def test_a_log_that_cannot_be_written_is_a_user_error(run: RunDir) -> None:
    run.log.mkdir()
    with pytest.raises(UserError, match=r"log\.jsonl: can't be written: Is a directory; fix: free space"):
        log_event(run, "done")


def slow_mistake() -> None:
    time.sleep(0.05)
    raise KeyError


def test_stage_seconds_add_up_over_starts_and_errors(run: RunDir) -> None:
    assert stage_seconds(run, 1) == {}
    with timed(run, 1, "generating"):
        time.sleep(0.05)
    with pytest.raises(KeyError), timed(run, 1, "generating"):
        slow_mistake()
    with timed(run, 1, "training"):
        pass
    assert stage_seconds(run, 1)["generating"] >= 0.1
    assert list(stage_seconds(run, 1)) == ["generating", "training"]
    assert stage_seconds(run, 2) == {}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"null", b"\xff", b'{"generating": "1"}', b'{"generating": NaN}', b"[" * 100_000]
)
def test_damaged_seconds_count_from_zero_with_a_warning(
    run: RunDir, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run.iteration(1).path / "seconds.json"
    path.parent.mkdir()
    path.write_bytes(content)
    assert stage_seconds(run, 1) == {}
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {path}: ") and warning.count("\n") == 1
    with timed(run, 1, "generating"):
        pass
    assert list(stage_seconds(run, 1)) == ["generating"]
    assert path.with_name("seconds.json.damaged").read_bytes() == content
