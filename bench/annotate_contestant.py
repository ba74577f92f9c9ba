"""A contestant of the annotation benchmark: a process that loads a model once and then does rounds of work on request.

Run as ``python bench/annotate_contestant.py NAME FOLDER DTYPE`` in the environment that has what NAME needs; it imports
nothing of ours unless NAME is ours. A line on stdin is a round: stages of texts, each text to be continued ``n`` times
by exactly ``limit`` tokens, and "warm" where the round only makes things ready. The answer is a line: seconds, tokens.
Every contestant is given texts and hands back texts: templates, tokenising and detokenising count.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

TOP_P = 0.95
DEVICE = os.environ.get("BENCH_DEVICE", "cpu")  # bench/gpu.py sets it


@dataclass(frozen=True, slots=True)
class Stage:
    """Texts to be continued, all of which are known when the stage before has ended."""

    texts: tuple[str, ...]
    n: int
    limit: int


@dataclass(frozen=True, slots=True)
class Round:
    """Units of work, each a sequence of stages. ``max_num_seqs``: of our engine."""

    units: tuple[tuple[Stage, ...], ...]
    max_num_seqs: int
    seed: int
    warm: bool

    @classmethod
    def read(cls, line: str) -> Round:
        """From the line the parent sends."""
        asked = json.loads(line)
        units = tuple(tuple(Stage(tuple(texts), n, limit) for texts, n, limit in unit) for unit in asked["units"])
        return cls(units, asked["max_num_seqs"], asked["seed"], asked["warm"])

    def merged(self) -> list[Stage]:
        """For those who work off one batch after the other: the same stage of all units together."""
        together = zip(*self.units, strict=True)
        return [Stage(tuple(text for each in all for text in each.texts), all[0].n, all[0].limit) for all in together]


Contestant = Callable[[Round], int]


def ours(folder: str, dtype: str, *, deterministic: bool) -> Contestant:
    """Our engine in this process; all units are under way at once."""
    from pathlib import Path

    from metareward.engines.local.engine import LocalEngine
    from metareward.types import Message, Sampling

    engines: dict[int, LocalEngine] = {}

    async def unit(engine: LocalEngine, stages: Sequence[Stage], seed: int) -> int:
        tokens = 0
        for stage in stages:
            asked = (
                engine.complete((Message("user", text),), Sampling(1.0, TOP_P, stage.limit, seed + i), stage.n)
                for i, text in enumerate(stage.texts)
            )
            tokens += sum(one.tokens for many in await asyncio.gather(*asked) for one in many)
        return tokens

    async def all_units(engine: LocalEngine, round: Round) -> int:
        return sum(await asyncio.gather(*(unit(engine, stages, round.seed) for stages in round.units)))

    def work(round: Round) -> int:
        if round.max_num_seqs not in engines:
            for engine in engines.values():
                asyncio.run(engine.aclose())
            engines.clear()
            engines[round.max_num_seqs] = LocalEngine.open(
                Path(folder), device=DEVICE, dtype=dtype, max_num_seqs=round.max_num_seqs, deterministic=deterministic
            )
        return asyncio.run(all_units(engines[round.max_num_seqs], round))

    return work


class Generate:
    """Plain `generate`, with the number of prompts at a time that was fastest in the warm-up."""

    def __init__(self, folder: str, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval().to(DEVICE)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._best: dict[tuple[int, int], int] = {}

    def __call__(self, round: Round) -> int:
        self._torch.manual_seed(round.seed)
        if round.warm:
            for stage in round.merged():
                self._best[stage.n, stage.limit] = self._fastest(stage)
            return 0
        return sum(self._stage(stage, self._best[stage.n, stage.limit]) for stage in round.merged())

    def _fastest(self, stage: Stage) -> int:
        """Of 1, 2, 4, 8 and 16 prompts at a time the one that continues a prompt soonest, with a few tokens tried."""
        rates: dict[float, int] = {}
        for size in (1, 2, 4, 8, 16):
            few = Stage(stage.texts[:size], stage.n, min(16, stage.limit))
            began = time.perf_counter()
            self._stage(few, size)
            rates[len(few.texts) / (time.perf_counter() - began)] = size
        return rates[max(rates)]

    def _stage(self, stage: Stage, size: int) -> int:
        return sum(self._batch(stage, start, size) for start in range(0, len(stage.texts), size))

    def _batch(self, stage: Stage, start: int, size: int) -> int:
        texts = rendered(self._tokenizer, stage.texts[start : start + size])
        asked = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(DEVICE)
        with self._torch.inference_mode():
            drawn = self._model.generate(
                **asked,
                max_new_tokens=stage.limit,
                do_sample=True,
                temperature=1.0,
                top_p=TOP_P,
                top_k=0,
                num_return_sequences=stage.n,
            )[:, asked.input_ids.shape[1] :]
        self._tokenizer.batch_decode(drawn, skip_special_tokens=True)
        return int(drawn.numel())


class Continuous:
    """transformers' continuous batching, its cache sized for the work instead of for the machine's memory."""

    def __init__(self, folder: str, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa")
        self._model = model.eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def __call__(self, round: Round) -> int:
        return sum(self._stage(stage, round.seed) for stage in round.merged())

    def _stage(self, stage: Stage, seed: int) -> int:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        ids = self._tokenizer(rendered(self._tokenizer, stage.texts), add_special_tokens=False).input_ids
        wanted = GenerationConfig(
            max_new_tokens=stage.limit,
            do_sample=True,
            temperature=1.0,
            top_p=TOP_P,
            top_k=0,
            num_return_sequences=stage.n,
            eos_token_id=None,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        page = 32
        pages = -(-(max(map(len, ids)) + stage.limit) // page) + 1
        sizes = ContinuousBatchingConfig(
            page_size=page,
            num_blocks=min(len(ids) * stage.n, 96) * pages,
            max_batch_tokens=2048,
            auto_switch_to_flash=False,
            seed=seed,
        )
        outputs = self._model.generate_batch(ids, wanted, sizes)
        written = [output.generated_tokens for output in outputs.values()]
        self._tokenizer.batch_decode(written, skip_special_tokens=True)
        return sum(map(len, written))


class Vllm:
    """vLLM's offline engine, as its documents have it."""

    def __init__(self, folder: str, dtype: str) -> None:
        from vllm import LLM

        self._engine = LLM(folder, dtype=dtype, generation_config="vllm", disable_log_stats=True)

    def __call__(self, round: Round) -> int:
        from vllm import SamplingParams

        tokens = 0
        for stage in round.merged():
            wanted = SamplingParams(n=stage.n, temperature=1.0, top_p=TOP_P, max_tokens=stage.limit, ignore_eos=True)
            asked = [[{"role": "user", "content": text}] for text in stage.texts]
            outputs = self._engine.chat(asked, wanted, use_tqdm=False)
            tokens += sum(len(one.token_ids) for output in outputs for one in output.outputs)
        return tokens


class Distilabel:
    """distilabel's `TransformersLLM`."""

    def __init__(self, folder: str, dtype: str) -> None:
        from distilabel.models import TransformersLLM

        self._model = TransformersLLM(model=folder, torch_dtype=dtype, device="cpu")
        self._model.load()
        self._tokenizer = self._model._pipeline.tokenizer

    def __call__(self, round: Round) -> int:
        tokens = 0
        for stage in round.merged():
            outputs = self._model.generate_outputs(
                inputs=[[{"role": "user", "content": text}] for text in stage.texts],
                num_generations=stage.n,
                max_new_tokens=stage.limit,
                temperature=1.0,
                top_p=TOP_P,
                top_k=0,
                do_sample=True,
            )
            # It says how many tokens its texts make, not how many were written: that many were.
            assert all(len(output["generations"]) == stage.n for output in outputs)
            tokens += len(stage.texts) * stage.n * stage.limit
        return tokens


def rendered(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """The texts as conversations, up to where the assistant begins to speak."""
    turns = [[{"role": "user", "content": text}] for text in texts]
    shown: list[str] = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return shown


def open_contestant(name: str, folder: str, dtype: str) -> Contestant:
    """Load the model."""
    if name.startswith("ours"):
        return ours(folder, dtype, deterministic=name == "ours-deterministic")
    kinds: dict[str, Callable[[str, str], Contestant]] = {
        "generate": Generate,
        "continuous": Continuous,
        "vllm": Vllm,
        "distilabel": Distilabel,
    }
    return kinds[name](folder, dtype)


def main(name: str, folder: str, dtype: str) -> None:
    """Load, say so, and work until stdin ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if name != "vllm":
        import torch

        torch.set_num_threads(1)
    contestant = open_contestant(name, folder, dtype)
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        asked = Round.read(line)
        began = time.perf_counter()
        tokens = contestant(asked)
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "tokens": tokens}), file=replies, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
