"""One supervised run inside its own process: load, look at the examples, train, write.

Imports torch and everything on it; `metareward.training.sft` comes before it and costs nothing.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

import torch
from torch.utils import deterministic

from metareward.training.events import Report
from metareward.training.lineage import LINEAGE
from metareward.training.models import load_model, load_tokenizer, save_model
from metareward.training.newfolder import NewFolder
from metareward.training.sft_examples import Example, count_kinds
from metareward.training.sft_job import SftJob
from metareward.training.sft_lengths import FittingExamples, fitting
from metareward.training.sft_lineage import SftLineage, sft_settings_of, sources_of, start_of
from metareward.training.sft_steplog import SftStepLog
from metareward.training.sft_trainer import make_trainer

_PACKAGES = ("metareward", "torch", "transformers", "trl")


def fit(job: SftJob, examples: tuple[Example, ...], new: NewFolder, report: Report) -> SftLineage:
    """Teach ``job``'s model the ``examples`` and put it with its lineage into ``new.content``.

    Raises `UserError` for what the user can mend; nothing of the model is written before the last step is done.
    """
    _settle_torch(job)
    start, sources = start_of(job), sources_of(job)
    tokenizer, model = load_tokenizer(job.start), load_model(job.start, job.dropout)
    fitted = fitting(examples, tokenizer, job, model.config.to_dict().get("max_position_embeddings"))
    log = SftStepLog(report, len(fitted.examples), job.epochs, job.last_epoch)
    trainer = make_trainer(job, fitted, model, tokenizer, new.scratch, [log])
    facts = _facts(fitted)
    report({"event": "start", "pid": os.getpid(), "seed": job.seed} | facts)
    trainer.train()
    save_model(trainer.model, job.as_dpo(), new.content)
    lineage = SftLineage(
        start=start,
        sources=sources,
        steps=trainer.state.global_step,
        seed=job.seed,
        settings=sft_settings_of(job),
        versions={name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        **facts,
    )
    (new.content / LINEAGE).write_text(lineage.to_json(), encoding="utf-8")
    return lineage


def _settle_torch(job: SftJob) -> None:
    """Equal jobs give equal bits: on a CPU always, on a GPU as far as its kernels can."""
    torch.set_num_threads(job.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid, at a price


def _facts(fitted: FittingExamples) -> dict[str, Any]:
    """What is known before the first step: told in the first event and written in the lineage."""
    return {
        "examples": count_kinds(fitted.examples),
        "too_long": count_kinds(fitted.too_long),
        "longest": fitted.longest,
        "limit": fitted.limit,
    }
