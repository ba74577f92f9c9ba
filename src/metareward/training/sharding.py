"""FSDP2: weights, gradients and optimizer are spread over the processes, layer by layer, from the moment of loading.

transformers shards the empty model by PyTorch's `fully_shard`, then each process reads only its part of each tensor
from the safetensors files, so no process ever holds a whole copy (`DistributedConfig`). This goes for full fine-tuning;
an adapter's base is sharded by accelerate, after each process has loaded all of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_parts
from torch.distributed.checkpoint.state_dict_saver import save as save_parts
from torch.distributed.tensor import DTensor

from metareward.training.config import OptimizationSettings
from metareward.training.requirements import loads_shards

_PARTS, _SCHEDULER = "shards", "scheduler.pt"


def sharded_loading(settings: OptimizationSettings, bfloat16: bool) -> dict[str, Any]:
    """The arguments of `from_pretrained` that shard a model while it is loaded; none where ``settings`` don't.

    With ``bfloat16`` layers are gathered in bfloat16 and gradients reduced in float32; the weights stay float32.
    """
    if not loads_shards(settings):
        return {}
    from transformers.distributed import DistributedConfig

    return {"distributed_config": DistributedConfig(fsdp_size=settings.num_processes, fsdp_mixed_precision=bfloat16)}


def is_sharded(trainer: Any) -> bool:
    """Whether each process holds a part of the trainer's model, by whichever library."""
    return bool(
        trainer.is_distributed_loading_by_transformers or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    )


def gather_weights(model: Any, dtype: torch.dtype, keep: bool) -> dict[str, Tensor]:
    """All weights of a model sharded at loading, in ``dtype`` on the CPU: one tensor is gathered at a time.

    Every process has to call it; those that don't ``keep`` the weights get none. Tied weights are one tensor.
    """
    gathered: dict[int, Tensor] = {}
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in gathered:
            whole = tensor.detach()
            whole = whole.full_tensor() if isinstance(whole, DTensor) else whole
            gathered[id(tensor)] = whole.to("cpu", dtype, copy=True) if keep else whole.new_empty(0)
        if keep:
            found[name] = gathered[id(tensor)]
    return found


class ShardedResumeStates:
    """A trainer whose resume states hold a sharded model in parts, one written by each process.

    transformers can't resume a model that was sharded at loading; PyTorch's distributed checkpoints can.
    """

    is_distributed_loading_by_transformers: bool
    model: Any
    optimizer: Any
    lr_scheduler: Any
    args: Any

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model of a checkpoint; the parts of a sharded one are written with the optimizer's."""
        if not self.is_distributed_loading_by_transformers:
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        elif output_dir is not None:
            Path(output_dir).mkdir(parents=True, exist_ok=True)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_distributed_loading_by_transformers:
            super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
            return
        save_parts(self._parts(), checkpoint_id=Path(output_dir) / _PARTS)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / _SCHEDULER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.is_distributed_loading_by_transformers:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_distributed_loading_by_transformers or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
            return
        parts = self._parts()  # read into, in place
        load_parts(parts, checkpoint_id=Path(checkpoint) / _PARTS)
        set_state_dict(
            self.model, self.optimizer.optimizer, model_state_dict=parts["model"], optim_state_dict=parts["optimizer"]
        )
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / _SCHEDULER, weights_only=True))

    def _parts(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer.optimizer)
        return {"model": model, "optimizer": optimizer}
