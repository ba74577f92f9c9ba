"""The loop's figures in each experiment tracker, read back from its own offline files."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest
from fake_run import MEANS, fake_run
from training_world import changed, make_job, save_model, save_pairs

from metareward.pipeline.trackers import figures, loop_of, track_iteration
from metareward.report.facts import gather
from metareward.storage.run_dir import RunDir
from metareward.training.config import Tracker
from metareward.training.launch import run_training

Told = Mapping[str, Mapping[int, float]]  # name, iteration, value
MODELS = 3


def tracked(folder: Path, chosen: str) -> RunDir:
    return fake_run(folder, models=MODELS, overrides=[f"training.report_to={chosen}"])


def expected(run: RunDir) -> Told:
    facts, found = gather(run), defaultdict[str, dict[int, float]](dict)
    for t in range(MODELS):
        for name, value in figures(run, facts, t):
            found[name][t] = value
    return found


def read_tensorboard(run: RunDir) -> Told:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told = EventAccumulator(str(run.path / "tensorboard")).Reload()
    return {tag: {each.step: each.value for each in told.Scalars(tag)} for tag in told.Tags()["scalars"]}


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of a file that W&B writes offline: LevelDB's log format after a header of 7 bytes."""
    data, place, parts = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while place + 7 <= len(data):
        left = 32_768 - place % 32_768  # a record's head doesn't cross the end of a block
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def read_wandb(run: RunDir) -> Told:
    """One folder for each process that wrote; all are parts of one run."""
    from wandb.proto.wandb_internal_pb2 import Record

    found, ids = defaultdict[str, dict[int, float]](dict), set()
    for path in (run.path / "wandb").glob("offline-run-*/*.wandb"):
        for data in wandb_records(path):
            record = Record.FromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            for name in items.keys() - {"_step", "_runtime", "_timestamp"}:
                found[name][int(items["_step"])] = float(items[name])
    assert len(ids) == 1
    return found


def read_mlflow(run: RunDir) -> Told:
    found = defaultdict[str, dict[int, float]](dict)
    with closing(sqlite3.connect(run.path / "mlflow.db")) as connection:
        rows = connection.execute("SELECT key, step, value, run_uuid FROM metrics").fetchall()
        ((params,),) = connection.execute("SELECT COUNT(*) FROM params WHERE key = 'judgments.n'")
    assert len({run_id for *_, run_id in rows}) == params == 1
    for name, step, value, _ in rows:
        found[name][step] = value
    return found


def read_trackio(run: RunDir) -> Told:
    found = defaultdict[str, dict[int, float]](dict)
    with closing(sqlite3.connect(run.path / "trackio" / "metareward.db")) as connection:
        rows = connection.execute("SELECT step, metrics, run_name FROM metrics").fetchall()
    assert len({name for *_, name in rows}) == 1
    for step, metrics, _ in rows:
        for name, value in json.loads(metrics).items():
            found[name][step] = value
    return found


READERS: Mapping[str, Callable[[RunDir], Told]] = {
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
    "mlflow": read_mlflow,
    "trackio": read_trackio,
}


@pytest.mark.parametrize("tracker", READERS)
def test_a_tracker_gets_the_figures_of_every_iteration_from_processes_of_their_own(
    tracker: str, tmp_path: Path
) -> None:
    """As after a stop: each iteration is written by another process."""
    if find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed")
    run = tracked(tmp_path / "run", f"[{tracker}]")
    quiet = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_TRACKING_URI": f"sqlite:///{run.path}/mlflow.db"}
    code = "import os, sys, pathlib; from metareward.pipeline.trackers import track_iteration as track\n"
    code += (
        "from metareward.storage.run_dir import RunDir; track(RunDir(pathlib.Path(sys.argv[1])), int(sys.argv[2]))\n"
    )
    code += "assert 'TRACKIO_DIR' not in os.environ  # a training's process, which comes next, writes elsewhere"
    for t in range(1, MODELS):
        words = [sys.executable, "-c", code, str(run.path), str(t)]
        done = subprocess.run(words, env={**os.environ, **quiet}, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and "has no figures" not in done.stderr, done.stderr[-3000:]
    told, wanted = READERS[tracker](run), expected(run)
    assert told.keys() == wanted.keys() and "loop/answer_quality" in told and "pairs/judge" in told
    for name, values in wanted.items():
        assert told[name] == pytest.approx(values), name
    assert told["loop/answer_quality"] == pytest.approx(dict(enumerate(MEANS["answer_quality"][0][:MODELS])))


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_tracker_has_every_step_of_a_training_after_its_end(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of TensorBoard and trackio: tests/training/test_trackers.py."""
    if find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    pairs = (save_pairs(tmp_path / "actor.parquet", "actor", 8),)
    job = changed(
        make_job(tmp_path, tmp_path / "M0", pairs), num_train_epochs=1, stop_after_epoch=1, report_to=(tracker,)
    )
    save_model(job.start)
    run_training(job, lambda _: None)
    if tracker == "wandb":
        told = read_wandb(RunDir(tmp_path))["train/loss"]
    else:
        with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
            told = dict(connection.execute("SELECT step, value FROM metrics WHERE key = 'loss'"))
    steps = [event for line in job.log.read_text().splitlines() if (event := json.loads(line))["event"] == "step"]
    assert steps and [told[step] for step in sorted(told)] == pytest.approx([step["loss"] for step in steps])


def test_no_tracker_is_told_unless_it_is_asked_for(tmp_path: Path) -> None:
    run = tracked(tmp_path / "run", "[]")
    before = sorted(run.path.iterdir())
    track_iteration(run, 1)
    assert sorted(run.path.iterdir()) == before


def test_a_tracker_that_fails_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tracked(tmp_path / "run", "[tensorboard]")
    (run.path / "tensorboard").write_text("in the way")
    track_iteration(run, 1)
    assert "training.report_to: tensorboard has no figures of iteration 1" in caplog.text


def test_a_run_is_known_again_when_its_settings_or_folder_change(tmp_path: Path) -> None:
    run, other = tracked(tmp_path / "run", "[]"), tracked(tmp_path / "other", "[]")
    key = loop_of(run, gather(run)).key
    run.resolved.write_text(run.resolved.read_text().replace('"per_iteration": 24', '"per_iteration": 25'))
    moved = RunDir(run.path.rename(tmp_path / "moved"))
    assert loop_of(moved, gather(moved)).key == key != loop_of(other, gather(other)).key
