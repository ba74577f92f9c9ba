"""The first pairs, looked at before the first step: what they say of the lineage, and of packing rows.

The same rows go through the start model and through the reference, and, where what they have in common is to be run
once, through each that way too. The rows are the very ones that training begins with: two pairs, because that is all it
takes for rows to share a prompt and prompts to share a beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metareward.training.prefix_sharing import RowSharing
from metareward.training.trainer import PairTrainer

# Nats a token. Rows packed give the same log-probabilities as rows apart, to rounding; a model for which they don't
# (a kind of attention that the packing doesn't fit) is off by far more.
_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
_PAIRS = 2
_ROWS = ("input_ids", "attention_mask", "completion_mask")
_SHOWN = 200  # characters of a foreign message
NOT_ASKED = "not asked for"


@dataclass(frozen=True, slots=True)
class Look:
    """One model's log-probabilities of the first pairs' completions, in nats (2 each), chosen above rejected.

    ``not_packed`` says why its rows are run apart from now on; empty: they are packed.
    """

    log_probs: Tensor
    not_packed: str


def first_batch(trainer: PairTrainer) -> dict[str, Tensor]:
    """This process's first pairs: of its first micro-batch the longest ones, chosen above rejected."""
    batch = next(iter(trainer.get_train_dataloader()))
    pairs = len(batch["input_ids"]) // 2
    rows = [side + pair for side in (0, pairs) for pair in range(min(pairs, _PAIRS))]
    return {name: batch[name][rows] for name in _ROWS}


def look(trainer: PairTrainer, model: Any, sharing: RowSharing, batch: dict[str, Tensor], wanted: bool = True) -> Look:
    """Run ``model`` over ``batch``, and pack its rows from now on if that is ``wanted`` and gives the same figures."""
    sharing.packed = False
    plain = _log_probs(trainer, model, batch)
    not_packed = _try_packing(trainer, model, sharing, batch, plain) if wanted else NOT_ASKED
    sharing.packed = not not_packed
    return Look(plain, not_packed)


def _try_packing(trainer: PairTrainer, model: Any, sharing: RowSharing, batch: dict[str, Tensor], plain: Tensor) -> str:
    """Why rows can't be packed; empty when they can."""
    reason = sharing.why_not()
    if reason is not None:
        return reason
    sharing.packed, sharing.flex = True, batch["input_ids"].is_cuda
    if sharing.flex:
        sharing.flex = not _differing(trainer, model, batch, plain)
    return "" if sharing.flex else _differing(trainer, model, batch, plain)


def _differing(trainer: PairTrainer, model: Any, batch: dict[str, Tensor], plain: Tensor) -> str:
    """By how much packed rows come out otherwise; empty when it is no more than rounding."""
    try:
        packed = _log_probs(trainer, model, batch)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # a kernel that can't be compiled for this GPU, or for this model's heads
        return " ".join(str(error).split())[:_SHOWN]
    apart = (packed - plain).abs() / batch["completion_mask"].sum(dim=1)
    worst = float(trainer.accelerator.gather(apart.max()).max())  # all processes decide alike
    tolerance = _TOLERANCE["bfloat16" if trainer.args.bf16 else "float32"]
    return "" if worst <= tolerance else f"packed rows came out {worst:.2g} nats a token apart"


def _log_probs(trainer: PairTrainer, model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Summed over each completion, without gradient and dropout."""
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    rows = {name: batch[name] for name in ("input_ids", "attention_mask")}
    training = model.training
    model.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        output = model(**rows, labels=labels, use_cache=False, fused_lm_head=True)
    model.train(training)
    summed: Tensor = output.log_probs.sum(dim=1)
    return summed.float()
