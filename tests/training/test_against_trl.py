"""Whole DPO runs in this process: plain TRL, and ours with what pairs have in common run once."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from datasets import Dataset
from training_world import changed, prepare_trainer, save_model, small_job
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig, LlamaConfig, Qwen3Config
from trl import DPOConfig, DPOTrainer

from metareward.training.config import LoraSettings, Loss
from metareward.training.prefix_sharing.forward import ATTENTION
from metareward.training.trainer import PairTrainer

ONE_EPOCH = {"num_train_epochs": 1, "stop_after_epoch": 1}
KINDS = {"llama": LlamaConfig, "qwen3": Qwen3Config, "gemma3": Gemma3TextConfig}
QUICK = {("llama", "full")}


def trained(trainer: PairTrainer) -> dict[str, torch.Tensor]:
    trainer.train()
    return {name: each.detach() for name, each in trainer.model.named_parameters() if each.requires_grad}


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        pytest.param(kind, method, marks=() if (kind, method) in QUICK else pytest.mark.slow)
        for kind, method in product(KINDS, ("full", "lora"))
    ],
)
def test_a_run_ends_in_the_same_weights(kind: str, method: str, tmp_path: Path) -> None:
    job = changed(
        small_job(tmp_path, KINDS[kind]), method=method, lora=LoraSettings(r=4), per_device_train_batch_size=2
    )
    begun = {name: each.detach().clone() for name, each in prepare_trainer(job, tmp_path).model.named_parameters()}
    plain = trained(prepare_trainer(job, tmp_path, sharing=False))
    assert apart(plain, {name: begun[name] for name in plain}) > 1e-3  # something was learned
    trainer = prepare_trainer(job, tmp_path)
    assert trainer.precompute_ref_logps
    assert apart(plain, trained(trainer)) < 1e-4
    assert trainer.model.config._attn_implementation == ATTENTION  # to the end


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, ONE_EPOCH], ids=str)
def test_checkpointed_gradients_and_a_live_reference(changes: dict[str, Any], tmp_path: Path) -> None:
    job = changed(small_job(tmp_path), **changes)
    trainer = prepare_trainer(job, tmp_path)
    assert trainer.precompute_ref_logps == (job.settings.num_train_epochs > 1)
    assert apart(trained(prepare_trainer(job, tmp_path, sharing=False)), trained(trainer)) < 1e-4


_SPECIAL: dict[str, dict[str, Any]] = {
    "exo_pair": {"label_smoothing": 1e-3},
    "robust": {"label_smoothing": 0.1},
    "sft": {"loss_type": ("sigmoid", "sft"), "loss_weights": (1.0, 0.2)},
}


@pytest.mark.parametrize("loss", get_args(Loss))
def test_every_loss_has_the_same_gradients(loss: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"loss_type": (loss,), "ld_alpha": 0.5} | _SPECIAL.get(loss, {})
    job = changed(small_job(tmp_path), **changes)
    other = save_model(tmp_path / "other", seed=1)  # so that log-ratios aren't 0
    plain, ours = (
        _gradients(prepare_trainer(changed(job, reference=other, **ONE_EPOCH), tmp_path, ours))
        for ours in (False, True)
    )
    largest = max(float(each.abs().max()) for each in plain.values())
    assert apart(plain, ours) < 1e-5 * largest


def _gradients(trainer: PairTrainer) -> dict[str, torch.Tensor]:
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model, inputs).backward()
    return {name: each.grad for name, each in trainer.model.named_parameters() if each.grad is not None}


def test_bfloat16_learns_the_same(tmp_path: Path) -> None:
    job = changed(small_job(tmp_path), dtype="bfloat16")
    plain, ours = (trained(prepare_trainer(job, tmp_path, ours)) for ours in (False, True))
    assert apart(plain, ours) < 0.05


# TRL by hand: none of our code but the file of pairs. Every batch is the whole data set, so the order doesn't matter.
HAND = {"learning_rate": 2e-3, "beta": 0.35, "weight_decay": 0.5, "max_grad_norm": 0.8}
SMOOTHED = {"loss_type": ["robust"], "label_smoothing": 0.2}  # the other losses ignore smoothing
SCHEDULES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"lr_scheduler_type": "cosine", "min_lr": 5e-4, "warmup_ratio": 0.25},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 5e-4}, "warmup_steps": 2},
    ),
    (
        {"lr_scheduler_type": "linear", "warmup_ratio": 0.25, **SMOOTHED},
        {"lr_scheduler_type": "linear", "warmup_steps": 2, **SMOOTHED},
    ),
    ({"lr_scheduler_type": "constant"}, {"lr_scheduler_type": "constant"}),
]


@pytest.mark.parametrize(
    ("ours", "by_hand"),
    [
        pytest.param(*SCHEDULES[0], id="cosine"),
        pytest.param(*SCHEDULES[1], id="linear", marks=pytest.mark.slow),
        pytest.param(*SCHEDULES[2], id="constant", marks=pytest.mark.slow),
    ],
)
def test_dpo_against_trl_by_hand(tmp_path: Path, ours: dict[str, Any], by_hand: dict[str, Any]) -> None:
    job = small_job(tmp_path)
    ours |= {"batch_size": 24, "per_device_train_batch_size": 6, "num_train_epochs": 8, "stop_after_epoch": 8}
    trainer = prepare_trainer(changed(job, **HAND, **ours), tmp_path / "ours")
    weights = trained(trainer)

    files = [str(path) for path in job.data]
    arguments = DPOConfig(
        output_dir=str(tmp_path / "trl"),
        **HAND,
        **by_hand,
        num_train_epochs=8,
        per_device_train_batch_size=6,
        gradient_accumulation_steps=4,
        max_length=None,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    plain = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job.start, dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(job.start, dtype=torch.float32),
        args=arguments,
        train_dataset=Dataset.from_parquet(files, cache_dir=str(tmp_path / "cache")),
        processing_class=AutoTokenizer.from_pretrained(job.start),
    )
    expected = trained(plain)

    def figures(trainer: Any, name: str) -> list[float]:
        return [entry[name] for entry in trainer.state.log_history if "loss" in entry]

    assert len(figures(plain, "loss")) == 8
    for name in ("loss", "rewards/margins", "learning_rate", "grad_norm"):
        assert figures(trainer, name) == pytest.approx(figures(plain, name), rel=1e-3, abs=1e-5), name
    assert apart(weights, expected) < 1e-4
