"""Low-rank adapters: put on a model, taken up again, written, and merged into a whole model.

What a LoRA run writes is always a whole model, which every engine serves; the adapter lies beside it in ``adapter/``.
So iterations can go on in two ways. *Merged*: the next one starts from the whole model with a fresh adapter, and ranks
add up. *Stacked*: the next one trains the same adapter on, on top of the base it was made for; the change from that
base keeps its rank, and no rounding of a merged model stands between iterations.

Merging is done on the base as its folder has it, in float32, also where it was held in 4 bits while training.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import BitsAndBytesConfig

from metareward.errors import UserError
from metareward.training.job import DpoJob, LoraSettings
from metareward.training.lineage import ADAPTER, base_of
from metareward.training.models import load_model


def load_base(job: DpoJob, lora: LoraSettings, computing: torch.dtype) -> Any:
    """The model that the adapter goes on, frozen, in the format of the computation or in 4 bits."""
    base = base_of(job)
    if not lora.four_bit:
        return load_model(base, job.dropout, computing)
    if find_spec("bitsandbytes") is None:
        raise UserError("training job: lora.four_bit needs bitsandbytes; fix: pip install 'metareward[qlora]'")
    if not torch.cuda.is_available():
        raise UserError("training job: lora.four_bit needs a GPU, and torch finds none; fix: leave it out")
    fourth = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=computing,
    )
    here = {"": torch.cuda.current_device()}
    return load_model(base, job.dropout, computing, quantization_config=fourth, device_map=here)


def fresh(lora: LoraSettings) -> LoraConfig:
    """A new adapter: it changes nothing until it is trained."""
    whole = lora.targets == ("all-linear",)
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if whole else list(lora.targets),
        task_type="CAUSAL_LM",
    )


def take_up(base: Any, job: DpoJob, lora: LoraSettings) -> Any:
    """``base`` with the start model's adapter, to be trained on. Raises `UserError` when it was made otherwise."""
    folder = job.start / ADAPTER
    there = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if (there["r"], there["lora_alpha"]) != (lora.rank, lora.alpha):
        raise UserError(
            f"{folder}: an adapter of rank {there['r']} and alpha {there['lora_alpha']}, asked for are {lora.rank} and "
            f"{lora.alpha}; fix: set lora.rank and lora.alpha to the adapter's, or lora.stacked to false"
        )
    return PeftModel.from_pretrained(base, folder, is_trainable=True)


def save_adapter(model: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
    """Write the adapter of ``model`` to ``folder``, without the path of its base, which is nobody's business.

    Its lineage names the base. ``weights`` are all of the model's, where processes share them.
    """
    model.save_pretrained(folder, selected_adapters=["default"], state_dict=weights)
    (folder / "README.md").unlink()
    config = folder / "adapter_config.json"
    told = json.loads(config.read_text(encoding="utf-8")) | {"base_model_name_or_path": None}
    config.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def merged(job: DpoJob, adapter: Path) -> Any:
    """The whole model, in float32: the base of ``job`` and the ``adapter`` in a folder."""
    return PeftModel.from_pretrained(load_model(base_of(job), 0.0), adapter).merge_and_unload()
