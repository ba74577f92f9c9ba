"""One training run inside its own process: load, check where the model comes from, train, write.

Imports torch and everything on it; `metareward.training.dpo` comes before it and costs nothing.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

import torch
from torch.utils import deterministic

from metareward.training.events import Report
from metareward.training.first_batch import look
from metareward.training.job import DpoJob
from metareward.training.lengths import FittingPairs, fitting
from metareward.training.lineage import LINEAGE, Lineage, check_log_ratio, digest, origins, settings_of
from metareward.training.models import load_model, load_tokenizer, save_model
from metareward.training.newfolder import NewFolder
from metareward.training.pairset import TrainingPair, count_kinds
from metareward.training.steplog import StepLog
from metareward.training.trainer import make_trainer

_PACKAGES = ("metareward", "torch", "transformers", "trl")


def fit(job: DpoJob, pairs: tuple[TrainingPair, ...], new: NewFolder, report: Report) -> Lineage:
    """Train ``job`` on ``pairs`` and put the model with its lineage into ``new.content``.

    Raises `UserError` for what the user can mend; nothing of the model is written before the last step is done.
    """
    _settle_torch(job)
    (start, reference), sources = origins(job), tuple(map(digest, job.pairs))
    tokenizer = load_tokenizer(job.start)
    policy, frozen = load_model(job.start, job.dropout), load_model(job.reference, 0.0)
    fitted = fitting(pairs, tokenizer, job, policy.config.to_dict().get("max_position_embeddings"))
    log = StepLog(report, len(fitted.pairs), job.epochs, job.last_epoch)
    trainer = make_trainer(job, fitted, policy, frozen, tokenizer, new.scratch, [log])
    first = look(trainer, frozen, job)
    facts = _facts(fitted, check_log_ratio(first.log_ratios, start, reference), first.shared)
    report({"event": "start", "pid": os.getpid(), "seed": job.seed} | facts)
    trainer.train()
    save_model(trainer.model, job, new.content)
    lineage = Lineage(
        start=start,
        reference=reference,
        sources=sources,
        steps=trainer.state.global_step,
        seed=job.seed,
        settings=settings_of(job),
        versions={name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        **facts,
    )
    (new.content / LINEAGE).write_text(lineage.to_json(), encoding="utf-8")
    return lineage


def _settle_torch(job: DpoJob) -> None:
    """Equal jobs give equal bits: on a CPU always, on a GPU as far as its kernels can."""
    torch.set_num_threads(job.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid, at a price


def _facts(fitted: FittingPairs, log_ratio: float, shared: bool) -> dict[str, Any]:
    """What is known before the first step: told in the first event and written in the lineage."""
    return {
        "pairs": count_kinds(fitted.pairs),
        "too_long": count_kinds(fitted.too_long),
        "longest": fitted.longest,
        "limit": fitted.limit,
        "log_ratio": log_ratio,
        "prefix_sharing": shared,
    }
