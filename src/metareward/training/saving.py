"""The trained model becomes a folder, however it was trained: whole or by an adapter, in one process or in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metareward.training.job import DpoJob
from metareward.training.lineage import ADAPTER
from metareward.training.models import save_model
from metareward.training.trainer import PairTrainer


def save_trained(trainer: PairTrainer, job: DpoJob, folder: Path) -> None:
    """Write the trainer's model into ``folder`` as it is now. Every process has to call this; the first one writes."""
    weights = _all_weights(trainer)
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    if job.lora is None:
        save_model(model, job, folder, weights)
        return
    from metareward.training import adapters

    adapters.save_adapter(model, folder / ADAPTER, weights)
    save_model(adapters.merged(job, folder / ADAPTER), job, folder)


def _all_weights(trainer: PairTrainer) -> dict[str, Any] | None:
    """The whole model's weights, brought together from the processes that share them; None where each has them all."""
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return None
    return trainer.accelerator.get_state_dict(trainer.model_wrapped)  # type: ignore[no-any-return]
