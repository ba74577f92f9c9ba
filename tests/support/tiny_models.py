"""Tiny models with random weights and small tokenizers, made in a second; nothing is downloaded."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from metareward.method.template import load_template
from metareward.pocket.world import MODEL

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


_LLAMA_TEMPLATE = (
    "<s>{% for message in messages %}[{{ message.role }}] {{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
_SCORE_LINES = tuple(f"\nScore: {score}\n" for score in (0, 1, 2, 3, 4, 5))
_VERDICT_LINES = tuple(f"\nWinner: Judgment {letter}\n" for letter in "AB")
# Approximate rates of these tokens at each position.
_TOKEN_RATES = {"</s>": 0.01} | dict.fromkeys(_SCORE_LINES, 0.02) | dict.fromkeys(_VERDICT_LINES, 0.04)
_HIDDEN = 40
_CONSTANT = 4.0


def tiny_llama(folder: Path, verdicts: bool, seed: int = 5) -> Path:
    """A Hugging Face folder of a small Llama with a vocabulary of its own.

    With ``verdicts`` it writes a valid score or winner now and then, for any rubric. One component of its hidden state
    is constant, so that the head's weights on it are a bias of single tokens: the end of the text, and whole verdict
    lines, which are tokens of its vocabulary. Another one is zero but after a verdict line, which ends the text.
    """
    torch.manual_seed(seed)
    tokenizer = _rubric_tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=_HIDDEN,
            intermediate_size=56,
            num_hidden_layers=2,
            num_attention_heads=5,
            num_key_value_heads=5,
            max_position_embeddings=2048,
            initializer_range=0.2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    if verdicts:
        _add_token_bias(model, {tokenizer.convert_tokens_to_ids(text): share for text, share in _TOKEN_RATES.items()})
        lines = [tokenizer.convert_tokens_to_ids(text) for text in (*_SCORE_LINES, *_VERDICT_LINES)]
        _end_after(model, lines, tokenizer.eos_token_id)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def _rubric_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the packaged rubrics, so that they have few tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([load_template(name).text for name in ("judge", "metajudge")], trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (*_SCORE_LINES, *_VERDICT_LINES)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=_LLAMA_TEMPLATE
    )


@torch.no_grad()
def _add_token_bias(model: LlamaForCausalLM, shares: Mapping[int, float]) -> None:
    """Make the first component of the hidden state constant; the head uses it as a bias of tokens."""
    model.model.embed_tokens.weight[:, 0] = _CONSTANT
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0
        layer.mlp.down_proj.weight[0] = 0
    states = model.model(torch.arange(2, 66).unsqueeze(0)).last_hidden_state[0]
    head = model.lm_head.weight
    head[:, 0] = 0
    others = float((states @ head.T).exp().sum(dim=1).mean())
    rest = 1 - sum(shares.values())
    for token, share in shares.items():
        head[token] = 0
        head[token, 0] = math.log(others * share / rest) / float(states[:, 0].mean())


@torch.no_grad()
def _end_after(model: LlamaForCausalLM, lines: list[int], end: int) -> None:
    """Make the second component of the hidden state zero but at the tokens ``lines``, and write ``end`` after them."""
    embeddings, head = model.model.embed_tokens.weight, model.lm_head.weight
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[1] = 0
        layer.mlp.down_proj.weight[1] = 0
    embeddings[:, 1] = 0
    embeddings[lines, 1] = _CONSTANT
    head[:, 1] = 0
    head[end, 1] = _CONSTANT


SMOLLM2_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_END_SHARE = 0.02  # of the tokens at each position before temperature: an answer has about 16


def tiny_smollm2(folder: Path, texts: Iterable[str], seed: int = 5) -> Path:
    """A Hugging Face folder like SmolLM2-135M-Instruct's, but small and random.

    The same architecture with grouped heads and tied embeddings, the same class of tokenizer (byte-level BPE, each
    digit a token, ``<|im_end|>`` ends a turn) trained on ``texts``, and the same chat template.
    """
    torch.manual_seed(seed)
    bpe = Tokenizer(models.BPE())
    digits, pieces = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, pieces])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=SMOLLM2_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    end = SMOLLM2_SPECIAL[2]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=SMOLLM2_SPECIAL[1],
        eos_token=end,
        pad_token=end,
        unk_token=SMOLLM2_SPECIAL[0],
        chat_template=SMOLLM2_TEMPLATE,
    )
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            **sizes,
            num_attention_heads=3,
            num_key_value_heads=1,
            tie_word_embeddings=True,
            max_position_embeddings=2048,
            initializer_range=0.2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )
    _end_now_and_then(model, tokenizer.eos_token_id)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def _end_now_and_then(model: LlamaForCausalLM, end: int) -> None:
    """Make the first component of the hidden state constant, and the tied head use it as the bias of ``end``."""
    embeddings = model.model.embed_tokens.weight
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0
        layer.mlp.down_proj.weight[0] = 0
    embeddings[:, 0], embeddings[end] = 1.0, 0.0
    states = model.model(torch.arange(3, 200).unsqueeze(0)).last_hidden_state[0]
    others = float((states @ embeddings[3:].T).exp().sum(dim=1).log().mean())
    embeddings[end, 0] = (others + math.log(_END_SHARE / (1 - _END_SHARE))) / float(states[:, 0].mean())


def shifted_pocket(folder: Path, shift: float = 0.0) -> Path:
    """The pocket model with the weights of its last norm shifted."""
    shutil.copytree(MODEL, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += shift
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder
