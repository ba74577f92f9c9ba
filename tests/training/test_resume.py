"""Training killed with SIGKILL and started again ends where it would have ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from training_world import changed, make_job, moved, save_model, save_pairs

from metareward.errors import UserError
from metareward.storage.atomic import AtomicDir
from metareward.training.checkpoints import RESUME_MARK, latest_resume_state
from metareward.training.config import DpoJob, LoraSettings
from metareward.training.launch import run_training

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="signals")]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> DpoJob:
    """Eight steps in two epochs, dropout on, a checkpoint after every third step."""
    folder = tmp_path_factory.mktemp("world")
    pairs = (save_pairs(folder / "actor.parquet", "actor", 20), save_pairs(folder / "judge.parquet", "judge", 10, 30))
    job = make_job(folder, save_model(folder / "M0"), pairs)
    return changed(job, save_steps=3, dropout=0.1)


def killed(job: DpoJob, step: int) -> None:
    """Train up to ``step``, in which the child is killed."""

    def kill(told: Mapping[str, float]) -> None:
        if told["step"] == step:
            os.kill([event["pid"] for event in events(job) if "pid" in event][-1], signal.SIGKILL)

    with pytest.raises(UserError, match="training was killed"):
        run_training(job, kill)


def events(job: DpoJob) -> list[dict[str, Any]]:
    return [json.loads(line) for line in job.log.read_text().splitlines()]


def weights(job: DpoJob) -> bytes:
    return (job.output / "model.safetensors").read_bytes()


def figures(job: DpoJob) -> list[dict[str, Any]]:
    """Every step as it was told, less what the clock says."""
    clock = {"seconds", "examples_per_second"}
    return [{key: value for key, value in each.items() if key not in clock} for each in events(job) if "loss" in each]


def test_the_same_bits_after_two_kills(job: DpoJob, tmp_path: Path) -> None:
    whole = moved(job, tmp_path / "whole")
    steps: list[Mapping[str, float]] = []
    run_training(whole, steps.append)
    again = moved(job, tmp_path / "again")
    killed(again, 5)
    assert (kept := latest_resume_state(again)) is not None and kept.step == 3
    killed(again, 7)
    assert (kept := latest_resume_state(again)) is not None and kept.step == 6
    assert kept.seconds > 0
    retold: list[Mapping[str, float]] = []
    result = run_training(again, retold.append)
    assert weights(again) == weights(whole)
    assert figures(again) == figures(whole)
    assert [step["step"] for step in retold] == [step["step"] for step in steps] == list(range(1, 9))
    assert [event["event"] for event in events(again)][-4:] == ["resume", "step", "step", "end"]
    assert result.lineage.log_ratio == 0.0
    assert result.lineage.steps == 8
    assert not list(tmp_path.glob("*/.*"))


def test_a_torn_checkpoint_and_one_of_another_job_are_none(job: DpoJob, tmp_path: Path) -> None:
    job = moved(job, tmp_path)
    killed(job, 4)
    kept = AtomicDir.beside(job.output).resume
    torn = kept / "checkpoint-9"
    shutil.copytree(kept / "checkpoint-3", torn)
    (torn / RESUME_MARK).unlink()
    assert (found := latest_resume_state(job)) is not None and found.step == 3
    assert latest_resume_state(changed(job, beta=0.2)) is None
    assert latest_resume_state(changed(job, threads=2, per_device_train_batch_size=2)) is not None
    other = changed(job, beta=0.2)
    told: list[Mapping[str, float]] = []
    run_training(other, told.append)
    assert [event["event"] for event in events(other)[:2]] == ["start", "step"]  # from the beginning
    assert len(told) == 8
    assert not list(tmp_path.glob(".*"))


def test_an_adapter_goes_on_too(job: DpoJob, tmp_path: Path) -> None:
    lora = changed(job, method="lora", lora=LoraSettings(r=4, lora_dropout=0.1), dropout=0.0)
    whole, again = moved(lora, tmp_path / "whole"), moved(lora, tmp_path / "again")
    run_training(whole, lambda _: None)
    killed(again, 4)
    run_training(again, lambda _: None)
    assert weights(again) == weights(whole)
    adapters = [load_file(each.output / "adapter" / "adapter_model.safetensors") for each in (whole, again)]
    assert all(adapters[0][name].equal(adapters[1][name]) for name in adapters[0])


def test_checkpoints_at_the_end_of_an_epoch(job: DpoJob, tmp_path: Path) -> None:
    """Four steps are an epoch: the state is kept after all else that an epoch's end brings."""
    often = changed(job, save_steps=2)
    whole, again = moved(often, tmp_path / "whole"), moved(often, tmp_path / "again")
    run_training(whole, lambda _: None)
    killed(again, 5)
    assert (kept := latest_resume_state(again)) is not None and kept.step == 4
    run_training(again, lambda _: None)
    assert weights(again) == weights(whole)
