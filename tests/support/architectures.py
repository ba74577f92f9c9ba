"""Tiny random models of several architectures, and a batch as TRL's collator makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
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
_MIXED = ["sliding_attention", "full_attention"]
SHARING: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_SIZE),
    "qwen3": Qwen3Config(**_SIZE, head_dim=8),
    "gemma3": Gemma3TextConfig(**_SIZE, head_dim=8, sliding_window=WINDOW, layer_types=_MIXED, query_pre_attn_scalar=8),
    "mistral": MistralConfig(**_SIZE, head_dim=8, sliding_window=WINDOW),
    "qwen2": Qwen2Config(**_SIZE, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "mixtral": MixtralConfig(**_SIZE, num_local_experts=4, router_aux_loss_coef=0.0, sliding_window=None),
}
APART: dict[str, tuple[PretrainedConfig, str]] = {
    "falcon": (
        FalconConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            alibi=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
            initializer_range=0.2,
        ),
        "its positions are ALiBi's",
    ),
    "gemma2": (Gemma2Config(**_SIZE, head_dim=8), "its attention is eager, not sdpa"),
    "gpt2": (
        GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=1),
        "its positions are not rotary",
    ),
    "mixtral": (
        MixtralConfig(**_SIZE, num_local_experts=4, router_aux_loss_coef=0.01),
        "its router's auxiliary loss is over the unpacked rows (router_aux_loss_coef)",
    ),
}


def build(config: PretrainedConfig, seed: int = 0) -> Any:
    """A random model with TRL's fused head."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
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
