"""Greedy texts of the engine against plain `generate`, token for token, on four architectures with random weights.

    python bench/equality.py [--prompts N] [--tokens N] [--device DEVICE]

The prompts have 1 to 700 tokens; 3 in 5 begin as others do; each is asked for 1, 2, 3 or 7 samples, all at once, of the
engine that a recipe gives by default. Words are tokens, so texts that are equal have equal tokens. Both sides round, in
other orders, so a text may go another way where the two best logits are nearly the same. What counts as that:

* exact logits are those of one plain pass with the same weights in float64;
* rounding, of a model in a number format, is the most by which a logit of transformers' own two ways in that format,
  step by step with a cache (`generate`) and in one pass, is off the exact one, over all tokens of all texts;
* a text that differs is a near tie if, at its first difference, the exact logits of both sides' tokens lie within
  rounding of the best one. Anything else is an error and fails.

Also every token that the engine wrote, after a difference too, must lie within rounding of the exact best.
Prints a table, writes bench/results/equality.json, and ends with status 1 where there is an error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from metareward.engines.base import Engine
from metareward.engines.local.engine import LocalEngine
from metareward.engines.local.workers import LocalSettings, open_local
from metareward.storage.run_log import environment
from metareward.types import Completion, Message, Sampling

WORDS, LONGEST = 1000, 700
# One word in a hundred ends a text, so that some end early.
STOPS = list(range(0, WORDS, 100))
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    # Wide enough for texts that don't repeat a word for ever; much wider, and bfloat16 is mostly noise.
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
# Windows far shorter than most prompts.
GEMMA = {**SIZES, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 48}
KINDS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=16),
    "gemma2": lambda: Gemma2Config(**GEMMA),
    "gemma3": lambda: Gemma3TextConfig(
        **GEMMA, layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    ),
}
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt's tokens, and how many samples are asked for."""

    ids: tuple[int, ...]
    n: int


@dataclass(frozen=True, slots=True)
class Compared:
    """One prompt's text. ``apart``: how far below the best the tokens of both sides are where they differ first.

    ``errors_T``: how far transformers' logits are off at each token of its text; ``gaps_T``: how far the second best is
    below the best there; ``below_T``: how far each token that the engine wrote is below the best.
    """

    apart: tuple[float, float] | None
    errors_T: list[float]
    gaps_T: list[float]
    below_T: list[float]


@dataclass(frozen=True, slots=True)
class Outcome:
    """All texts of one model in one number format. Logits' distances are in the logits' own unit."""

    texts: int
    equal: int
    near_ties: int
    errors: int
    largest_apart: float
    tokens: int
    tokens_not_best: int
    tokens_in_error: int
    ended_early: int
    different_words: int
    rounding: float
    median_gap: float
    largest_below_best: float

    @property
    def holds(self) -> bool:
        """No text and no token differs by more than rounding."""
        return not self.errors and not self.tokens_in_error


def save_model(folder: Path, kind: str) -> Path:
    """A model with random weights and a tokenizer of one token to a word; a conversation is its first turn's words."""
    torch.manual_seed(7)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, chat_template="{{ messages[0].content }}")
    model = AutoModelForCausalLM.from_config(KINDS[kind]())
    model.generation_config = GenerationConfig(eos_token_id=STOPS, pad_token_id=STOPS[0], do_sample=False)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def draw_asks(count: int, seed: int = 0) -> list[Ask]:
    """Prompts of 1 to 700 tokens, lengths spread by their logarithm; three in five come in groups that begin alike."""
    rng = random.Random(seed)
    asks = [Ask((1,), 1), Ask(_words(rng, LONGEST), 1)]
    while len(asks) < count:
        if rng.random() < 1 / 4:
            beginning = _words(rng, rng.randint(100, 500))
            asks += [Ask(beginning + _words(rng, rng.randint(1, 100)), rng.choice((1, 1, 3))) for _ in range(5)]
        else:
            asks.append(Ask(_words(rng, round(LONGEST ** rng.random())), rng.choice((1, 2, 3, 7))))
    return asks[:count]


def _words(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.choices(range(WORDS), k=count))


def ask_engine(
    folder: Path, dtype: str, device: str, asks: Sequence[Ask], most: int, in_process: bool
) -> list[Sequence[Completion]]:
    """All completions, all asked for at once, of the engine that a recipe gives by default, or without workers."""

    async def asked() -> list[Sequence[Completion]]:
        settings = LocalSettings.model_validate({"dtype": dtype, "device": device})
        engine: Engine
        if in_process:
            engine = LocalEngine.open(
                folder,
                device=device,
                dtype=dtype,
                max_num_seqs=settings.max_num_seqs,
                deterministic=settings.deterministic,
            )
        else:
            engine = await open_local(folder, settings)
        sampling = Sampling(0.0, 1.0, most)
        told = (engine.complete((Message("user", _text(ask.ids)),), sampling, ask.n) for ask in asks)
        written = await asyncio.gather(*told)
        await engine.aclose()
        return written

    return asyncio.run(asked())


def _text(ids: Sequence[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def _ids(completion: Completion, most: int) -> list[int]:
    """The tokens of a text. A text that ended early lacks the token that ended it."""
    ids = [int(word[1:]) for word in completion.text.split()]
    expected = most if completion.finish == "length" else completion.tokens
    assert len(ids) == completion.tokens == expected, completion
    return ids


@dataclass(frozen=True, slots=True)
class Plain:
    """The same weights in transformers, in a number format and in float64."""

    model: Any
    exact: Any

    @classmethod
    def load(cls, folder: Path, dtype: str, device: str) -> Plain:
        """Both, on ``device``."""
        model, exact = (AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)) for _ in range(2))
        return cls(model.to(device).eval(), exact.double().to(device).eval())

    @torch.inference_mode()
    def compare(self, ask: Ask, many: Sequence[Completion], most: int) -> Compared:
        """The engine's samples of one prompt, which must all be the same text, against `generate`."""
        assert len(many) == ask.n and len(set(many)) == 1, "greedy samples of one request differ"
        plain, stepwise_TV = self._generate(ask, most)
        exact_TV = _one_pass(self.exact, ask.ids, plain)[:-1]
        ways = (stepwise_TV, _one_pass(self.model, ask.ids, plain)[:-1])
        ours, best_T2 = _ids(many[0], most), exact_TV.topk(2).values
        # What ended our text isn't told, so what ended the other one is left out as well.
        ended = plain[:-1] if plain[-1] in STOPS else plain
        place = _first_difference(ended, ours)
        written_TV = _one_pass(self.exact, ask.ids, ours)[: len(ours) + (len(ours) < most)]
        return Compared(
            None if place is None else (_below(exact_TV[place], ours, place), _below(exact_TV[place], ended, place)),
            torch.stack([(way - exact_TV).abs().amax(dim=-1) for way in ways]).amax(dim=0).tolist(),
            (best_T2[:, 0] - best_T2[:, 1]).tolist(),
            [_below(row_V, ours, step) for step, row_V in enumerate(written_TV)],
        )

    def _generate(self, ask: Ask, most: int) -> tuple[list[int], Tensor]:
        """Its tokens, with the one that ended the text, and the logits that each was chosen from."""
        prompt = torch.tensor([ask.ids], device=self.model.device)
        told = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=most,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return told.sequences[0, prompt.shape[1] :].tolist(), torch.cat(told.logits).double()


def _one_pass(model: Any, prompt: Sequence[int], ids: Sequence[int]) -> Tensor:
    """The logits from which each of these tokens, and one more, are chosen: float64 (tokens + 1, words)."""
    told = model(input_ids=torch.tensor([[*prompt, *ids]], device=model.device), use_cache=False)
    logits: Tensor = told.logits[0, len(prompt) - 1 :].double()
    return logits


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    if one == other:
        return None
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _below(logits_V: Tensor, ids: Sequence[int], place: int) -> float:
    """How far the token at this place is below the best; of a text that ended here, the best token that ends one."""
    chosen = logits_V[ids[place]] if place < len(ids) else logits_V[STOPS].max()
    return float(logits_V.max() - chosen)


def check(
    folder: Path, dtype: str, asks: Sequence[Ask], most: int, device: str = "cpu", in_process: bool = False
) -> Outcome:
    """Both sides' texts of all prompts, and what they come to."""
    told, plain = ask_engine(folder, dtype, device, asks, most, in_process), Plain.load(folder, dtype, device)
    compared = [plain.compare(ask, many, most) for ask, many in zip(asks, told, strict=True)]
    rounding = max(error for each in compared for error in each.errors_T)
    differ = [each.apart for each in compared if each.apart is not None]
    errors = sum(max(apart) > rounding for apart in differ)
    below = [value for each in compared for value in each.below_T]
    return Outcome(
        texts=len(compared),
        equal=len(compared) - len(differ),
        near_ties=len(differ) - errors,
        errors=errors,
        largest_apart=max((max(apart) for apart in differ), default=0.0),
        tokens=len(below),
        tokens_not_best=sum(value > 0 for value in below),
        tokens_in_error=sum(value > rounding for value in below),
        ended_early=sum(many[0].finish == "stop" for many in told),
        different_words=len({word for many in told for word in many[0].text.split()}),
        rounding=rounding,
        median_gap=median(gap for each in compared for gap in each.gaps_T),
        largest_below_best=max(below),
    )


def run(
    kinds: Sequence[str], prompts: int, most: int, device: str = "cpu", in_process: bool = False
) -> dict[str, Outcome]:
    """The outcome of each of these kinds of model in both number formats, by name."""
    asks, outcomes = draw_asks(prompts), {}
    for kind in kinds:
        with tempfile.TemporaryDirectory() as made:
            folder = save_model(Path(made), kind)
            for dtype in DTYPES:
                outcomes[f"{kind}, {dtype}"] = check(folder, dtype, asks, most, device, in_process)
    return outcomes


def show(outcomes: dict[str, Outcome]) -> None:
    """The table."""
    table = Table("", "equal texts", "near ties", "errors", "tokens", "not the best", "rounding", "median gap")
    for name, seen in outcomes.items():
        counts = (f"{seen.equal} of {seen.texts}", seen.near_ties, seen.errors, seen.tokens, seen.tokens_not_best)
        table.add_row(name, *map(str, counts), f"{seen.rounding:.2g}", f"{seen.median_gap:.2g}")
    Console().print(table)


def main() -> None:
    """Run all, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=24, help="most new tokens of a text")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    outcomes = run(list(KINDS), asked.prompts, asked.tokens, asked.device)
    show(outcomes)
    told = {name: asdict(seen) for name, seen in outcomes.items()}
    path = Path(__file__).parent / "results" / "equality.json"
    path.write_text(json.dumps({"outcomes": told, "device": asked.device, **environment()}, indent=2) + "\n")
    sys.exit(not all(seen.holds for seen in outcomes.values()))


if __name__ == "__main__":
    main()
