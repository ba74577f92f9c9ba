"""Two processes train one model on a CPU: gradients averaged (DDP), started by torchrun."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file
from training_world import changed, eight_steps, moved, train_here

from metareward.errors import UserError
from metareward.training.checkpoints import latest_resume_state
from metareward.training.config import DpoJob, LoraSettings
from metareward.training.launch import ACCELERATE_CONFIGS, command, run_training

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, gloo")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> DpoJob:
    return eight_steps(tmp_path_factory.mktemp("world"))


def weights(job: DpoJob) -> dict[str, torch.Tensor]:
    return dict(load_file(job.output / "model.safetensors"))


# The processes add the same gradient terms in another order. A float32 sum of n terms is off by at most n u of its size
# with u = 2^-24; n is at most the tokens of a batch (8 pairs, 2 rows each, under 45 tokens). Adam divides each gradient
# by its own size, so only an element that is itself that small moves differently: its sign flips, which changes its
# update by 2 learning rates. With a density of at most 0.4 / sigma at zero that is a share 0.4 n u of the elements, and
# the updates differ by sqrt(4 * 0.4 n u) < sqrt(2 n u) learning rates in the root mean square. One element can differ
# by whole learning rates, so the largest difference has no useful bound.
# Measured: 4e-5 on AMD Zen, and 3e-4 between runs of one process with other micro-batches. A micro-batch lost once
# gives 0.09, a step applied twice 0.18, a lost half of every batch 0.7.
ROUNDING = (2 * 8 * 2 * 45 * 2**-24) ** 0.5  # 0.009


def difference(one: DpoJob, other: DpoJob) -> float:
    """How far two trained models are apart, relative to how far training has moved the first (2-norms)."""
    left, right, start = weights(one), weights(other), load_file(one.start / "model.safetensors")
    apart, moved_by = (
        torch.cat([(left[name] - model[name]).double().flatten() for name in left]).norm() for model in (right, start)
    )
    return float(apart / moved_by)


def events(job: DpoJob) -> list[dict[str, Any]]:
    return [json.loads(line) for line in job.log.read_text().splitlines()]


def pids(job: DpoJob) -> list[int]:
    return [event["pid"] for event in events(job) if "pid" in event]


def test_two_processes_make_what_one_makes(job: DpoJob, tmp_path: Path) -> None:
    single, double = moved(job, tmp_path / "single"), changed(moved(job, tmp_path / "double"), num_processes=2)
    alone = train_here(single)
    together: list[Mapping[str, float]] = []
    result = run_training(double, together.append)
    assert difference(single, double) < ROUNDING
    for name in ("loss", "rewards/margins", "grad_norm"):
        assert [step[name] for step in together] == pytest.approx([step[name] for step in alone], rel=1e-3, abs=1e-5)
    assert result.lineage.prefix_sharing
    assert result.lineage.log_ratio == 0.0
    assert not list(double.output.parent.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
def test_two_processes_killed_and_resumed_make_the_same(job: DpoJob, tmp_path: Path, sharding: str) -> None:
    double = changed(moved(job, tmp_path / "double"), num_processes=2, sharding=sharding)
    run_training(double, lambda _: None)
    again = changed(moved(double, tmp_path / "again"), save_steps=3)

    def kill(step: Mapping[str, float]) -> None:
        if step["step"] == 7:
            os.kill(pids(again)[-1], signal.SIGKILL)

    with pytest.raises(UserError):
        run_training(again, kill)
    assert (kept := latest_resume_state(again)) is not None and kept.step == 6
    run_training(again, lambda _: None)
    assert difference(double, again) == 0.0  # in the second epoch, whose order is another than the first's


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"method": "lora", "lora": LoraSettings(r=4)},
        {"num_train_epochs": 1, "stop_after_epoch": 1},
        {"gradient_checkpointing": True},
        {"keep_epochs": True, "prefix_sharing": False},
    ],
    ids=str,
)
def test_so_do_other_settings(job: DpoJob, tmp_path: Path, changes: dict[str, Any]) -> None:
    job = changed(job, **changes)
    single, double = moved(job, tmp_path / "single"), changed(moved(job, tmp_path / "double"), num_processes=2)
    for each in (single, double):
        run_training(each, lambda _: None)
    if job.keep_epochs:
        single, double = (changed(each, output=each.product / "epoch-2") for each in (single, double))
    assert difference(single, double) < ROUNDING


@pytest.mark.slow
def test_a_mistake_arrives_as_one_line(job: DpoJob, tmp_path: Path) -> None:
    wrong = changed(moved(job, tmp_path), num_processes=2, max_length=5)
    with pytest.raises(UserError, match=r"^training job: no pair fits in max_length 5, the shortest has \d+ tokens"):
        run_training(wrong, lambda _: None)
    assert not list(tmp_path.glob(".*"))
    sharded = changed(moved(job, tmp_path), sharding="zero3", device="cpu")
    with pytest.raises(UserError, match="sharding: zero3 needs GPUs"):
        run_training(sharded, lambda _: None)


def test_batches_are_shared_out_evenly(job: DpoJob) -> None:
    assert changed(job, num_processes=2).settings.gradient_accumulation_steps == 2
    with pytest.raises(ValidationError, match="such that num_processes times 2 divides batch_size, which is 8"):
        changed(job, num_processes=3)


def test_how_a_job_is_started(job: DpoJob) -> None:
    assert command(job, Path("j.json"))[2] == "metareward.training.child"
    assert command(changed(job, num_processes=2), Path("j.json"))[2] == "metareward.training.launch"
    assert command(changed(job, sharding="zero3"), Path("j.json"))[2] == "metareward.training.launch"


@pytest.mark.parametrize(
    ("sharding", "kind"), [("ddp", "MULTI_GPU"), ("fsdp2", "FSDP"), ("zero2", "DEEPSPEED"), ("zero3", "DEEPSPEED")]
)
def test_the_shipped_configurations(sharding: str, kind: str) -> None:
    """`accelerate launch` reads them; what they do needs GPUs."""
    from accelerate.commands.config.config_args import load_config_from_file

    path = ACCELERATE_CONFIGS / f"{sharding}.yaml"
    assert load_config_from_file(str(path)).distributed_type == kind
    assert yaml.safe_load(path.read_text())["use_cpu"] is False
