"""A small Llama with a size and a vocabulary of its own, made in a second: random weights, with or without a bent.

With the bent it writes a readable verdict now and then, under any rubric, as a model does that was taught the form and
nothing else. One part of its hidden state is the same constant everywhere, so that the head's weights on it are a bias
for single tokens: the end of the text, and whole verdict lines, which its vocabulary has as tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from metareward.method.template import load_template

_TEMPLATE = (
    "<s>{% for message in messages %}[{{ message.role }}] {{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
_SCORES = tuple(f"\nScore: {score}\n" for score in (0, 1, 2, 3, 4, 5))
_VERDICTS = tuple(f"\nWinner: Judgment {letter}\n" for letter in "AB")
# How often each stands at a place of a text, about.
_BENT = {"</s>": 0.1} | dict.fromkeys(_SCORES, 0.03) | dict.fromkeys(_VERDICTS, 0.07)
_HIDDEN = 40
_CONSTANT = 4.0


def tiny_llama(folder: Path, bent: bool, seed: int = 5) -> Path:
    """Write the model's Hugging Face folder."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
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
    if bent:
        _bend(model, {tokenizer.convert_tokens_to_ids(text): share for text, share in _BENT.items()})
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE that knows the packaged rubrics' words, so that they take few tokens."""
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
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (*_SCORES, *_VERDICTS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=_TEMPLATE
    )


@torch.no_grad()
def _bend(model: LlamaForCausalLM, shares: Mapping[int, float]) -> None:
    """Keep the first part of the hidden state constant, and have the head lean on it."""
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
