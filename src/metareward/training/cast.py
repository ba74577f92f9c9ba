"""Who takes part in a training: the policy, its reference, and the low-rank adapter that is trained in its place.

Without LoRA both models are in float32. With it the policy is the frozen base in the format of the computation, and
where the reference is the start model there is no second one: it is the base less the adapter, or with the adapter as
it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from transformers import PreTrainedModel

from metareward.errors import UserError
from metareward.training.job import DpoJob
from metareward.training.lineage import ADAPTER
from metareward.training.models import load_model
from metareward.training.trainer import bfloat16


@dataclass(frozen=True, slots=True)
class Cast:
    """``policy`` is what is trained, alone or with a fresh ``adapter`` (PEFT's configuration) that TRL puts on it."""

    policy: Any
    reference: PreTrainedModel | None
    adapter: Any = None


def load_cast(job: DpoJob) -> Cast:
    """Load what ``job`` needs. Raises `UserError` for folders without a whole model, and for missing packages."""
    if job.lora is None:
        return Cast(load_model(job.start, job.dropout), load_model(job.reference, 0.0))
    if find_spec("peft") is None:
        raise UserError("training job: lora needs peft; fix: pip install 'metareward[lora]'")
    from metareward.training import adapters

    computing = torch.bfloat16 if bfloat16(job) else torch.float32
    base = adapters.load_base(job, job.lora, computing)
    reference = None if job.reference == job.start else load_model(job.reference, 0.0, computing)
    if job.lora.stacked and (job.start / ADAPTER).is_dir():
        return Cast(adapters.take_up(base, job, job.lora), reference)
    return Cast(base, reference, adapters.fresh(job.lora))
