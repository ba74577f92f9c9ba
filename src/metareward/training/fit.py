"""One training run inside its own process: load, check, train, save. DPO and SFT differ in data, models and trainer.

Imports torch and all that is built on it; `metareward.training.child` sets the environment first.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils import deterministic

from metareward.storage.atomic import AtomicDir
from metareward.storage.custody import LINEAGE, model_ref
from metareward.training.callbacks import EpochCheckpoints, ResumeStates, StepLog
from metareward.training.checkpoints import ResumeState, SanityFindings
from metareward.training.config import AnyJob, DpoJob, SftJob
from metareward.training.data import FittingData, count_kinds, fit_examples, fit_pairs
from metareward.training.launch import Report, is_main_process
from metareward.training.lineage import Lineage, adapter_base, identity_settings, source_digests, start_and_reference
from metareward.training.models import load_dpo_models, load_model, load_tokenizer, save_trained
from metareward.training.requirements import require_packages
from metareward.training.sanity_checks import SanityCheck
from metareward.training.sharding import sharded_loading
from metareward.training.trainer import (
    ExampleTrainer,
    PairTrainer,
    computes_in_bfloat16,
    make_dpo_trainer,
    make_sft_trainer,
)

_PACKAGES = ("metareward", "torch", "transformers", "trl")


def fit(
    job: AnyJob, examples: Sequence[Any], folders: AtomicDir, report: Report, resume: ResumeState | None
) -> Lineage:
    """Train ``job`` on its pairs or examples, from ``resume`` on; model and lineage go to ``folders.content``.

    Raises `UserError`; nothing of the model is written before the last step is done.
    """
    run = Run(job, folders, report, resume)
    tokenizer = load_tokenizer(job.start)
    if isinstance(job, SftJob):
        require_packages(job.settings)
        shards = sharded_loading(job.settings, computes_in_bfloat16(job.settings))
        model = load_model(job.start, job.settings.dropout, **shards)
        data = fit_examples(examples, tokenizer, job, _context(model))
        callbacks = [run.on_data(data), run.resume_states]
        trainer = make_sft_trainer(job, data, model, tokenizer, run.checkpoint_folder, callbacks)
        run.report_start()
        return run.train(trainer)
    models = load_dpo_models(job)
    pairs = fit_pairs(examples, tokenizer, job, _context(models.policy))
    check = SanityCheck(job, None if resume is None else resume.findings, run.on_findings)
    epochs = [EpochCheckpoints(run.save_epoch)] if job.keep_epochs else []
    callbacks = [check, run.on_data(pairs), run.resume_states, *epochs]
    pair_trainer = make_dpo_trainer(
        job, pairs, models.policy, models.reference, tokenizer, run.checkpoint_folder, callbacks, models.adapter
    )
    check.prepare(pair_trainer, pairs.lengths)
    return run.train(pair_trainer)


def _context(model: Any) -> int | None:
    """The tokens that a model can read; None when its configuration doesn't say."""
    context: int | None = model.config.to_dict().get("max_position_embeddings")
    return context


class Run:
    """What the run of a job of either kind consists of: events, resume states, lineage, saved models."""

    def __init__(self, job: AnyJob, folders: AtomicDir, report: Report, resume: ResumeState | None) -> None:
        # Equal jobs give equal bits: on a CPU always, on a GPU as far as its kernels can.
        torch.set_num_threads(job.threads_each)
        torch.use_deterministic_algorithms(True, warn_only=True)
        deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid that costs time
        self._job, self._folders, self._report, self._resume = job, folders, report, resume
        self._start, self._reference = start_and_reference(job)
        self._sources = source_digests(job)
        self._seconds = resume.seconds if resume else 0.0
        self._trainer: PairTrainer | ExampleTrainer | None = None
        self.resume_states = ResumeStates(job, self._seconds)
        self._facts: dict[str, Any] = {}  # part of the first event and of the lineage
        # Resume states outlive a kill.
        self.checkpoint_folder = folders.resume if job.settings.save_steps else folders.scratch

    def on_data(self, data: FittingData[Any]) -> StepLog:
        """Take what is known of the data before the first step. Returns the callback that reports steps."""
        self._facts |= {"examples": count_kinds(data.examples), "too_long": count_kinds(data.too_long)}
        self._facts |= {"longest": data.longest, "limit": data.limit, "notes": data.notes}
        return StepLog(self._job, self._report, len(data.examples), self._seconds)

    def on_findings(self, findings: SanityFindings) -> None:
        """Take what DPO's sanity check has found."""
        self.resume_states.findings = findings
        self._facts |= {"log_ratio": findings.log_ratio, "prefix_sharing": not findings.not_packed}
        self._facts["not_packed"] = findings.not_packed
        self.report_start()

    def report_start(self) -> None:
        """Report that training starts, or where it is resumed."""
        if self._resume is None:
            self._report({"event": "start", "pid": os.getpid(), "seed": self._job.seed} | self._facts)
        else:
            self._report({"event": "resume", "pid": os.getpid(), "step": self._resume.step})

    def train(self, trainer: PairTrainer | ExampleTrainer) -> Lineage:
        """Make all steps that are left, and save the model, unless each epoch's has been saved."""
        self._trainer = trainer
        trainer.train(resume_from_checkpoint=str(self._resume.folder) if self._resume else None)
        if self._job.product == self._job.output:
            save_trained(trainer, self._job, self._folders.content)
        return self._write_lineage(trainer, self._folders.content)

    def save_epoch(self, epoch: int) -> None:
        """Save the checkpoint of an epoch that has ended."""
        assert self._trainer is not None
        folder, unfinished = (place / f"epoch-{epoch}" for place in (self._folders.content, self._folders.scratch))
        unfinished.mkdir()
        save_trained(self._trainer, self._job, unfinished)
        self._write_lineage(self._trainer, unfinished, epoch)
        if is_main_process():
            shutil.rmtree(folder, ignore_errors=True)  # from before a kill
            unfinished.rename(folder)

    def _write_lineage(self, trainer: PairTrainer | ExampleTrainer, folder: Path, epoch: int | None = None) -> Lineage:
        job = self._job
        base = None
        if isinstance(job, DpoJob) and job.settings.adapter is not None:
            base = model_ref(adapter_base(job), job.output)
        lineage = Lineage(
            method=job.kind,
            start=self._start,
            reference=self._reference,
            sources=self._sources,
            steps=trainer.state.global_step,
            seed=job.seed,
            settings=identity_settings(job),
            versions={name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
            base=base,
            epoch=epoch,
            **self._facts,
        )
        if is_main_process():
            (folder / LINEAGE).write_text(lineage.to_json(), encoding="utf-8")
        return lineage
