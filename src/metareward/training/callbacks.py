"""Callbacks of both trainers: steps are reported, resume states and epoch checkpoints saved, the last epoch ends it."""

# ruff: noqa: ARG002  (the signatures are those of transformers)
from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback

from metareward.errors import UserError
from metareward.storage.atomic import flush_dir
from metareward.training.checkpoints import ResumeState, SanityFindings, delete_resume_state, mark_resume_state
from metareward.training.config import AnyJob
from metareward.training.launch import Report

# TRL's names of what a step reports. DPO: rewards are beta times the log-ratio to the reference; a margin is chosen
# minus rejected; accuracies are the share of pairs with a margin above 0; logps are summed over the completion, in
# nats. SFT: the loss is the mean over the completions' tokens, entropy the model's own, both in nats a token.
METRICS = {
    "dpo": (
        "loss",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
        "learning_rate",
        "grad_norm",
    ),
    "sft": ("loss", "mean_token_accuracy", "entropy", "learning_rate", "grad_norm"),
}


class _TimedCallback(TrainerCallback):  # type: ignore[misc]
    """A callback that knows how long training has taken; a resumed run counts on from the ``seconds`` of before."""

    def __init__(self, seconds: float) -> None:
        self._before = seconds
        self._began = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._began = time.perf_counter() - self._before

    def seconds(self) -> float:
        """Seconds of training up to now."""
        return time.perf_counter() - self._began


class StepLog(_TimedCallback):
    """Reports each step of a run over ``examples`` examples, and ends the run after the job's last epoch."""

    def __init__(self, job: AnyJob, report: Report, examples: int, seconds: float = 0.0) -> None:
        super().__init__(seconds)
        self._job, self._report, self._examples = job, report, examples

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **kwargs: Any) -> None:
        """Report one step. Raises `UserError` when its loss or gradient isn't finite."""
        if "loss" not in logs:  # the summary at the end
            return
        step = state.global_step
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs[name]):
                raise UserError(f"training: {name} became {logs[name]} in step {step}; fix: lower learning_rate")
        seconds = self.seconds()
        steps = round(state.max_steps * self._job.settings.last_epoch / self._job.settings.num_train_epochs)
        place = {"event": "step", "step": step, "steps": steps, "epoch": state.epoch}
        speed = {"seconds": seconds, "examples_per_second": state.epoch * self._examples / seconds}
        self._report(place | speed | {name: logs[name] for name in METRICS[self._job.kind]})

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop after the last epoch, though the schedule may be longer."""
        if round(state.epoch) >= self._job.settings.last_epoch:
            control.should_training_stop = True


class ResumeStates(_TimedCallback):
    """Has transformers save a resume state every ``save_steps`` steps, but for the last step; the latest is kept."""

    def __init__(self, job: AnyJob, seconds: float) -> None:
        super().__init__(seconds)
        self._job, self._due = job, False
        self.findings: SanityFindings | None = None  # of DPO, before the first step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Request a resume state; at the end of an epoch only when all else that happens there is done."""
        every = self._job.settings.save_steps
        self._due = self._due or bool(every and state.global_step % every == 0)
        if self._due and state.epoch != round(state.epoch):
            self._request(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Request the resume state that was put off, unless this is the end."""
        if self._due and round(state.epoch) < self._job.settings.last_epoch:
            self._request(control)

    def _request(self, control: Any) -> None:
        self._due = False
        control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the state that has just been saved as complete, and delete older ones."""
        PartialState().wait_for_everyone()  # each process has written its part
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        flush_dir(folder)
        mark_resume_state(self._job, ResumeState(folder, state.global_step, self.seconds(), self.findings))
        for other in folder.parent.iterdir():
            if other != folder and other.is_dir():
                delete_resume_state(other)


class EpochCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Calls ``save`` with the number of every epoch that has ended, counted from 1."""

    def __init__(self, save: Callable[[int], None]) -> None:
        self._save = save

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the model as it is now."""
        self._save(round(state.epoch))
