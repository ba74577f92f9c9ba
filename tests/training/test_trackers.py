from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest
from training_world import changed, make_job, save_model, save_pairs

from metareward.errors import UserError
from metareward.training.child import set_environment
from metareward.training.config import DpoJob, Tracker
from metareward.training.launch import run_training
from metareward.training.requirements import tracks_in_folder
from metareward.training.trainer import tracker_arguments

TRACKERS: tuple[Tracker, ...] = ("wandb", "mlflow", "trackio")
MISSING: list[Tracker] = [name for name in TRACKERS if find_spec(name) is None]


@pytest.fixture
def job(tmp_path: Path) -> DpoJob:
    pairs = (save_pairs(tmp_path / "actor.parquet", "actor", 8),)
    return changed(
        make_job(tmp_path, tmp_path / "M0", pairs), num_train_epochs=1, stop_after_epoch=1, run_name="mine-M1"
    )


def test_none_is_told_unless_asked(job: DpoJob, tmp_path: Path) -> None:
    assert tracker_arguments(job) == {"report_to": "none", "run_name": "mine-M1"}
    surroundings: dict[str, str] = {}
    set_environment(surroundings, job, tmp_path)
    assert not [name for name in surroundings if name.startswith(("TENSORBOARD_", "WANDB_", "MLFLOW_"))]


@pytest.mark.skipif(not MISSING, reason="every tracker is installed")
def test_one_that_is_not_installed_is_named(job: DpoJob) -> None:
    with pytest.raises(UserError, match=f"report_to: {MISSING[0]} can't be imported; fix: pip install {MISSING[0]}"):
        tracker_arguments(changed(job, report_to=(MISSING[0],)))


@pytest.mark.parametrize(
    ("address", "folder"),
    [
        ("", True),
        ("mlruns", True),
        ("file:///tmp/mlruns", True),
        ("sqlite:///mlflow.db", False),
        ("http://localhost:5000", False),
        ("databricks", False),
    ],
)
def test_folders_that_mlflow_refuses_are_told_from_databases_and_servers(address: str, folder: bool) -> None:
    assert tracks_in_folder({"MLFLOW_TRACKING_URI": address}) is folder
    assert not tracks_in_folder({"MLFLOW_TRACKING_URI": address, "MLFLOW_ALLOW_FILE_STORE": "true"})
    assert tracks_in_folder({})


def test_they_write_beside_the_log_unless_the_user_says_where(job: DpoJob, tmp_path: Path) -> None:
    surroundings = {"WANDB_DIR": "elsewhere"}
    set_environment(surroundings, changed(job, report_to=("tensorboard",)), tmp_path)
    assert surroundings["WANDB_DIR"] == "elsewhere"
    assert surroundings["TENSORBOARD_LOGGING_DIR"] == str(tmp_path.resolve() / "tensorboard")


@pytest.mark.slow
def test_tensorboard_is_told_of_every_step(job: DpoJob, tmp_path: Path) -> None:
    save_model(job.start)
    run_training(changed(job, report_to=("tensorboard",)), lambda _: None)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    steps = [event for line in job.log.read_text().splitlines() if (event := json.loads(line))["event"] == "step"]
    assert [each.value for each in told] == pytest.approx([step["loss"] for step in steps])


@pytest.mark.slow
def test_trackio_keeps_the_steps_of_a_training_after_its_end(job: DpoJob, tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed")
    save_model(job.start)
    run_training(changed(job, report_to=("trackio",)), lambda _: None)
    with closing(sqlite3.connect(tmp_path / "trackio" / "metareward.db")) as connection:
        rows = connection.execute("SELECT metrics, run_name FROM metrics").fetchall()
    told = [metrics["train/loss"] for row, _ in rows if "train/loss" in (metrics := json.loads(row))]
    steps = [event for line in job.log.read_text().splitlines() if (event := json.loads(line))["event"] == "step"]
    assert told == pytest.approx([step["loss"] for step in steps])
    assert {name for _, name in rows} == {"mine-M1"}
