"""The reference's log-probabilities of all pairs, computed once before training instead of once an epoch.

The reference is frozen, so its figures of a pair never change; pairs of like length go together, which saves padding
where rows aren't packed and lets judges' prompts share their rubric where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from metareward.training.kept import Figures
from metareward.training.trainer import PairTrainer

_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")  # TRL's, which its collator and its loss look for


def precompute(trainer: PairTrainer, model: Any, lengths: Sequence[int]) -> Figures:
    """The log-probabilities (nats) of every pair's chosen and rejected completion, in the training set's order."""
    order = sorted(range(len(lengths)), key=lambda pair: -lengths[pair])
    rows = trainer.train_dataset.select(order)
    loader = DataLoader(rows, batch_size=trainer.args.per_device_train_batch_size, collate_fn=trainer.data_collator)
    found = [_both(trainer, model, batch) for batch in trainer.accelerator.prepare(loader)]
    chosen, rejected = (torch.cat(side).tolist() for side in zip(*found, strict=True))
    places = sorted(range(len(order)), key=order.__getitem__)
    return tuple(chosen[place] for place in places), tuple(rejected[place] for place in places)


def _both(trainer: PairTrainer, model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    chosen, rejected = trainer.accelerator.gather_for_metrics(trainer.compute_ref_log_probs(model, batch))
    return chosen.float().cpu(), rejected.float().cpu()


def use(trainer: PairTrainer, figures: Figures) -> None:
    """Have ``trainer`` train with these figures and let go of its reference model."""
    for column, values in zip(_COLUMNS, figures, strict=True):
        trainer.train_dataset = trainer.train_dataset.add_column(column, list(values))
    trainer.precompute_ref_logps = True
    trainer.ref_model = None
