"""Whole DPO runs in this process: plain TRL, and ours with what pairs have in common run once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from dpo_world import CONTEXT, make_job, save_model, save_pairs
from transformers import Gemma3TextConfig, LlamaConfig, PretrainedConfig, Qwen3Config

from metareward.training.beginning import Beginning
from metareward.training.cast import load_cast
from metareward.training.job import DpoJob, LoraSettings, Loss
from metareward.training.kept import Findings
from metareward.training.lengths import fitting
from metareward.training.lineage import origins
from metareward.training.models import load_tokenizer
from metareward.training.pairset import read_training_pairs
from metareward.training.row_attention import NAME
from metareward.training.trainer import PairTrainer, make_trainer

KINDS = {"llama": LlamaConfig, "qwen3": Qwen3Config, "gemma3": Gemma3TextConfig}


def small_job(folder: Path, kind: type[PretrainedConfig] = LlamaConfig) -> DpoJob:
    """Six steps on eight judge-like and sixteen actor-like pairs."""
    pairs = (save_pairs(folder / "actor.parquet", "actor", 16), save_pairs(folder / "judge.parquet", "judge", 8, 40))
    return replace(make_job(folder, save_model(folder / "M0", kind=kind), pairs), epochs=2, learning_rate=1e-3)


def ready(job: DpoJob, folder: Path, ours: bool = True) -> PairTrainer:
    """A trainer before its first step; without ``ours`` nothing but TRL and the order of the pairs."""
    cast, tokenizer = load_cast(job), load_tokenizer(job.start)
    fitted = fitting(read_training_pairs(job.pairs), tokenizer, job, CONTEXT)
    found: list[Findings] = []
    beginning = Beginning(job, *origins(job), None, found.append)
    callbacks = [beginning] if ours else []
    trainer = make_trainer(job, fitted, cast.policy, cast.reference, tokenizer, folder, callbacks, cast.adapter)
    if ours:
        beginning.prepare(trainer, fitted.lengths)
    return trainer


def trained(trainer: PairTrainer) -> dict[str, torch.Tensor]:
    trainer.train()
    return {name: each.detach() for name, each in trainer.model.named_parameters() if each.requires_grad}


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_ends_in_the_same_weights(kind: str, lora: LoraSettings | None, tmp_path: Path) -> None:
    job = replace(small_job(tmp_path, KINDS[kind]), lora=lora, micro_batch_size=2)
    begun = {name: each.detach().clone() for name, each in ready(job, tmp_path).model.named_parameters()}
    plain = trained(ready(job, tmp_path, ours=False))
    assert apart(plain, {name: begun[name] for name in plain}) > 1e-3  # something was learned
    trainer = ready(job, tmp_path)
    assert trainer.precompute_ref_logps
    assert apart(plain, trained(trainer)) < 1e-4
    assert trainer.model.config._attn_implementation == NAME  # to the end


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"epochs": 1, "keep_epoch": 1}], ids=str)
def test_checkpointed_gradients_and_a_live_reference(changes: dict[str, Any], tmp_path: Path) -> None:
    job = replace(small_job(tmp_path), **changes)
    trainer = ready(job, tmp_path)
    assert trainer.precompute_ref_logps == (job.epochs > 1)
    assert apart(trained(ready(job, tmp_path, ours=False)), trained(trainer)) < 1e-4


_SPECIAL: dict[str, dict[str, Any]] = {
    "exo_pair": {"label_smoothing": 1e-3},
    "robust": {"label_smoothing": 0.1},
    "sft": {"loss": ("sigmoid", "sft"), "loss_weights": (1.0, 0.2)},
}


@pytest.mark.parametrize("loss", get_args(Loss))
def test_every_loss_has_the_same_gradients(loss: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"loss": (loss,), "ld_alpha": 0.5} | _SPECIAL.get(loss, {})
    job = replace(small_job(tmp_path), **changes)
    other = save_model(tmp_path / "other", seed=1)  # so that log-ratios aren't 0
    plain, ours = (
        _gradients(ready(replace(job, reference=other, epochs=1, keep_epoch=1), tmp_path, ours))
        for ours in (False, True)
    )
    largest = max(float(each.abs().max()) for each in plain.values())
    assert apart(plain, ours) < 1e-5 * largest


def _gradients(trainer: PairTrainer) -> dict[str, torch.Tensor]:
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model, inputs).backward()
    return {name: each.grad for name, each in trainer.model.named_parameters() if each.grad is not None}


def test_bfloat16_learns_the_same(tmp_path: Path) -> None:
    job = replace(small_job(tmp_path), dtype="bfloat16")
    plain, ours = (trained(ready(job, tmp_path, ours)) for ours in (False, True))
    assert apart(plain, ours) < 0.05
