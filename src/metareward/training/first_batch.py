"""The first micro-batch, looked at before the first step: what it says of the lineage, and of sharing prompts.

The same rows go through the start model and through the reference, and, where a pair's prompt is to be run once,
through the start model that way too. The rows are the very ones that training begins with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from metareward.training.job import DpoJob
from metareward.training.prefix_sharing import can_share, share_prefixes, unshare_prefixes
from metareward.training.trainer import PairTrainer

# Nats a token. Prompts run once give the same log-probabilities as prompts run twice, to rounding; a model for which
# they don't (a kind of attention that the packing doesn't fit) is off by far more.
_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}


@dataclass(frozen=True, slots=True)
class FirstBatch:
    """The log-ratios (nats) of the first micro-batch's completions, and whether prompts are run once from now on."""

    log_ratios: tuple[float, ...]
    shared: bool


def look(trainer: PairTrainer, reference: Any, job: DpoJob) -> FirstBatch:
    """Compare the trainer's model with ``reference``, and turn prefix sharing on in both when it is asked and works.

    When the reference's figures are in the training set already, the trainer lets go of the reference.
    """
    batch = next(iter(trainer.get_train_dataloader()))
    policy = trainer.model
    plain = _log_probs(trainer, policy, batch)
    ratios = tuple((plain - _log_probs(trainer, reference, batch)).tolist())
    shared = job.prefix_sharing and can_share(policy.config) and _try_sharing(trainer, batch, plain)
    if shared:
        share_prefixes(reference)
    if trainer.precompute_ref_logps:
        trainer.ref_model = None
    return FirstBatch(ratios, shared)


def _try_sharing(trainer: PairTrainer, batch: Any, plain: torch.Tensor) -> bool:
    """Turn sharing on in the policy, and off again when its log-probabilities are not the ``plain`` ones."""
    share_prefixes(trainer.model)
    apart = (_log_probs(trainer, trainer.model, batch) - plain).abs().max()
    works = bool(apart / batch["completion_mask"].sum(dim=1).max() <= _tolerance(trainer))
    if not works:
        unshare_prefixes(trainer.model)
    return works


def _tolerance(trainer: PairTrainer) -> float:
    return _TOLERANCE["bfloat16" if trainer.args.bf16 else "float32"]


def _log_probs(trainer: PairTrainer, model: Any, batch: Any) -> torch.Tensor:
    """Summed over each completion: (2B), chosen before rejected, without gradient."""
    return torch.cat(trainer.compute_ref_log_probs(model, batch)).float()
