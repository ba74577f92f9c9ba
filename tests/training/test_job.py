from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metareward.errors import UserError
from metareward.training.job import DpoJob

JOB = DpoJob(
    start=Path("iter-0/model"),
    reference=Path("iter-0/model"),
    pairs=(Path("actor.parquet"), Path("judge.parquet")),
    output=Path("iter-1/model"),
    log=Path("iter-1/training.jsonl"),
    learning_rate=5e-6,
    beta=0.1,
    epochs=10,
    batch_size=32,
    micro_batch_size=4,
    max_length=2048,
)


def test_json_round_trip(tmp_path: Path) -> None:
    for job in (JOB, replace(JOB, keep_epoch=6, final_learning_rate=5e-7, dtype="bfloat16", device="cuda", seed=7)):
        job.write(tmp_path / "job.json")
        assert DpoJob.read(tmp_path / "job.json") == job


def test_training_stops_with_the_last_epoch_unless_told() -> None:
    assert JOB.last_epoch == 10
    assert replace(JOB, keep_epoch=6).last_epoch == 6


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"micro_batch_size": 5}, r"micro_batch_size is 5; fix: make it a divisor of batch_size \(32\)"),
        ({"keep_epoch": 11}, r"keep_epoch is 11; fix: make it 1 to epochs \(10\)"),
        ({"warmup": 1.0}, "warmup is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"final_learning_rate": 1e-5}, "final_learning_rate is 1e-05"),
        ({"schedule": "constant", "final_learning_rate": 1e-7}, "constant schedule"),
        ({"pairs": ()}, "at least one Parquet file"),
    ],
)
def test_values_that_cannot_be_trained_with(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        replace(JOB, **changes)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [("betta", 0.2, "betta"), ("epochs", "many", "epochs"), ("device", "abacus", "device"), ("beta", -1, "beta")],
)
def test_a_wrong_field_in_the_file_is_named(tmp_path: Path, field: str, value: object, told: str) -> None:
    path = tmp_path / "job.json"
    JOB.write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(UserError, match=told) as caught:
        DpoJob.read(path)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"job\.json: can't be read: No such file"):
        DpoJob.read(tmp_path / "job.json")
