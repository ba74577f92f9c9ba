"""TRL's `DPOTrainer` and `SFTTrainer`, set up from a job: every argument that matters is given here, none left to TRL.

The loss of DPO is, unless ``loss_type`` names others, standard DPO on completion tokens (arXiv 2305.18290 equation 7;
Meta-Rewarding appendix A.3):

    L = -log sigmoid( beta [ log pi(c|x)/ref(c|x) - log pi(r|x)/ref(r|x) ] )

with log-probabilities summed over the completion. The papers have no other term; a likelihood term on what is chosen
(``loss_type`` [sigmoid, sft]) is Iterative RPO's (arXiv 2404.19733 equation 2). The loss of supervised fine-tuning is
the completions' negative log-likelihood (Self-Rewarding section 3.1), over the tokens y_i of an optimizer step:

    L = - sum_i log pi(y_i | prompt, y_<i) / number of such tokens
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from metareward.seeds import derive
from metareward.training.checkpoints import LogProbs
from metareward.training.config import DpoJob, OptimizationSettings, SftJob, TrainingJob
from metareward.training.data import Example, FittingData, TrainingPair
from metareward.training.requirements import loads_shards, require_device, require_packages
from metareward.training.sharding import ShardedResumeStates

_SEEDS = 2**31  # transformers hands the seed to NumPy, which takes 32 bits
_REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")  # TRL's, read by its collator and its loss
_FIXED: dict[str, Any] = {
    "max_length": None,  # what is too long was left out; nothing may be truncated
    "optim": "adamw_torch_fused",
    "push_to_hub": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}
# Reduced after each micro-batch: until then each process holds the gradients of all weights.
_SHARDED_GRADIENTS = {"sync_each_batch": True}


class LengthSortedBatches(Sampler[int]):
    """The order of examples: shuffled by (seed, epoch), longest first inside each batch.

    Micro-batches are padded to their longest row. Sorting a whole epoch by length would save that padding but put all
    judge pairs (long) in some steps and all actor pairs (short) in others; sorting inside each batch saves most of it
    and leaves the optimizer steps as they are.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by the training loop before each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive(self._seed, "order", self._epoch))
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        for first in range(0, len(order), self._batch_size):
            yield from sorted(order[first : first + self._batch_size], key=lambda row: -self._lengths[row])


class _OwnOrder:
    """A trainer with our order of examples."""

    order: LengthSortedBatches

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthSortedBatches:  # noqa: ARG002
        return self.order


class PairTrainer(_OwnOrder, ShardedResumeStates, DPOTrainer):  # type: ignore[misc]
    """`DPOTrainer` with our order of pairs, rows that are token ids already, and the mean over a step's pairs as loss.

    transformers takes the mean of the micro-batches' means: in an epoch's last step, whose last micro-batch may be
    smaller, its pairs would count more than the others.
    """

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def get_batch_samples(self, *args: Any) -> tuple[list[Any], int]:
        """The micro-batches of an optimizer step, and the number of its pairs."""
        micro_batches, _ = super().get_batch_samples(*args)
        return micro_batches, sum(map(_count_pairs, micro_batches))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: int | None = None
    ) -> Any:
        """TRL's loss of a micro-batch, weighted by its share of the step's pairs."""
        loss = super().compute_loss(model, inputs, return_outputs)
        if num_items_in_batch is None:
            return loss
        # transformers divides by the number of micro-batches.
        return loss * (_count_pairs(inputs) * self.current_gradient_accumulation_steps / num_items_in_batch)


def _count_pairs(micro_batch: Mapping[str, Tensor]) -> int:
    return len(micro_batch["input_ids"]) // 2


class ExampleTrainer(_OwnOrder, ShardedResumeStates, SFTTrainer):  # type: ignore[misc]
    """`SFTTrainer` with our order of examples."""


T = TypeVar("T", PairTrainer, ExampleTrainer)


class _SetEpoch(TrainerCallback):  # type: ignore[misc]
    """Sets the epoch of the order: accelerate doesn't, in a resumed run of several processes."""

    def __init__(self, order: LengthSortedBatches) -> None:
        self._order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._order.set_epoch(int(state.epoch))


def make_dpo_trainer(
    job: DpoJob,
    data: FittingData[TrainingPair],
    policy: Any,
    reference: Any,
    tokenizer: Any,
    folder: Path,
    callbacks: Sequence[TrainerCallback],
    adapter: Any = None,
) -> PairTrainer:
    """A trainer ready to `train`; ``folder`` gets its checkpoints. The models are in memory, so TRL loads nothing.

    With an ``adapter`` (PEFT's configuration) TRL puts one on the policy. Without a ``reference`` it is the policy
    without its adapter, or with the adapter as it was.
    """
    config = DPOConfig(**dpo_arguments(job, len(data.rows), folder))
    models = {"model": policy, "ref_model": reference, "peft_config": adapter}
    return _make_trainer(PairTrainer, job, data, tokenizer, callbacks, args=config, **models)


def make_sft_trainer(
    job: SftJob,
    data: FittingData[Example],
    model: Any,
    tokenizer: Any,
    folder: Path,
    callbacks: Sequence[TrainerCallback],
) -> ExampleTrainer:
    """A trainer ready to `train`; ``folder`` gets its checkpoints. The model is in memory, so TRL loads nothing."""
    arguments = _arguments(job, len(data.rows), folder)
    tokenized = {"skip_prepare_dataset": True}
    config = SFTConfig(**arguments, dataset_kwargs=tokenized, packing=False, loss_type="nll")
    return _make_trainer(ExampleTrainer, job, data, tokenizer, callbacks, args=config, model=model)


def _make_trainer(
    kind: type[T],
    job: TrainingJob,
    data: FittingData[Any],
    tokenizer: Any,
    callbacks: Sequence[TrainerCallback],
    **options: Any,
) -> T:
    """A trainer of this kind on the rows of ``data``; ``options`` are what DPO and SFT differ in."""
    order = LengthSortedBatches(data.lengths, job.settings.batch_size, job.seed)
    trainer = kind(
        train_dataset=Dataset.from_dict({name: [row[name] for row in data.rows] for name in data.rows[0]}),
        processing_class=tokenizer,
        callbacks=[*callbacks, _SetEpoch(order)],
        **options,
    )
    # TRL makes an adapter on a 4-bit base bfloat16, which would lose the small steps of DPO.
    for weight in (each for each in trainer.model.parameters() if each.requires_grad):
        weight.data = weight.data.float()
    trainer.order = order
    trainer.remove_callback(PrinterCallback)
    return trainer


def dpo_arguments(job: DpoJob, pairs: int, folder: Path) -> dict[str, Any]:
    """The arguments of `DPOConfig` for a job with so many pairs."""
    settings = job.settings
    return _arguments(job, pairs, folder) | {
        "beta": settings.beta,
        "disable_dropout": not settings.has_dropout,
        "loss_type": list(settings.loss_type),
        "loss_weights": list(settings.loss_weights) or None,
        "label_smoothing": settings.label_smoothing,
        "ld_alpha": settings.ld_alpha,
    }


def _arguments(job: TrainingJob, examples: int, folder: Path) -> dict[str, Any]:
    """The arguments of `transformers.TrainingArguments`."""
    settings = job.settings
    return {
        "output_dir": str(folder),
        "num_train_epochs": settings.num_train_epochs,
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": computes_in_bfloat16(settings),
        "use_cpu": settings.device == "cpu" or (settings.device == "auto" and not torch.accelerator.is_available()),
        "gradient_checkpointing": settings.gradient_checkpointing,
        "accelerator_config": {"gradient_accumulation_kwargs": _SHARDED_GRADIENTS} if loads_shards(settings) else None,
        "seed": derive(job.seed, "training") % _SEEDS,
        **_schedule(settings, math.ceil(examples / settings.batch_size) * settings.num_train_epochs),
        **_FIXED,
        **tracker_arguments(job),
    }


def _schedule(settings: OptimizationSettings, steps: int) -> dict[str, Any]:
    """The learning rate of ``steps`` optimizer steps, those of all planned epochs: up from 0, then down to min_lr."""
    warmup = min(math.ceil(steps * settings.warmup_ratio), steps - 1)  # a rate of 0 in every step would train nothing
    peak = {"learning_rate": settings.learning_rate, "warmup_steps": warmup}
    if settings.lr_scheduler_type == "constant" or settings.min_lr == settings.learning_rate:
        return peak | {"lr_scheduler_type": "constant_with_warmup"}
    if settings.lr_scheduler_type == "cosine":
        floor = settings.min_lr / settings.learning_rate
        return peak | {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": floor}}
    # transformers' linear schedule ends at 0.
    falling = {"lr_end": settings.min_lr, "power": 1.0}
    return peak | {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": falling}


def computes_in_bfloat16(settings: OptimizationSettings) -> bool:
    """Whether the computation is in bfloat16. Raises `UserError` when the device isn't there."""
    require_device(settings, torch.cuda.device_count(), torch.backends.mps.is_available())
    on_gpu = settings.device in ("auto", "cuda") and torch.cuda.is_available()
    return settings.dtype == "bfloat16" or (settings.dtype == "auto" and on_gpu)


def tracker_arguments(job: TrainingJob) -> dict[str, Any]:
    """The arguments for experiment trackers. Raises `UserError` naming one that isn't installed."""
    require_packages(job.settings)
    project = {"project": "metareward"} if "trackio" in job.settings.report_to else {}
    return {"report_to": list(job.settings.report_to) or "none", "run_name": job.run_name, **project}


def precompute_reference(trainer: PairTrainer, model: Any, lengths: Sequence[int]) -> LogProbs:
    """The reference's log-probabilities (nats) of every pair's chosen and rejected side, in the data set's order.

    The reference is frozen, so once is enough. Pairs of like length go together, which saves padding where rows aren't
    packed and lets judge prompts share their rubric where they are.
    """
    order = sorted(range(len(lengths)), key=lambda pair: -lengths[pair])
    rows = trainer.train_dataset.select(order)
    loader = DataLoader(rows, batch_size=trainer.args.per_device_train_batch_size, collate_fn=trainer.data_collator)
    found: list[list[Tensor]] = []
    for batch in trainer.accelerator.prepare(loader):
        sides = trainer.accelerator.gather_for_metrics(trainer.compute_ref_log_probs(model, batch))
        found.append([side.float().cpu() for side in sides])
    chosen, rejected = (torch.cat(side).tolist() for side in zip(*found, strict=True))
    places = sorted(range(len(order)), key=order.__getitem__)
    return tuple(chosen[place] for place in places), tuple(rejected[place] for place in places)


def use_precomputed(trainer: PairTrainer, log_probs: LogProbs) -> None:
    """Have ``trainer`` use these log-probabilities, and release its reference model."""
    for column, values in zip(_REFERENCE_COLUMNS, log_probs, strict=True):
        trainer.train_dataset = trainer.train_dataset.add_column(column, list(values))
    trainer.precompute_ref_logps = True
    trainer.ref_model = None
