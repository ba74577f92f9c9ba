"""Model folders become models to train, and the trained model becomes a folder of the same kind.

Weights are trained in float32 whatever the folder holds (at learning rates such as 5e-6 most updates are too small for
bfloat16 weights to change), and saved as the start model's are.

With a low-rank adapter the policy is the frozen base in the format of the computation or in 4 bits, and where the
reference is the start model there is no second one: it is the policy without its adapter, or with the adapter as it
was. The saved model is always a whole one, which every engine serves; the adapter is beside it in ``adapter/``. The
adapter is merged into the base as its folder has it, in float32, also where it was trained on 4 bits. So the next
iteration can start from the merged model with a fresh adapter (ranks add up), or train the same adapter on (the change
from the base keeps its rank, and no rounding of a merged model comes in between).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from metareward.errors import UserError
from metareward.storage.custody import require_weights
from metareward.training.config import AnyJob, DpoJob
from metareward.training.lineage import ADAPTER, adapter_base
from metareward.training.requirements import require_packages
from metareward.training.sharding import gather_weights, is_sharded, sharded_loading
from metareward.training.trainer import ExampleTrainer, PairTrainer, computes_in_bfloat16

_NAMES_SHOWN = 3
_SHARDS = "distributed_config"  # transformers' name in a configuration


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises `UserError` when it has no chat template."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.chat_template is None:
        raise UserError(f"{folder}: the tokenizer has no chat template; fix: add chat_template.jinja")
    return tokenizer


def load_model(folder: Path, dropout: float, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """The model of a folder in ``dtype``, in evaluation mode, with ``dropout`` as all its dropout rates.

    Raises `UserError` when weights are missing in the folder, or for dropout in an architecture that has none.
    """
    require_weights(folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    names = dropout_names(config)
    if dropout and not names:
        raise UserError(f"{folder}: a {config.model_type} model has no dropout; fix: set dropout to 0")
    for name in names:
        setattr(config, name, dropout)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **options,
    )
    missing = sorted(info["missing_keys"])
    if missing:
        shown = ", ".join(missing[:_NAMES_SHOWN]) + (", ..." if len(missing) > _NAMES_SHOWN else "")
        raise UserError(f"{folder}: {len(missing)} weights are missing ({shown}); fix: save the whole model again")
    return model


def dropout_names(config: Any) -> tuple[str, ...]:
    """The names of a configuration's dropout rates."""
    return tuple(
        name
        for name, value in sorted(config.to_dict().items())
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float)
    )


@dataclass(frozen=True, slots=True)
class DpoModels:
    """The ``policy`` is trained, alone or with a new ``adapter`` (PEFT's configuration) that TRL puts on it."""

    policy: Any
    reference: PreTrainedModel | None
    adapter: Any = None


def load_dpo_models(job: DpoJob) -> DpoModels:
    """Load the models of ``job``. Raises `UserError` for incomplete folders and for missing packages."""
    settings, lora = job.settings, job.settings.adapter
    require_packages(settings)
    if lora is None:
        shards = sharded_loading(settings, computes_in_bfloat16(settings))
        return DpoModels(load_model(job.start, settings.dropout, **shards), load_model(job.reference, 0.0, **shards))
    dtype = torch.bfloat16 if computes_in_bfloat16(settings) else torch.float32
    from peft import LoraConfig, PeftConfig, PeftModel

    base = _load_base(job, dtype)
    reference = None if job.reference == job.start else load_model(job.reference, 0.0, dtype)
    before = job.start / ADAPTER
    if lora.carry_over == "stacked" and before.is_dir():
        saved = json.loads((before / "adapter_config.json").read_text(encoding="utf-8"))
        if (saved["r"], saved["lora_alpha"]) != (lora.r, lora.lora_alpha):
            raise UserError(
                f"{before}: an adapter with r {saved['r']} and lora_alpha {saved['lora_alpha']}, the recipe has "
                f"{lora.r} and {lora.lora_alpha}; fix: set both to the adapter's, or lora.carry_over to merged"
            )
        config = PeftConfig.from_pretrained(before)
        config.lora_dropout = lora.lora_dropout
        return DpoModels(PeftModel.from_pretrained(base, before, is_trainable=True, config=config), reference)
    adapter = LoraConfig(  # changes nothing until it is trained
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules="all-linear" if lora.target_modules == ("all-linear",) else list(lora.target_modules),
        task_type="CAUSAL_LM",
    )
    return DpoModels(base, reference, adapter)


def _load_base(job: DpoJob, dtype: torch.dtype) -> Any:
    """The model that the adapter is put on, frozen, in the format of the computation or in 4 bits."""
    base, dropout = adapter_base(job), job.settings.dropout
    if job.settings.method != "qlora":
        return load_model(base, dropout, dtype)
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    device = {"": torch.cuda.current_device()}
    return load_model(base, dropout, dtype, quantization_config=four_bit, device_map=device)


# --- saving ---


def save_trained(trainer: PairTrainer | ExampleTrainer, job: AnyJob, folder: Path) -> None:
    """Write the trainer's model into ``folder`` as it is now. Every process has to call this; the first one writes."""
    weights = None
    if trainer.is_distributed_loading_by_transformers:
        weights = gather_weights(trainer.model, _saved_dtype(job), trainer.is_world_process_zero())
    elif is_sharded(trainer):
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(job, DpoJob) and job.settings.adapter is not None:
        from peft import PeftModel

        adapter = folder / ADAPTER
        model.save_pretrained(adapter, selected_adapters=["default"], state_dict=weights)
        (adapter / "README.md").unlink()
        # Without the path of its base: the lineage names it, relative to the model.
        _update_json(adapter / "adapter_config.json", {"base_model_name_or_path": None})
        base = load_model(adapter_base(job), 0.0)  # in float32
        model, weights = PeftModel.from_pretrained(base, adapter).merge_and_unload(), None
    save_model(model, job, folder, weights)


def save_model(model: Any, job: AnyJob, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write weights, configuration, generation settings, tokenizer and chat template of the trained model.

    What training changes for its own use (dropout, the cache, padding) is written as the start model has it; ``model``
    stays as it is. ``weights`` are all of them, where ``model`` has only a part.
    """
    start, dtype = AutoConfig.from_pretrained(job.start, trust_remote_code=False), _saved_dtype(job)
    converted: dict[tuple[int, torch.Size], Tensor] = {}  # each storage once: tied weights stay tied
    state = {
        name: converted.setdefault((tensor.data_ptr(), tensor.shape), tensor.to(dtype))
        for name, tensor in (weights or model.state_dict()).items()
    }
    own = {name: getattr(model.config, name) for name in ("use_cache", "pad_token_id", *dropout_names(start))}
    if hasattr(model.config, _SHARDS):  # saving would gather the weights once more, in all processes
        own[_SHARDS] = getattr(model.config, _SHARDS)
    try:
        for name in own:
            setattr(model.config, name, getattr(start, name, None))
        model.save_pretrained(folder, state_dict=state)
    finally:
        for name, value in own.items():
            setattr(model.config, name, value)
    # transformers has written the format of the model in memory.
    _update_json(folder / "config.json", {"dtype": str(dtype).removeprefix("torch.")})
    written = AutoTokenizer.from_pretrained(job.start, trust_remote_code=False).save_pretrained(folder)
    for name in ("generation_config.json", *(Path(path).name for path in written)):
        if (job.start / name).is_file():  # the same bytes, without what loading adds
            shutil.copyfile(job.start / name, folder / name)


def _saved_dtype(job: AnyJob) -> torch.dtype:
    formats = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    start = AutoConfig.from_pretrained(job.start, trust_remote_code=False).dtype or torch.float32
    return formats.get(job.settings.save_dtype, start)


def _update_json(path: Path, changes: Mapping[str, object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
