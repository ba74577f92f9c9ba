"""A model folder on disk becomes a model on a device, or one line that says what is wrong with the folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from metareward.engines.attention_door import AttentionDoor
from metareward.engines.model_folder import require_model_folder
from metareward.engines.packed import pack
from metareward.engines.precision import format_for
from metareward.errors import UserError
from metareward.types import Messages

# Their rotary angles change for the whole batch once a position passes the length they were trained with.
_ROTARY_BY_LENGTH = ("dynamic", "longrope")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A decoder-only model ready to run, and what is needed to talk to it. ``context`` is its limit in tokens."""

    folder: Path
    model: Any
    tokenizer: Any
    attention: AttentionDoor
    device: torch.device
    dtype: torch.dtype
    stop_ids: frozenset[int]
    context: int

    def encode(self, messages: Messages) -> list[int]:
        """Token ids of the conversation; see `encode`."""
        return encode(self.tokenizer, messages)

    def decode(self, ids: list[int]) -> str:
        """The text of new tokens, special tokens left out and nothing else changed."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


def load(folder: Path, device: str, dtype: str) -> Checkpoint:
    """Load a Hugging Face folder: safetensors weights, a tokenizer with a chat template, no code of its own.

    Raises `UserError` naming the folder, what is missing and the fix.
    """
    require_model_folder(folder)
    place = choose_device(device)
    precision = choose_dtype(dtype, place)
    tokenizer = load_tokenizer(folder)
    attention = AttentionDoor()
    config = _config(folder)
    model = _model(folder, config, attention, precision).to(place).eval().requires_grad_(False)
    if place.type == "cpu":
        pack(model)
    stop_ids = _stop_ids(folder, tokenizer, config)
    return Checkpoint(folder, model, tokenizer, attention, place, precision, stop_ids, _context(folder, config))


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer. Raises `UserError` if it can't be loaded or has no chat template."""
    tokenizer = _load(AutoTokenizer, folder, "the tokenizer", trust_remote_code=False)
    if tokenizer.chat_template is None:
        raise UserError(f"{folder}: the tokenizer has no chat template; add chat_template.jinja to the folder")
    return tokenizer


def encode(tokenizer: Any, messages: Messages) -> list[int]:
    """Token ids of the conversation, up to where the assistant begins to speak.

    Raises `jinja2.TemplateError` if the template refuses it, `UnicodeEncodeError` if it isn't valid text.
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    text.encode()
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def choose_device(device: str) -> torch.device:
    """The device meant by ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. Raises `UserError` if it isn't there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"engine.device {device!r} can't be used here ({reason}); take auto or cpu") from error


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype meant by ``auto``, ``float32`` or ``bfloat16``: bfloat16 where the device multiplies it quickly."""
    if dtype == "auto":
        dtype = format_for(device.type)
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype not in known:
        raise UserError(f"engine.dtype {dtype!r} is not known; take auto, float32 or bfloat16")
    return known[dtype]


def _config(folder: Path) -> Any:
    config = _load(AutoConfig, folder, "config.json", trust_remote_code=False)
    if config.is_encoder_decoder:
        raise UserError(f"{folder}: {config.model_type} is an encoder-decoder; the engine runs decoder-only models")
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if odd := sorted(kinds - {"full_attention", "sliding_attention"}):
        raise UserError(
            f"{folder}: {config.model_type} has {odd[0]} layers; the engine runs full and sliding attention"
        )
    return config


def _model(folder: Path, config: Any, attention: AttentionDoor, dtype: torch.dtype) -> Any:
    try:
        model, report = _load(
            AutoModelForCausalLM,
            folder,
            "the weights",
            config=config,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation=attention.name,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except KeyError as error:
        kind = config.model_type
        raise UserError(
            f"{folder}: {kind} models bypass transformers' attention interface; serve it elsewhere"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{folder}: the weights lack {missing[0]} ({len(missing)} missing in all); save the model again"
        )
    return model


def _load(loader: Any, folder: Path, what: str, **options: Any) -> Any:
    try:
        return loader.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}: can't load {what}: {reason}") from error


def _stop_ids(folder: Path, tokenizer: Any, config: Any) -> frozenset[int]:
    found = [tokenizer.eos_token_id, config.get_text_config().eos_token_id]
    if (folder / "generation_config.json").is_file():
        found = [_load(GenerationConfig, folder, "generation_config.json").eos_token_id, tokenizer.eos_token_id]
    ids: set[int] = set()
    for entry in found:
        ids.update([] if entry is None else [entry] if isinstance(entry, int) else entry)
    return frozenset(ids)


def _context(folder: Path, config: Any) -> int:
    text = config.get_text_config().to_dict()
    context = text.get("max_position_embeddings")
    if not isinstance(context, int):
        raise UserError(f"{folder}: config.json has no max_position_embeddings, the model's context in tokens; add it")
    rotary = text.get("rope_parameters") or {}
    if rotary.get("rope_type") not in _ROTARY_BY_LENGTH:
        return context
    return min(context, int(rotary.get("original_max_position_embeddings") or context))
