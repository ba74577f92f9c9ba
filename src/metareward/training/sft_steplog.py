"""Every optimiser step of a supervised run becomes one event; training ends with the epoch that is kept."""

# ruff: noqa: ARG002  (the signatures are those of transformers)
from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from metareward.errors import UserError
from metareward.training.events import Report

# TRL's names. The loss is the mean over the answers' tokens, in nats; the accuracy is the share of them that the model
# held to be the likeliest; entropy is its own, in nats a token.
FIGURES = ("loss", "mean_token_accuracy", "entropy", "learning_rate", "grad_norm")


class SftStepLog(TrainerCallback):  # type: ignore[misc]
    """Reports each step of a run over ``examples`` examples whose schedule of ``epochs`` is cut at ``last_epoch``."""

    def __init__(self, report: Report, examples: int, epochs: int, last_epoch: int) -> None:
        self._report = report
        self._examples = examples
        self._kept = last_epoch / epochs
        self._last_epoch = last_epoch
        self._began = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

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
        speed = {"seconds": seconds, "examples_per_second": state.epoch * self._examples / seconds}
        self._report(place | speed | {name: logs[name] for name in FIGURES})

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop at the end of the epoch that is kept, though the schedule may be longer."""
        if round(state.epoch) >= self._last_epoch:
            control.should_training_stop = True
