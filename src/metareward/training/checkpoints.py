"""Every so many optimiser steps a checkpoint is written, from which the same job goes on after a kill where it was.

transformers writes it: weights, optimiser, schedule, random numbers. It counts once `metareward.training.kept` has
marked it; then the one before it goes. All are gone once the model is there.
"""

# ruff: noqa: ARG002  (the signatures are those of transformers)
from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback

from metareward.training.job import DpoJob
from metareward.training.kept import Findings, Kept, mark
from metareward.training.newfolder import flush_folder


class Checkpoints(TrainerCallback):  # type: ignore[misc]
    """Has a checkpoint written every ``job.checkpoint_steps`` steps, but for the last step."""

    def __init__(self, job: DpoJob, seconds: float) -> None:
        """A run that is taken up again counts on from the ``seconds`` it had taken."""
        self._job = job
        self._before = seconds
        self._began = time.perf_counter()
        self._due = False
        self.findings: Findings | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._began = time.perf_counter() - self._before

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint; at the end of an epoch only when all else that happens there is done."""
        every = self._job.checkpoint_steps
        self._due = self._due or bool(every and state.global_step % every == 0)
        if self._due and state.epoch != round(state.epoch):
            self._ask(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for the checkpoint that was put off, unless this is the end."""
        if self._due and round(state.epoch) < self._job.last_epoch:
            self._ask(control)

    def _ask(self, control: Any) -> None:
        self._due = False
        control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the checkpoint that has just been written, and throw away older ones."""
        PartialState().wait_for_everyone()  # each process has written its part
        if not state.is_world_process_zero or self.findings is None:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        flush_folder(folder)
        mark(self._job, Kept(folder, state.global_step, time.perf_counter() - self._began, self.findings))
        for other in folder.parent.iterdir():
            if other != folder and other.is_dir():
                shutil.rmtree(other)


class Epochs(TrainerCallback):  # type: ignore[misc]
    """Calls ``keep`` with the number of every epoch that has ended, counted from 1."""

    def __init__(self, keep: Callable[[int], None]) -> None:
        self._keep = keep

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the model as it is now."""
        self._keep(round(state.epoch))
