"""FSDP2: two processes of which each loads, trains and saves its part of a model, on gloo. Kills: test_launch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_launch import ROUNDING, difference
from training_world import changed, eight_steps, make_job, moved, save_model, save_pairs, train_here
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from metareward.errors import UserError
from metareward.training.config import DpoJob, LoraSettings, SftJob, SftSettings
from metareward.training.launch import run_training
from metareward.training.requirements import loads_shards, require_devices

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, gloo")
LOADING = Path(__file__).parents[1] / "support" / "loading_process.py"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> DpoJob:
    return eight_steps(tmp_path_factory.mktemp("world"))


def sharded(job: DpoJob, folder: Path) -> DpoJob:
    return changed(moved(job, folder), num_processes=2, sharding="fsdp2")


def tie(job: DpoJob, folder: Path) -> DpoJob:
    """``job`` on a model whose head is its embedding."""
    config = AutoConfig.from_pretrained(job.start)
    config.tie_word_embeddings = True
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for path in job.start.iterdir():
        if not (folder / path.name).exists():
            (folder / path.name).write_bytes(path.read_bytes())
    return changed(job, start=folder, reference=folder)


def test_parts_are_loaded_for_full_fine_tuning_only(job: DpoJob, tmp_path: Path) -> None:
    whole = sharded(job, tmp_path).settings
    assert loads_shards(whole)
    others: list[dict[str, Any]] = [{"sharding": "ddp"}, {"sharding": "zero3"}, {"num_processes": 1}]
    for changes in [*others, {"method": "lora", "lora": LoraSettings(r=4)}]:
        assert not loads_shards(changed(sharded(job, tmp_path), **changes).settings)
    require_devices(whole, 0, False)  # without GPUs, gloo does it
    require_devices(changed(sharded(job, tmp_path), device="auto").settings, 2, False)
    with pytest.raises(UserError, match="fsdp2 needs GPUs"):
        require_devices(whole, 2, False)  # on a CPU beside GPUs


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied": True},
        {"num_train_epochs": 1, "stop_after_epoch": 1},  # the reference runs beside the policy
        {"gradient_checkpointing": True, "keep_epochs": True},
    ],
    ids=str,
)
def test_two_parts_make_what_one_process_makes(job: DpoJob, tmp_path: Path, changes: dict[str, Any]) -> None:
    if tied := changes.get("tied", False):
        job = tie(job, tmp_path / "tied")
    settings = {name: value for name, value in changes.items() if name != "tied"}
    single = changed(moved(job, tmp_path / "single"), **settings)
    parts = sharded(single, tmp_path / "parts")
    alone, together = train_here(single), list[Mapping[str, float]]()
    result = run_training(parts, together.append)
    assert result.lineage.prefix_sharing and result.lineage.log_ratio == 0.0
    for name in ("loss", "rewards/margins", "grad_norm"):
        assert [step[name] for step in together] == pytest.approx([step[name] for step in alone], rel=1e-3, abs=1e-5)
    if single.keep_epochs:
        single, parts = (changed(each, output=each.product / "epoch-2") for each in (single, parts))
    assert difference(single, parts) < ROUNDING
    assert not tied or "lm_head.weight" not in load_file(parts.output / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        assert (single.output / name).read_bytes() == (parts.output / name).read_bytes()


@pytest.mark.slow
def test_bfloat16_trains_and_saves_the_start_s_format(job: DpoJob, tmp_path: Path) -> None:
    start = save_model(tmp_path / "M0", dtype=torch.bfloat16)
    parts = changed(sharded(job, tmp_path / "parts"), start=start, reference=start, dtype="bfloat16")
    losses = list[float]()
    result = run_training(parts, lambda step: losses.append(step["loss"]))
    assert losses[-1] < losses[0] and result.lineage.log_ratio == 0.0
    assert {each.dtype for each in load_file(parts.output / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.slow
def test_supervised_fine_tuning_in_parts(tmp_path: Path) -> None:
    data = tmp_path / "sft.jsonl"
    words = ("red apples", "ripe pears", "sweet plums", "green limes")
    rows = [{"prompt": f"name {each} {number}", "completion": each} for number in range(4) for each in words]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = SftSettings(
        batch_size=8, per_device_train_batch_size=2, num_train_epochs=2, dropout=0.0, device="cpu", learning_rate=1e-3,
        min_lr=0.0, max_length=256,
    )  # fmt: skip
    start = save_model(tmp_path / "M0")
    one = SftJob(settings=settings, start=start, data=(data,), output=tmp_path / "one", log=tmp_path / "one.jsonl")
    two = changed(one, output=tmp_path / "two", log=tmp_path / "two.jsonl", num_processes=2, sharding="fsdp2")
    for each in (one, two):
        run_training(each, lambda _: None)
    left, right, before = (load_file(each / "model.safetensors") for each in (one.output, two.output, start))
    for name, weight in left.items():
        assert (weight - right[name]).norm() < ROUNDING * (weight - before[name]).norm()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_no_process_loads_a_whole_copy(tmp_path: Path) -> None:
    """A model of 36 M parameters: 72 MB of bfloat16 on the disk, 290 MB as policy and reference in float32."""
    start = tmp_path / "large"
    config = LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=2048, num_hidden_layers=7, num_attention_heads=8
    )
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(start)
    size = sum(path.stat().st_size for path in start.glob("*.safetensors")) * 4  # both in float32
    pairs = (save_pairs(tmp_path / "actor.parquet", "actor", 8),)
    found = {}
    for name in ("ddp", "fsdp2"):
        (tmp_path / name).mkdir()
        job = changed(make_job(tmp_path / name, start, pairs), num_processes=2, sharding=name)
        job.write(tmp_path / name / "job.json")
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [*launcher, str(LOADING), str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
        assert done.returncode == 0, done.stderr[-2000:]
        found[name] = [json.loads((tmp_path / name / f"{rank}.json").read_text()) for rank in (0, 1)]
    print(size, found)
    assert all(each["held"] == pytest.approx(size, rel=0.01) for each in found["ddp"])
    assert all(each["held"] == pytest.approx(size / 2, rel=0.01) for each in found["fsdp2"])
    assert all(each["peak"] > 0.95 * size for each in found["ddp"])
    assert all(each["peak"] < 0.75 * size for each in found["fsdp2"])  # its half, and pages of the file being read
