"""What DPO checks before its first step: that start and reference agree, and that packed rows give the same figures.

The first pairs go through the policy and the reference, and, where prefix sharing is wanted, through each packed too.
Two pairs are enough for rows to share a prompt and for prompts to share a beginning. The reference is checked as soon
as the trainer is made, and computed for all pairs if they are seen more than once; the policy is checked when training
begins, because only then has it been spread over the processes that share it.
"""

# ruff: noqa: ARG002  (the signatures are those of transformers)
from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from transformers import TrainerCallback
from trl.trainer.utils import use_adapter

from metareward.storage.custody import model_ref
from metareward.training.checkpoints import LogProbs, SanityFindings
from metareward.training.config import DpoJob
from metareward.training.lineage import check_log_ratio
from metareward.training.prefix_sharing.check import PackingCheck
from metareward.training.prefix_sharing.forward import IGNORE_INDEX, PrefixSharing, why_not_packed
from metareward.training.sharding import is_sharded
from metareward.training.trainer import PairTrainer, precompute_reference, use_precomputed

_PAIRS = 2
_COLUMNS = ("input_ids", "attention_mask", "completion_mask")
NOT_WANTED = "prefix_sharing is false"


class SanityCheck(TrainerCallback):  # type: ignore[misc]
    """Makes the findings and passes them to ``on_found``; a resumed run passes the ``findings`` of before."""

    def __init__(
        self, job: DpoJob, findings: SanityFindings | None, on_found: Callable[[SanityFindings], None]
    ) -> None:
        self._job = job
        self._findings = findings
        self._on_found = on_found

    def prepare(self, trainer: PairTrainer, lengths: Sequence[int]) -> None:
        """Check the reference, and compute it for all pairs (of these ``lengths``) if they are seen more than once."""
        self._trainer = trainer
        self._sharing = PrefixSharing(trainer.model)
        model = trainer.ref_model
        sharing = self._sharing if model is None else PrefixSharing(trainer.accelerator.unwrap_model(model))
        if self._findings is not None:
            on_gpu = trainer.accelerator.device.type == "cuda"  # FlexAttention has no backward pass on a CPU
            for each in (self._sharing, sharing):
                each.packed, each.flex = not self._findings.not_packed, self._findings.flex and on_gpu
            if self._findings.reference is not None:
                use_precomputed(trainer, self._findings.reference)
            return
        settings = self._job.settings
        self._batch = first_batch(trainer)
        self._reference: Checked | None = None
        self._precomputed: LogProbs | None = None
        if model is None:
            if is_sharded(trainer):
                return  # a policy of which each process holds a part can't be run before training begins
            model = trainer.model
        with _as_reference(trainer):
            self._reference = check_packing(trainer, model, sharing, self._batch, settings.prefix_sharing)
        if settings.last_epoch > 1 or (settings.adapter is not None and settings.has_dropout):
            self._precomputed = precompute_reference(trainer, model, lengths)
            use_precomputed(trainer, self._precomputed)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the policy. Raises `UserError` when it differs from its reference and shouldn't."""
        if self._findings is None:
            trainer, job = self._trainer, self._job
            model, wanted = trainer.model_wrapped, job.settings.prefix_sharing
            policy = check_packing(trainer, model, self._sharing, self._batch, wanted, trained=True)
            if self._reference is None:
                with _as_reference(trainer):
                    self._reference = check_packing(trainer, model, self._sharing, self._batch, wanted)
            ratios = trainer.accelerator.gather(policy.log_probs - self._reference.log_probs).tolist()
            start, reference = (model_ref(folder, job.output) for folder in (job.start, job.reference))
            self._findings = SanityFindings(
                log_ratio=check_log_ratio(ratios, start, reference),
                not_packed=policy.not_packed or self._reference.not_packed,
                flex=self._sharing.flex,
                reference=self._precomputed,
            )
            gc.collect()  # the reference, where it is no longer needed
        self._on_found(self._findings)


def _as_reference(trainer: PairTrainer) -> AbstractContextManager[None]:
    """In this context a policy that is its own reference (without its adapter, or with that of before) is that."""
    if trainer.ref_model is not None or not is_peft_model(trainer.model):
        return nullcontext()
    model = trainer.accelerator.unwrap_model(trainer.model)
    return use_adapter(model, "ref" if "ref" in model.peft_config else None)  # type: ignore[no-any-return]


# --- the first pairs ---


@dataclass(frozen=True, slots=True)
class Checked:
    """One model's log-probabilities of the first pairs' completions, in nats (2 each), chosen above rejected.

    ``not_packed`` says why its rows aren't packed from now on; empty: they are.
    """

    log_probs: Tensor
    not_packed: str


def first_batch(trainer: PairTrainer) -> dict[str, Tensor]:
    """This process's first pairs: the longest of its first micro-batch, chosen above rejected."""
    batch = next(iter(trainer.get_train_dataloader()))
    pairs = len(batch["input_ids"]) // 2
    rows = [side + pair for side in (0, pairs) for pair in range(min(pairs, _PAIRS))]
    return {name: batch[name][rows] for name in _COLUMNS}


def check_packing(
    trainer: PairTrainer,
    model: Any,
    sharing: PrefixSharing,
    batch: dict[str, Tensor],
    wanted: bool = True,
    trained: bool = False,
) -> Checked:
    """Run ``model`` on ``batch``, and pack its rows from now on if that is ``wanted`` and gives the same figures.

    Of a model that is to be ``trained`` gradients are compared, too, unless its weights are sharded.
    """
    rows = {name: batch[name] for name in ("input_ids", "attention_mask")}
    rows["labels"] = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORE_INDEX)
    sharing.packed, training = False, model.training
    model.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        plain = model(**rows, use_cache=False, fused_lm_head=True).log_probs.float().sum(dim=1)
    not_packed = why_not_packed(sharing.model) if wanted else NOT_WANTED
    if not_packed is None:
        not_packed = _try_packed(trainer, model, sharing, rows, trained)
    model.train(training)
    return Checked(plain, not_packed)


def _try_packed(
    trainer: PairTrainer, model: Any, sharing: PrefixSharing, rows: dict[str, Tensor], trained: bool
) -> str:
    """Pack rows if the figures are the same, with FlexAttention on a GPU if it gives them; else the reason why not."""
    with_gradient = trained and not is_sharded(trainer)
    if with_gradient:
        model = trainer.accelerator.unwrap_model(model)  # no gradients to be averaged over the processes
        # As it is trained, where that is deterministic; without checkpointing two pairs may not fit in memory.
        model.train(trainer.args.gradient_checkpointing and trainer.args.disable_dropout)
    dtype = torch.bfloat16 if trainer.args.bf16 else torch.float32
    check = PackingCheck(sharing, model, rows, with_gradient, dtype, trainer.accelerator.autocast)
    reason = ""
    for flex in (True, False) if rows["input_ids"].is_cuda else (False,):
        times, reason = check.try_packed(flex)
        worst = trainer.accelerator.gather(torch.tensor(times, device=trainer.accelerator.device)).max()
        if worst <= 1.0:  # in all processes
            return ""
    sharing.packed = sharing.flex = False
    return reason or "packed rows differ in another process"
