"""Every optimiser step becomes one event; training ends when its figures break, or with the epoch that is kept."""

# ruff: noqa: ARG002  (the signatures are those of transformers)
from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from metareward.errors import UserError
from metareward.training.events import Report

# TRL's names. Rewards are beta times the log-ratio to the reference; a margin is chosen minus rejected; accuracies
# are the share of pairs with a margin above 0; logps are summed over the completion, in nats.
FIGURES = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "learning_rate",
    "grad_norm",
)


class StepLog(TrainerCallback):  # type: ignore[misc]
    """Reports each step of a run over ``pairs`` pairs whose schedule of ``epochs`` is cut at ``last_epoch``.

    A run that is taken up again counts on from the ``seconds`` it had taken.
    """

    def __init__(self, report: Report, pairs: int, epochs: int, last_epoch: int, seconds: float = 0.0) -> None:
        self._report = report
        self._pairs = pairs
        self._kept = last_epoch / epochs
        self._last_epoch = last_epoch
        self._before = seconds
        self._began = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._began = time.perf_counter() - self._before

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **kwargs: Any) -> None:
        """Report one step. Raises `UserError` when its loss or gradient is no number any more."""
        if "loss" not in logs:  # the summary at the end
            return
        step = state.global_step
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs[name]):
                raise UserError(f"training: {name} became {logs[name]} in step {step}; fix: lower learning_rate")
        seconds = time.perf_counter() - self._began
        place = {"event": "step", "step": step, "steps": round(state.max_steps * self._kept), "epoch": state.epoch}
        speed = {"seconds": seconds, "pairs_per_second": state.epoch * self._pairs / seconds}
        self._report(place | speed | {name: logs[name] for name in FIGURES})

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop at the end of the epoch that is kept, though the schedule may be longer."""
        if round(state.epoch) >= self._last_epoch:
            control.should_training_stop = True
