"""Tiny random models of several architectures, and a batch as TRL's collator makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from trl.trainer.utils import add_fused_lm_head

VOCABULARY = 64
WINDOW = 6  # shorter than the rows of `BATCH`
FIGURES = ("log_probs", "entropy", "mean_logits", "is_top1")
_SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "initializer_range": 0.2,
}
_MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
# Of every model type whose rows are packed a configuration that uses what the type has: sliding windows, experts, ...
PACKED: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "cohere": {},
    "cohere2": _MIXED,
    "ernie4_5": {"head_dim": 8},
    "exaone4": _MIXED,
    "gemma": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, **_MIXED},
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "gpt_neox": {},
    "granite": {},
    "helium": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "llama": {},
    "ministral": {"head_dim": 8, **_MIXED},
    "ministral3": {"head_dim": 8},
    "mistral": {"head_dim": 8, "sliding_window": WINDOW},
    "mixtral": {"num_local_experts": 4, "router_aux_loss_coef": 0.0, "sliding_window": None},
    "nanochat": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": _MIXED,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.0},
    "phi": {},
    "phi3": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 16, "router_aux_loss_coef": 0.0},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {**_EXPERTS, "head_dim": 8, "router_aux_loss_coef": 0.0},
    "seed_oss": {"head_dim": 8},
    "smollm3": {"no_rope_layers": [1, 0]},
    "starcoder2": {"sliding_window": WINDOW},
}
# Other ways in which a packed type can be configured.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama with dynamic rope": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "llama with tied embeddings": ("llama", {"tie_word_embeddings": True}),
    "mistral without window": ("mistral", {"sliding_window": None}),
}
_FALCON: dict[str, Any] = {"num_kv_heads": 2, "new_decoder_architecture": True}
# Types that are not in the list: packed rows differ, or positions can't be told from position_ids.
UNPACKED: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon": ("falcon", _FALCON),
    "falcon with alibi": ("falcon", {**_FALCON, "alibi": True}),
    "stablelm": ("stablelm", {}),
    "nemotron": ("nemotron", {}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
}


def config_of(model_type: str, changes: dict[str, Any]) -> PretrainedConfig:
    return AutoConfig.for_model(model_type, **(_SIZE | changes))


def build(model_type: str, changes: dict[str, Any] | None = None, seed: int = 0) -> Any:
    """A random model with TRL's fused head; without ``changes`` as `PACKED` has it."""
    torch.manual_seed(seed)
    chosen = PACKED[model_type] if changes is None else changes
    model = AutoModelForCausalLM.from_config(config_of(model_type, chosen), dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1 and float(weight.std()) < _SIZE["initializer_range"] / 4:  # initialized in its own way
                weight.normal_(0.0, _SIZE["initializer_range"])
    add_fused_lm_head(model, outputs=FIGURES)
    return model


@dataclass(frozen=True)
class Batch:
    """Chosen above rejected, padded on the right; labels only on completions."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


def batch(prompts: list[list[int]], chosen: list[list[int]], rejected: list[list[int]]) -> Batch:
    rows = [prompt + side for sides in (chosen, rejected) for prompt, side in zip(prompts, sides, strict=True)]
    labels = [
        [-100] * len(prompt) + side for sides in (chosen, rejected) for prompt, side in zip(prompts, sides, strict=True)
    ]
    return Batch(_padded(rows, 0), _padded([[1] * len(row) for row in rows], 0), _padded(labels, -100))


def _padded(rows: list[list[int]], filling: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, filling)


def draw(generator: torch.Generator, count: int) -> list[int]:
    return torch.randint(5, VOCABULARY, (count,), generator=generator).tolist()


def some_batch(seed: int = 0) -> Batch:
    """Three pairs; the prompts of two begin alike, and so do the two sides of one."""
    generator = torch.Generator().manual_seed(seed)
    rubric, opening = draw(generator, 5), draw(generator, 2)
    prompts = [rubric + draw(generator, 9), draw(generator, 4), rubric + draw(generator, 12)]
    chosen = [opening + draw(generator, 5), draw(generator, 3), draw(generator, 8)]
    rejected = [opening + draw(generator, 1), draw(generator, 6), draw(generator, 5)]
    return batch(prompts, chosen, rejected)
