"""A model folder becomes a model to train, and the trained model becomes a folder of the same kind.

Trained in float32 whatever the folder holds (at learning rates such as 5e-6 most updates are too small for bfloat16
weights to notice), stored again as the start model was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from metareward.errors import UserError
from metareward.training.job import DpoJob

_SHOWN = 3  # names in a message


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises `UserError` when it has no chat template."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template is None:
        raise UserError(f"{folder}: the tokenizer has no chat template; fix: add chat_template.jinja")
    return tokenizer


def load_model(folder: Path, dropout: float, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """The model of a folder in ``dtype``, in evaluation mode, with ``dropout`` wherever its kind has dropout.

    Raises `UserError` when weights are missing in the folder, or when dropout is asked of a kind that has none.
    """
    config = AutoConfig.from_pretrained(folder)
    dials = dropout_dials(config)
    if dropout and not dials:
        raise UserError(f"{folder}: a {config.model_type} model has no dropout; fix: set dropout to 0")
    for name in dials:
        setattr(config, name, dropout)
    model, told = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
    )
    _refuse_missing(folder, sorted(told["missing_keys"]))
    return model


def save_model(model: Any, job: DpoJob, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write weights, configuration, generation settings, tokenizer and chat template of the trained model.

    What training changes for its own use (dropout, the cache, padding) is written as the start model has it; ``model``
    stays as it is. ``weights`` are all of them, where ``model`` has only a part.
    """
    start = AutoConfig.from_pretrained(job.start)
    stored = _stored_dtype(start, job)
    with _as_written(model.config, start):
        model.save_pretrained(folder, state_dict=_cast(weights or model.state_dict(), stored))
    _note_dtype(folder, stored)
    written = AutoTokenizer.from_pretrained(job.start).save_pretrained(folder)
    for name in ("generation_config.json", *(Path(path).name for path in written)):
        if (job.start / name).is_file():  # byte for byte as it was, without what loading noted in it
            shutil.copyfile(job.start / name, folder / name)


@contextmanager
def _as_written(config: Any, start: Any) -> Iterator[None]:
    """What training has changed in ``config``, put back for the time being."""
    changed = {name: getattr(config, name) for name in ("use_cache", "pad_token_id", *dropout_dials(start))}
    for name in changed:
        setattr(config, name, getattr(start, name))
    try:
        yield
    finally:
        for name, value in changed.items():
            setattr(config, name, value)


def _cast(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """``weights`` in ``dtype``; what is one tensor under two names stays one."""
    done: dict[tuple[int, torch.Size], Tensor] = {}
    return {name: done.setdefault((one.data_ptr(), one.shape), one.to(dtype)) for name, one in weights.items()}


def _note_dtype(folder: Path, dtype: torch.dtype) -> None:
    """transformers notes the format of the model in memory, not that of the weights it has been given."""
    config = folder / "config.json"
    told = json.loads(config.read_text(encoding="utf-8")) | {"dtype": str(dtype).removeprefix("torch.")}
    config.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def dropout_dials(config: Any) -> tuple[str, ...]:
    """The names of a configuration's dropout rates."""
    return tuple(
        name
        for name, value in sorted(config.to_dict().items())
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float)
    )


def _stored_dtype(start: Any, job: DpoJob) -> torch.dtype:
    chosen = {"float32": torch.float32, "bfloat16": torch.bfloat16, "start": start.dtype}[job.save_dtype]
    return chosen or torch.float32


def _refuse_missing(folder: Path, missing: list[str]) -> None:
    if missing:
        names = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        raise UserError(f"{folder}: {len(missing)} weights are missing ({names}); fix: save the whole model again")
