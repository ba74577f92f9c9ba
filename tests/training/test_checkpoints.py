from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_world import changed, make_job, save_model, save_pairs

from metareward.errors import UserError
from metareward.storage.atomic import AtomicDir
from metareward.storage.custody import read_again
from metareward.training.checkpoints import (
    ResumeState,
    damaged_resume_states,
    delete_resume_state,
    epoch_checkpoint,
    latest_resume_state,
    mark_resume_state,
    promote_epoch,
    select_epoch,
)
from metareward.training.config import CheckpointSelectionSettings as Selection
from metareward.training.config import DpoJob
from metareward.training.launch import run_training
from metareward.training.lineage import existing_lineage, read_lineage

START = {"agreement": 0.5, "answer_chars": 100.0}
MEASURED = {
    1: {"agreement": 0.60, "answer_chars": 110.0},
    2: {"agreement": 0.64, "answer_chars": 140.0},
    3: {"agreement": 0.65, "answer_chars": 260.0},
}


@pytest.mark.parametrize(
    ("settings", "epoch"),
    [
        (Selection(metric="agreement"), 3),
        (Selection(metric="agreement", mode="min"), 1),
        (Selection(metric="agreement", tolerance=0.02), 2),
        (Selection(metric="agreement", tolerance=1.0), 1),
        (Selection(metric="agreement", max_length_ratio=1.5), 2),
        (Selection(metric="agreement", max_length_ratio=1.05), 1),
    ],
)
def test_settings_decide_the_epoch(settings: Selection, epoch: int) -> None:
    assert select_epoch(MEASURED, settings, START).epoch == epoch


def test_the_reason_tells_what_was_compared() -> None:
    choice = select_epoch(
        {**MEASURED, 4: {"agreement": float("nan")}},
        Selection(metric="agreement", max_length_ratio=2.0),
        START,
    )
    assert choice.reason == "epoch 2 by highest agreement (1: 0.6, 2: 0.64, 3: 0.65, 4: -; too long: 3)"
    everything = select_epoch(MEASURED, Selection(metric="agreement", max_length_ratio=1.0), START)
    assert everything.reason == "epoch 1: the lowest answer_chars; all epochs are above 1 times the start model's"


def test_no_number_at_all() -> None:
    with pytest.raises(UserError, match="no epoch has a number for win_rate"):
        select_epoch(MEASURED, Selection(metric="win_rate"), START)


@given(st.dictionaries(st.integers(1, 9), st.floats(-5, 5), min_size=1), st.floats(0, 1))
def test_what_is_chosen_is_near_the_best_and_nothing_earlier_is(scores: dict[int, float], tolerance: float) -> None:
    measured = {epoch: {"f": score} for epoch, score in scores.items()}
    chosen = select_epoch(measured, Selection(metric="f", tolerance=tolerance), {}).epoch
    assert scores[chosen] >= max(scores.values()) - tolerance
    assert all(scores[epoch] < max(scores.values()) - tolerance for epoch in scores if epoch < chosen)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> DpoJob:
    """Three epochs of two steps, all kept."""
    folder = tmp_path_factory.mktemp("world")
    pairs = (save_pairs(folder / "actor.parquet", "actor", 16),)
    return changed(make_job(folder, save_model(folder / "M0"), pairs), stop_after_epoch=3, keep_epochs=True)


def no_step(step: Mapping[str, float]) -> None:
    raise AssertionError("nothing was to be trained")


@pytest.mark.slow
def test_every_epoch_is_kept_and_one_becomes_the_model(job: DpoJob, tmp_path: Path) -> None:
    job = changed(job, output=tmp_path / "model", log=tmp_path / "training.jsonl", save_steps=3)

    def kill(step: Mapping[str, float]) -> None:
        if step["step"] == 4:
            os.kill(json.loads(job.log.read_text().splitlines()[0])["pid"], signal.SIGKILL)

    with pytest.raises(UserError, match="was killed"):
        run_training(job, kill)
    result = run_training(job, lambda _: None)
    assert result.output == tmp_path / "model-epochs"
    assert sorted(path.name for path in result.output.iterdir()) == ["epoch-1", "epoch-2", "epoch-3", "lineage.json"]
    assert run_training(job, no_step).lineage == result.lineage

    direct = changed(
        job, output=tmp_path / "direct", log=tmp_path / "direct.jsonl", keep_epochs=False, stop_after_epoch=2
    )
    run_training(direct, lambda _: None)
    files = [folder / "model.safetensors" for folder in (epoch_checkpoint(job, 2), direct.output)]
    assert files[0].read_bytes() == files[1].read_bytes()

    for _ in range(2):  # again, as after a kill
        promote_epoch(job, 2)
    assert not result.output.exists()
    lineage = read_lineage(job.output)
    assert (lineage.epoch, lineage.steps, lineage.log_ratio) == (2, 4, 0.0)
    assert (job.output / lineage.start.path).resolve() == job.start.resolve()
    assert existing_lineage(job) == lineage
    assert {path.name for path in job.output.iterdir()} == {path.name for path in direct.output.iterdir()}


def test_the_rest_stays_if_asked(job: DpoJob, tmp_path: Path) -> None:
    job = changed(job, output=tmp_path / "model")
    for epoch in (1, 2):
        epoch_checkpoint(job, epoch).mkdir(parents=True)
    promote_epoch(job, 1, keep_all=True)
    assert job.output.is_dir()
    assert [path.name for path in job.product.iterdir()] == ["epoch-2"]


def test_an_epoch_that_is_not_there(job: DpoJob, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="epoch-7: no checkpoint of this epoch"):
        promote_epoch(changed(job, output=tmp_path / "model"), 7)


@pytest.fixture
def resumable(tmp_path: Path) -> tuple[DpoJob, Path, Path]:
    """A job that nothing is trained of, and its two resume states."""
    model = tmp_path / "M0"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    job = make_job(tmp_path, model, (save_pairs(tmp_path / "actor.parquet", "actor", 3),))
    states = []
    for step in (3, 6):
        states.append(AtomicDir.beside(job.product).resume / f"checkpoint-{step}")
        states[-1].mkdir(parents=True)
        (states[-1] / "optimizer.pt").write_bytes(bytes(2000))
        mark_resume_state(job, ResumeState(states[-1], step, 1.0, None))
    return job, states[0], states[1]


def test_a_damaged_resume_state_is_named_and_an_earlier_one_resumed(
    resumable: tuple[DpoJob, Path, Path], tmp_path: Path
) -> None:
    job, first, second = resumable
    assert damaged_resume_states(tmp_path) == []
    assert (state := latest_resume_state(job)) is not None and state.step == 6
    (second / "optimizer.pt").write_bytes(bytes(1999) + b"1")
    assert damaged_resume_states(tmp_path) == [second]
    assert (state := latest_resume_state(job)) is not None and state.step == 3
    (first / "optimizer.pt").unlink()
    assert damaged_resume_states(tmp_path) == [first, second]
    assert latest_resume_state(job) is None


@pytest.mark.skipif(sys.platform != "linux", reason="walks through /proc")
def test_a_resume_state_that_is_deleted_while_it_is_read_is_not_damaged(
    resumable: tuple[DpoJob, Path, Path], tmp_path: Path
) -> None:
    job, first, second = resumable
    with (first / "model.safetensors").open("wb") as large:
        large.truncate(1 << 28)
    mark_resume_state(job, ResumeState(first, 3, 1.0, None))
    read_again()

    def is_read(descriptor: Path) -> bool:
        with suppress(OSError):
            return descriptor.readlink() == first / "model.safetensors"
        return False

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(damaged_resume_states, tmp_path)
        while not found.done() and not any(map(is_read, Path("/proc/self/fd").iterdir())):
            time.sleep(0.001)
        assert not found.done()
        delete_resume_state(first)
        assert found.result(60) == []
    assert (state := latest_resume_state(job)) is not None and state.folder == second
