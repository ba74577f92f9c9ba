"""All that comes before the first step: the models are looked at, the lineage is checked, the reference is run once.

The reference is looked at as soon as the trainer stands. The policy is looked at when training begins, because only
then has it been spread over the processes that share it.
"""

# ruff: noqa: ARG002  (the signatures are those of transformers)
from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from accelerate.utils import is_peft_model
from transformers import TrainerCallback
from trl.trainer.utils import use_adapter

from metareward.training import reference
from metareward.training.first_batch import Look, first_batch, look
from metareward.training.job import DpoJob
from metareward.training.kept import Figures, Findings
from metareward.training.lineage import Origin, check_log_ratio
from metareward.training.prefix_sharing import RowSharing
from metareward.training.trainer import PairTrainer

Tell = Callable[[Findings], None]


class Beginning(TrainerCallback):  # type: ignore[misc]
    """Finds out what is to be known before the first step, and ``tell``s it; or takes what a killed run had found."""

    def __init__(self, job: DpoJob, start: Origin, held_to: Origin, found: Findings | None, tell: Tell) -> None:
        self._job, self._start, self._held_to = job, start, held_to
        self._found = found
        self._tell = tell

    def prepare(self, trainer: PairTrainer, lengths: Sequence[int]) -> None:
        """Look at the reference, and run it over all pairs (of these ``lengths``) if they are seen more than once."""
        self._trainer = trainer
        self._sharing = RowSharing(trainer.model)
        model = trainer.ref_model
        held = self._sharing if model is None else RowSharing(trainer.accelerator.unwrap_model(model))
        if self._found is not None:
            self._take_up(self._found, held)
            return
        self._batch = first_batch(trainer)
        self._reference: Look | None = None
        self._figures: Figures | None = None
        if model is not None or not _sharded(trainer):
            self._hold(trainer.model if model is None else model, held, lengths)

    def _hold(self, model: Any, sharing: RowSharing, lengths: Sequence[int]) -> None:
        trainer, job = self._trainer, self._job
        with _as_reference(trainer):
            self._reference = look(trainer, model, sharing, self._batch, job.prefix_sharing)
        if job.last_epoch > 1 or (job.lora is not None and job.dropout > 0):
            self._figures = reference.precompute(trainer, model, lengths)
            reference.use(trainer, self._figures)

    def _take_up(self, found: Findings, held: RowSharing) -> None:
        self._sharing.packed = held.packed = not found.not_packed
        if found.reference is not None:
            reference.use(self._trainer, found.reference)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the policy. Raises `UserError` when it is not what its reference is, and should be."""
        if self._found is None:
            self._found = self._find()
            gc.collect()  # the reference, where it is no longer needed
        self._tell(self._found)

    def _find(self) -> Findings:
        trainer, model = self._trainer, self._trainer.model_wrapped
        policy = look(trainer, model, self._sharing, self._batch, self._job.prefix_sharing)
        if self._reference is None:
            with _as_reference(trainer):
                self._reference = look(trainer, model, self._sharing, self._batch, self._job.prefix_sharing)
        ratios = trainer.accelerator.gather(policy.log_probs - self._reference.log_probs).tolist()
        worst = check_log_ratio(ratios, self._start, self._held_to)
        return Findings(worst, policy.not_packed or self._reference.not_packed, self._figures)


def _sharded(trainer: PairTrainer) -> bool:
    """Whether the processes hold a part of the policy each: then it can't be run before training has begun."""
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def _as_reference(trainer: PairTrainer) -> AbstractContextManager[None]:
    """Within this the trainer's model is its own reference, where it has no other: as PEFT's adapters allow."""
    if trainer.ref_model is not None or not is_peft_model(trainer.model):
        return nullcontext()
    model = trainer.accelerator.unwrap_model(trainer.model)
    return use_adapter(model, "ref" if "ref" in model.peft_config else None)  # type: ignore[no-any-return]
