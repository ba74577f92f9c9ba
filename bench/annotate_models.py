"""What the annotation benchmark asks and whom: Llamas of random weights, a tokenizer, texts of a wanted length.

Nothing is downloaded. No token ends a completion, so that every contestant writes exactly as many as it is asked for.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

VOCABULARY = 4096
CONTEXT = 2048
TEMPLATE = (
    "<s>{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Size:
    """A Llama's dimensions. One key head to a query head, embeddings tied to the output."""

    layers: int
    width: int
    hidden: int
    heads: int

    def flops(self, positions: int, seen: float, logits: int) -> float:
        """Of the matrix products for this many tokens that look at ``seen`` each, with logits for some."""
        layer = 4 * self.width**2 + 3 * self.width * self.hidden + 2 * seen * self.width
        return 2.0 * (positions * self.layers * layer + logits * VOCABULARY * self.width)


SIZES = {"t5": Size(4, 256, 704, 4), "t30": Size(8, 512, 1408, 8)}


def make(folder: Path, name: str) -> Path:
    """Write the model of this name, with random weights, and the tokenizer."""
    size, tokenizer = SIZES[name], make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.width,
        intermediate_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    model: Any = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of the packaged rubrics and of invented words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "<pad>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", chat_template=TEMPLATE
    )


def _corpus() -> Iterator[str]:
    for file in resources.files("metareward").joinpath("method", "prompts").iterdir():
        yield from [file.read_text(encoding="utf-8")] * 200
    words, chance = lexicon(), random.Random(1)
    for _ in range(4000):
        yield " ".join(chance.choice(words) for _ in range(50))


def lexicon() -> list[str]:
    """Invented words of two to four syllables."""
    chance = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "el", "is")]
    return sorted({"".join(chance.choices(syllables, k=chance.choice((2, 2, 3, 4)))) for _ in range(3000)})


class Writer:
    """Texts of about so many tokens, never the same one twice."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self._tokenizer = tokenizer
        self._words = lexicon()
        self._chance = random.Random(seed)

    def count(self, text: str) -> int:
        """Its tokens."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def text(self, tokens: int) -> str:
        """Words that make ``tokens`` tokens, give or take the last word."""
        words = " ".join(self._chance.choice(self._words) for _ in range(tokens))
        ids = self._tokenizer.encode(words, add_special_tokens=False)[:tokens]
        return str(self._tokenizer.decode(ids))
