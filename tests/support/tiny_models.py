"""Tiny models with random weights and a small tokenizer; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

TEXT = "which answer names four red fruits and why would the judge give it three points of five"
WORDS = TEXT.split()
TEMPLATE = (
    "<s>{% for message in messages %}<|{{ message.role }}|>{{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SMALL = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
CONFIGS: dict[str, Callable[..., Any]] = {
    "llama": lambda **sizes: LlamaConfig(**SMALL, **sizes, num_hidden_layers=2),
    "qwen": lambda **sizes: Qwen3Config(**SMALL, **sizes, num_hidden_layers=2, head_dim=16, tie_word_embeddings=True),
    # Windows shorter than the prompts: alternating layers look back 8 tokens only.
    "gemma2": lambda **sizes: Gemma2Config(
        **SMALL, **sizes, num_hidden_layers=2, head_dim=16, sliding_window=8, query_pre_attn_scalar=16
    ),
    "gemma3": lambda **sizes: Gemma3TextConfig(
        **SMALL,
        **sizes,
        num_hidden_layers=3,
        head_dim=16,
        sliding_window=8,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=TEMPLATE
    )


def save_model(folder: Path, kind: str) -> Path:
    torch.manual_seed(7)
    tokenizer = make_tokenizer()
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](vocab_size=len(tokenizer)))
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
