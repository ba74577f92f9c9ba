"""Settings and jobs: what is refused, the JSON that the child process reads, the papers' settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from training_world import changed

from metareward.errors import UserError
from metareward.training.config import (
    SFT_PRESETS,
    AnyJob,
    DpoJob,
    LoraSettings,
    SftJob,
    SftSettings,
    TrainingSettings,
    explain_invalid,
    read_job,
    sft_settings,
)

DPO = DpoJob(
    settings=TrainingSettings(),
    start=Path("iter-0/model"),
    reference=Path("iter-0/model"),
    data=(Path("actor.parquet"), Path("judge.parquet")),
    output=Path("iter-1/model"),
    log=Path("iter-1/training.jsonl"),
)
SFT = SftJob(
    settings=SftSettings(),
    start=Path("M0"),
    data=(Path("eft.jsonl"),),
    output=Path("out/model"),
    log=Path("out/training.jsonl"),
)


@pytest.mark.parametrize(
    "job",
    [
        DPO,
        changed(DPO, stop_after_epoch=6, min_lr=5e-7, dtype="bfloat16", device="cuda", seed=7, loss_weights=(0.5,)),
        changed(DPO, method="lora", lora=LoraSettings(target_modules=("q_proj", "v_proj")), keep_epochs=True),
        SFT,
        changed(SFT, stop_after_epoch=2, data=(Path("a.jsonl"), Path("b.parquet")), report_to=("wandb",)),
    ],
    ids=str,
)
def test_the_child_reads_what_the_parent_has_written(tmp_path: Path, job: AnyJob) -> None:
    job.write(tmp_path / "job.json")
    assert read_job(tmp_path / "job.json") == job


def test_training_stops_with_the_last_epoch_unless_told() -> None:
    assert DPO.settings.last_epoch == 10
    assert changed(DPO, stop_after_epoch=6).settings.last_epoch == 6


@pytest.mark.parametrize(
    ("job", "changes", "message"),
    [
        (DPO, {"learning_rate": 0.0}, "learning_rate: Input should be greater than 0"),
        (DPO, {"beta": float("nan")}, "beta: Input should be a finite number"),
        (DPO, {"per_device_train_batch_size": 5}, "per_device_train_batch_size is 5; fix: make it a divisor of"),
        (SFT, {"per_device_train_batch_size": 5}, "per_device_train_batch_size is 5; fix: make it a divisor of"),
        (
            DPO,
            {"launcher": "ray", "sharding": "zero3"},
            "sharding is zero3; fix: make it ddp or fsdp2 with launcher ray",
        ),
        (DPO, {"num_processes": 3}, "num_processes is 3; fix: make it such that num_processes times 4 divides"),
        (DPO, {"stop_after_epoch": 11}, "stop_after_epoch is 11; fix: make it at most num_train_epochs, which is 10"),
        (SFT, {"stop_after_epoch": 4}, "stop_after_epoch is 4; fix: make it at most num_train_epochs, which is 3"),
        (DPO, {"warmup_ratio": 1.0}, "warmup_ratio: Input should be less than 1"),
        (DPO, {"dropout": -0.1}, "dropout: Input should be greater than or equal to 0"),
        (DPO, {"min_lr": 1e-5}, "min_lr is 1e-05; fix: make it at most learning_rate"),
        (DPO, {"lr_scheduler_type": "constant", "min_lr": 1e-7}, "min_lr is 1e-07; fix: make it 0 with the constant"),
        (DPO, {"save_steps": 0}, "save_steps: Input should be greater than or equal to 1"),
        (DPO, {"loss_type": ()}, "loss_type"),
        (DPO, {"loss_weights": (1.0, 2.0)}, "loss_weights is .*; fix: make it one for each of loss_type, or none"),
        (DPO, {"loss_weights": (float("inf"),)}, "loss_weights.0: Input should be a finite number"),
        (DPO, {"label_smoothing": 0.5}, "label_smoothing"),
        (DPO, {"label_smoothing": 0.1}, "label_smoothing is 0.1; fix: make it 0: only the losses aot, aot_unpaired"),
        (DPO, {"loss_type": ("exo_pair",)}, "label_smoothing is 0.0; fix: make it a number above 0"),
        (DPO, {"ld_alpha": 1.1}, "ld_alpha"),
        (DPO, {"lora": {"r": 0}}, "lora.r"),
        (DPO, {"data": ()}, "data: Tuple should have at least 1 item"),
        (SFT, {"data": ()}, "data: Tuple should have at least 1 item"),
        (SFT, {"beta": 0.1}, "beta: Extra inputs are not permitted"),
    ],
)
def test_values_that_cannot_be_trained_with(job: AnyJob, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        changed(job, **changes)
    with pytest.raises(UserError, match=message):
        raise UserError(explain_invalid(caught.value))


@pytest.mark.parametrize(
    ("field", "value"),
    [("betta", 0.2), ("num_train_epochs", "many"), ("device", "abacus"), ("beta", -1), ("batch_size", 33)],
)
def test_a_wrong_field_in_the_file_is_named(tmp_path: Path, field: str, value: object) -> None:
    path = tmp_path / "job.json"
    DPO.write(path)
    content = json.loads(path.read_text())
    content["settings"][field] = value
    path.write_text(json.dumps(content))
    named = "per_device_train_batch_size" if field == "batch_size" else field
    with pytest.raises(UserError, match=rf"job\.json: .*settings\.{named}") as caught:
        read_job(path)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"job\.json: can't be read: No such file"):
        read_job(tmp_path / "job.json")


def test_sft_settings_of_the_papers() -> None:
    assert sft_settings("self-rewarding", ()) == SftSettings() == SFT_PRESETS["self-rewarding"]
    ours = SftSettings()
    assert (ours.learning_rate, ours.min_lr, ours.lr_scheduler_type) == (5.5e-6, 1.1e-6, "cosine")
    assert (ours.batch_size, ours.dropout) == (16, 0.1)
    changes = ("num_train_epochs=6", "learning_rate=1", "device=cpu", 'report_to=["wandb"]')
    other = sft_settings("meta-rewarding", changes)
    assert (other.num_train_epochs, other.stop_after_epoch, other.learning_rate) == (6, 5, 1.0)
    assert (other.device, other.report_to) == ("cpu", ("wandb",))


@pytest.mark.parametrize(
    ("paper", "change", "message"),
    [
        ("other", "device=cpu", "--paper other: not known; fix: make it one of self-rewarding, meta-rewarding"),
        ("self-rewarding", "beta=0.1", "--set beta=0.1: not key=value with a known key; fix: use one of learning_rate"),
        ("self-rewarding", "device", "--set device: not key=value"),
        ("self-rewarding", "dropout=much", "training settings: dropout: Input should be a valid number"),
        (
            "self-rewarding",
            "batch_size=6",
            "training settings: per_device_train_batch_size is 4; fix:",
        ),
    ],
)
def test_changes_of_sft_settings_that_are_refused(paper: str, change: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        sft_settings(paper, (change,))
    assert str(caught.value).startswith(message)
