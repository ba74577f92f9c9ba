"""TRL's `SFTTrainer`, set up from a job: every default that matters is said here, none is left to TRL.

The loss is the answers' negative log-likelihood alone (Self-Rewarding section 3.1), over the tokens y_i of all answers
in an optimiser step:

    L = - sum_i log pi(y_i | prompt, y_<i) / number of such tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from metareward.training.batches import LengthSortedBatches
from metareward.training.sft_job import SftJob
from metareward.training.sft_lengths import FittingExamples
from metareward.training.trainer import arguments

_DPO_ONLY = ("beta", "disable_dropout", "precompute_ref_log_probs")


class ExampleTrainer(SFTTrainer):  # type: ignore[misc]
    """`SFTTrainer` with our order of examples; nothing else of it is overridden."""

    def __init__(self, order: LengthSortedBatches, **kwargs: Any) -> None:
        self._order = order
        super().__init__(**kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthSortedBatches:  # noqa: ARG002
        return self._order


def make_trainer(
    job: SftJob,
    fitted: FittingExamples,
    model: Any,
    tokenizer: Any,
    scratch: Path,
    callbacks: Sequence[TrainerCallback],
) -> ExampleTrainer:
    """A trainer ready to `train`. The model is in memory already, so TRL loads nothing by itself."""
    rows = [{"prompt": example.prompt, "completion": example.completion} for example in fitted.examples]
    trainer = ExampleTrainer(
        order=LengthSortedBatches(fitted.lengths, job.batch_size, job.seed),
        model=model,
        args=SFTConfig(**sft_arguments(job, len(rows), scratch)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def sft_arguments(job: SftJob, examples: int, scratch: Path) -> dict[str, Any]:
    """The arguments of `SFTConfig` for a job with so many examples."""
    shared = arguments(job.as_dpo(), examples, scratch)
    ours = {name: value for name, value in shared.items() if name not in _DPO_ONLY}
    return ours | {"completion_only_loss": True, "packing": False, "loss_type": "nll"}
