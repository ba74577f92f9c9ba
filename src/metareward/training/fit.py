"""One training run inside its own process: load, check where the model comes from, train, write.

Imports torch and everything on it; `metareward.training.dpo` comes before it and costs nothing.
"""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils import deterministic

from metareward.training.beginning import Beginning
from metareward.training.cast import load_cast
from metareward.training.checkpoints import Checkpoints, Epochs
from metareward.training.events import Report
from metareward.training.job import DpoJob
from metareward.training.kept import Findings, Kept
from metareward.training.lengths import FittingPairs, fitting
from metareward.training.lineage import LINEAGE, Lineage, base_of, digest, origin, origins, settings_of
from metareward.training.models import load_tokenizer
from metareward.training.newfolder import NewFolder
from metareward.training.pairset import TrainingPair, count_kinds
from metareward.training.ranks import is_first
from metareward.training.saving import save_trained
from metareward.training.steplog import StepLog
from metareward.training.trainer import make_trainer

_PACKAGES = ("metareward", "torch", "transformers", "trl")


def fit(
    job: DpoJob, pairs: tuple[TrainingPair, ...], new: NewFolder, report: Report, kept: Kept | None = None
) -> Lineage:
    """Train ``job`` on ``pairs``, going on from ``kept``, and put the model with its lineage into ``new.content``.

    Raises `UserError` for what the user can mend; nothing of the model is written before the last step is done.
    """
    _settle_torch(job)
    run = Run(job, pairs, new, report, kept)
    run.train()
    return run.write()


class Run:
    """One run of a job, from loading to writing."""

    def __init__(
        self, job: DpoJob, pairs: tuple[TrainingPair, ...], new: NewFolder, report: Report, kept: Kept | None
    ) -> None:
        self._job, self._new, self._report, self._kept = job, new, report, kept
        self._start, self._held_to = origins(job)
        self._sources = tuple(map(digest, job.pairs))
        self._checkpoints = Checkpoints(job, kept.seconds if kept else 0.0)
        self._facts: dict[str, Any] = {}
        self._prepare(pairs)

    def _prepare(self, pairs: tuple[TrainingPair, ...]) -> None:
        job, kept = self._job, self._kept
        tokenizer, cast = load_tokenizer(job.start), load_cast(job)
        context = cast.policy.config.to_dict().get("max_position_embeddings")
        self._fitted = fitting(pairs, tokenizer, job, context)
        beginning = Beginning(job, self._start, self._held_to, kept.findings if kept else None, self._tell)
        epochs = [Epochs(self._keep_epoch)] if job.keep_epochs else []
        callbacks = [beginning, self._log(), self._checkpoints, *epochs]
        folder = self._new.kept if job.checkpoint_steps else self._new.scratch
        self._trainer = make_trainer(
            job, self._fitted, cast.policy, cast.reference, tokenizer, folder, callbacks, cast.adapter
        )
        beginning.prepare(self._trainer, self._fitted.lengths)

    def _log(self) -> StepLog:
        job, pairs = self._job, len(self._fitted.pairs)
        return StepLog(self._report, pairs, job.epochs, job.last_epoch, self._kept.seconds if self._kept else 0.0)

    def _tell(self, findings: Findings) -> None:
        self._checkpoints.findings = findings
        self._facts = _facts(self._fitted, findings)
        if self._kept is None:
            self._report({"event": "start", "pid": os.getpid(), "seed": self._job.seed} | self._facts)
        else:
            self._report({"event": "resume", "pid": os.getpid(), "step": self._kept.step})

    def train(self) -> None:
        """All steps that are owed."""
        self._trainer.train(resume_from_checkpoint=str(self._kept.folder) if self._kept else None)

    def write(self) -> Lineage:
        """The model and its lineage, into the new folder; the models of the epochs are there already."""
        if not self._job.keep_epochs:
            save_trained(self._trainer, self._job, self._new.content)
        return self._write_lineage(self._new.content)

    def _keep_epoch(self, epoch: int) -> None:
        folder, unfinished = self._new.content / f"epoch-{epoch}", self._new.scratch / f"epoch-{epoch}"
        unfinished.mkdir()
        save_trained(self._trainer, self._job, unfinished)
        self._write_lineage(unfinished, epoch)
        if is_first():
            shutil.rmtree(folder, ignore_errors=True)  # from before a kill
            unfinished.rename(folder)

    def _write_lineage(self, folder: Path, epoch: int | None = None) -> Lineage:
        lineage = Lineage(
            start=self._start,
            reference=self._held_to,
            sources=self._sources,
            steps=self._trainer.state.global_step,
            seed=self._job.seed,
            settings=settings_of(self._job),
            versions={name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
            base=None if self._job.lora is None else origin(base_of(self._job), self._job),
            epoch=epoch,
            **self._facts,
        )
        if is_first():
            (folder / LINEAGE).write_text(lineage.to_json(), encoding="utf-8")
        return lineage


def _settle_torch(job: DpoJob) -> None:
    """Equal jobs give equal bits: on a CPU always, on a GPU as far as its kernels can."""
    torch.set_num_threads(job.threads_each)
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid, at a price


def _facts(fitted: FittingPairs, findings: Findings) -> dict[str, Any]:
    """What is known before the first step: told in the first event and written in the lineage."""
    return {
        "pairs": count_kinds(fitted.pairs),
        "too_long": count_kinds(fitted.too_long),
        "longest": fitted.longest,
        "limit": fitted.limit,
        "log_ratio": findings.log_ratio,
        "prefix_sharing": not findings.not_packed,
        "not_shared": findings.not_packed,
    }
