"""One training run inside its own process: load, check where the model comes from, train, write.

Imports torch and everything on it; `metareward.training.dpo` comes before it and costs nothing.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch.utils import deterministic

from metareward.training.events import Report
from metareward.training.job import DpoJob
from metareward.training.lengths import FittingPairs, fitting
from metareward.training.lineage import LINEAGE, Lineage, Origin, check_log_ratio, digest, origins, settings_of
from metareward.training.models import load_model, load_tokenizer, save_model
from metareward.training.newfolder import NewFolder
from metareward.training.pairset import TrainingPair, count_kinds
from metareward.training.prefix_sharing import can_share, share_prefixes, unshare_prefixes
from metareward.training.steplog import StepLog
from metareward.training.trainer import PairTrainer, make_trainer

# Nats a token. Prompts run once give the same log-probabilities as prompts run twice, to rounding; a model for which
# they don't (a kind of attention that the packing doesn't fit) is off by far more.
_SHARING_TOLERANCE = {False: 1e-4, True: 0.1}  # by bfloat16
_PACKAGES = ("metareward", "torch", "transformers", "trl")


@dataclass(frozen=True, slots=True)
class FirstBatch:
    """What start and reference make of the first micro-batch, before any step: log-ratios in nats."""

    log_ratios: tuple[float, ...]
    shared: bool


def fit(job: DpoJob, pairs: tuple[TrainingPair, ...], new: NewFolder, report: Report) -> Lineage:
    """Train ``job`` on ``pairs`` and put the model with its lineage into ``new.content``.

    Raises `UserError` for what the user can mend; nothing of the model is written before the last step is done.
    """
    _settle_torch(job)
    start, reference = origins(job)
    tokenizer = load_tokenizer(job.start)
    policy, frozen = load_model(job.start, job.dropout), load_model(job.reference, 0.0)
    fitted = fitting(pairs, tokenizer, job, policy.config.to_dict().get("max_position_embeddings"))
    log = StepLog(report, len(fitted.pairs), job.epochs, job.last_epoch)
    trainer = make_trainer(job, fitted, policy, frozen, tokenizer, new.scratch, [log])
    first = _first_batch(trainer, frozen, job)
    ratio = check_log_ratio(first.log_ratios, start, reference)
    report(_beginning(job, fitted, first))
    trainer.train()
    save_model(trainer.model, job, new.content)
    lineage = _lineage(job, fitted, (start, reference), ratio, first.shared, trainer.state.global_step)
    (new.content / LINEAGE).write_text(lineage.to_json(), encoding="utf-8")
    return lineage


def _settle_torch(job: DpoJob) -> None:
    """Equal jobs give equal bits: on a CPU always, on a GPU as far as its kernels can."""
    torch.set_num_threads(job.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid, at a price


def _first_batch(trainer: PairTrainer, reference: Any, job: DpoJob) -> FirstBatch:
    """Compare start and reference, then start with and without prefix sharing, on the first micro-batch.

    Precomputed reference figures are in the trainer already, so then the reference is let go of.
    """
    batch = next(iter(trainer.get_train_dataloader()))
    policy = trainer.model
    plain = _log_probs(trainer, policy, batch)
    ratios = tuple((plain - _log_probs(trainer, reference, batch)).tolist())
    shared = job.prefix_sharing and can_share(policy.config)
    if shared:
        share_prefixes(policy)
        off = (_log_probs(trainer, policy, batch) - plain).abs().max() / batch["completion_mask"].sum(dim=1).max()
        shared = off.item() <= _SHARING_TOLERANCE[trainer.args.bf16]
        share_prefixes(reference) if shared else unshare_prefixes(policy)
    if trainer.precompute_ref_logps:
        trainer.ref_model = None
    return FirstBatch(ratios, shared)


def _log_probs(trainer: PairTrainer, model: Any, batch: Any) -> torch.Tensor:
    return torch.cat(trainer.compute_ref_log_probs(model, batch)).float()


def _beginning(job: DpoJob, fitted: FittingPairs, first: FirstBatch) -> dict[str, object]:
    return {
        "event": "start",
        "pid": os.getpid(),
        "pairs": count_kinds(fitted.pairs),
        "too_long": count_kinds(fitted.too_long),
        "longest": fitted.longest,
        "limit": fitted.limit,
        "log_ratio": max(map(abs, first.log_ratios)),
        "prefix_sharing": first.shared,
        "seed": job.seed,
    }


def _lineage(
    job: DpoJob, fitted: FittingPairs, origin: tuple[Origin, Origin], ratio: float, shared: bool, steps: int
) -> Lineage:
    versions = {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    return Lineage(
        start=origin[0],
        reference=origin[1],
        sources=tuple(map(digest, job.pairs)),
        pairs=count_kinds(fitted.pairs),
        too_long=count_kinds(fitted.too_long),
        longest=fitted.longest,
        limit=fitted.limit,
        log_ratio=ratio,
        prefix_sharing=shared,
        steps=steps,
        seed=job.seed,
        settings=settings_of(job),
        versions=versions,
    )
