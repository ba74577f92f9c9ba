"""One of several processes of torchrun: a DPO step of a model whose weights `fully_shard` has spread over them.

``sharded_process.py FOLDER CONTROL`` writes all weights after the step to FOLDER/sharded.safetensors. The step is the
trainer's own loss on each process's half of the batch, on packed rows; accelerate turns FSDP on with a GPU only, so
here PyTorch's own call does it. CONTROL ``alone`` does the same with the whole batch and without sharding.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from training_world import changed, prepare_trainer, small_job

from metareward.training.prefix_sharing.forward import ATTENTION
from metareward.training.sanity_checks import SanityCheck


def main(folder: Path, control: str) -> None:
    torch.set_num_threads(1)
    alone = control == "alone"
    scratch = folder / f"{control}-{os.environ.get('RANK', '0')}"
    scratch.mkdir()
    job = changed(small_job(scratch), per_device_train_batch_size=8 if alone else 4, num_processes=1 if alone else 2)
    trainer = prepare_trainer(job, scratch)
    model = trainer.model
    check = next(each for each in trainer.callback_handler.callbacks if isinstance(each, SanityCheck))
    check._sharing.packed = True
    if not alone:
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
        assert all(isinstance(each, DTensor) for each in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for number, inputs in enumerate(trainer.get_train_dataloader()):
        trainer.compute_loss(model, inputs).backward()
        optimizer.step()
        optimizer.zero_grad()
        if number == 2:
            break
    assert model.config._attn_implementation == ATTENTION
    whole = {
        name: (each.full_tensor() if isinstance(each, DTensor) else each).detach().clone()
        for name, each in model.named_parameters()
    }
    if trainer.is_world_process_zero():
        save_file(whole, folder / f"{control}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
