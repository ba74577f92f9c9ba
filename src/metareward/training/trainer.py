"""TRL's `DPOTrainer`, set up from a job: every default that matters is said here, none is left to TRL.

The loss is, unless the job names others, standard DPO on completion tokens (arXiv 2305.18290 equation 7;
Meta-Rewarding appendix A.3):

    L = -log sigmoid( beta [ log pi(c|x)/ref(c|x) - log pi(r|x)/ref(r|x) ] )

with log-probabilities summed over the completion. The papers have no other term; a likelihood term on what is chosen
(``loss`` sigmoid and sft) is Iterative RPO's (arXiv 2404.19733 equation 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from metareward.errors import UserError
from metareward.seeds import derive
from metareward.training.batches import LengthSortedBatches
from metareward.training.job import DpoJob
from metareward.training.lengths import FittingPairs
from metareward.training.trackers import tracking

_SEEDS = 2**31  # transformers hands the seed to NumPy, which takes 32 bits


class PairTrainer(DPOTrainer):  # type: ignore[misc]
    """`DPOTrainer` with our order of pairs; nothing else of it is overridden."""

    def __init__(self, order: LengthSortedBatches, **kwargs: Any) -> None:
        self._order = order
        super().__init__(**kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthSortedBatches:  # noqa: ARG002
        return self._order


class _EpochOfOrder(TrainerCallback):  # type: ignore[misc]
    """Tells the order of pairs which epoch it is: accelerate doesn't, in a run of several processes taken up again."""

    def __init__(self, order: LengthSortedBatches) -> None:
        self._order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._order.set_epoch(int(state.epoch))


def make_trainer(
    job: DpoJob,
    fitted: FittingPairs,
    policy: Any,
    reference: Any,
    tokenizer: Any,
    scratch: Path,
    callbacks: Sequence[TrainerCallback],
    adapter: Any = None,
) -> PairTrainer:
    """A trainer ready to `train`. The models are in memory already, so TRL loads nothing by itself.

    With an ``adapter`` (PEFT's configuration) TRL puts one on the policy. Without a ``reference`` that is the policy
    less its adapter, or with the adapter as it was.
    """
    rows = [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in fitted.pairs]
    order = LengthSortedBatches(fitted.lengths, job.batch_size, job.seed)
    trainer = PairTrainer(
        order=order,
        model=policy,
        ref_model=reference,
        args=DPOConfig(**arguments(job, len(rows), scratch), **_loss(job)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[*callbacks, _EpochOfOrder(order)],
        peft_config=adapter,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def arguments(job: DpoJob, pairs: int, scratch: Path) -> dict[str, Any]:
    """The arguments of `DPOConfig` for a job with so many pairs."""
    return {
        "output_dir": str(scratch),
        "beta": job.beta,
        "max_length": None,  # what is too long was left out; nothing may be cut
        "disable_dropout": job.dropout == 0,
        "num_train_epochs": job.epochs,
        "per_device_train_batch_size": job.micro_batch_size,
        "gradient_accumulation_steps": job.accumulation,
        "optim": "adamw_torch_fused",
        "weight_decay": job.weight_decay,
        "max_grad_norm": job.max_grad_norm,
        "bf16": bfloat16(job),
        "use_cpu": job.device == "cpu",
        "gradient_checkpointing": job.gradient_checkpointing,
        "seed": derive(job.seed, "training") % _SEEDS,
        **_schedule(job, pairs),
        **_LOCAL,
        **tracking(job),
    }


_LOCAL: dict[str, Any] = {
    "push_to_hub": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


def _loss(job: DpoJob) -> dict[str, Any]:
    return {
        "loss_type": list(job.loss),
        "loss_weights": list(job.loss_weights) or None,
        "label_smoothing": job.label_smoothing,
        "ld_alpha": job.ld_alpha,
    }


def _schedule(job: DpoJob, pairs: int) -> dict[str, Any]:
    steps = math.ceil(pairs / job.batch_size) * job.epochs
    rising = math.ceil(steps * job.warmup)
    peak = {"learning_rate": job.learning_rate, "warmup_steps": rising}
    if job.schedule == "constant":
        return peak | {"lr_scheduler_type": "constant_with_warmup"}
    floor = job.final_learning_rate / job.learning_rate
    if job.schedule == "cosine":
        return peak | {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": floor}}
    falling = {"num_decay_steps": max(1, steps - rising), "decay_type": "linear", "min_lr_ratio": floor}
    return peak | {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": falling}


def bfloat16(job: DpoJob) -> bool:
    """Whether the computation is in bfloat16. Raises `UserError` when the job asks for a device that isn't there."""
    if job.device == "cuda" and not torch.cuda.is_available():
        raise UserError("training job: device is cuda, but torch finds no GPU; fix: make it auto or cpu")
    if job.device == "mps" and not torch.backends.mps.is_available():
        raise UserError("training job: device is mps, but torch finds none; fix: make it auto or cpu")
    on_gpu = job.device in ("auto", "cuda") and torch.cuda.is_available()
    return job.dtype == "bfloat16" or (job.dtype == "auto" and on_gpu)
