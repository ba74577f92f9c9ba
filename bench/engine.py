"""What the engine's deterministic setting costs, and what sharing prompts gains over plain `generate`.

Interleaved rounds on the pocket model, one thread: judge-like work (7 samples of one prompt) and meta-judge-like work
(one short sample each of prompts that begin alike). Prints a table and writes bench/results/engine.json.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from metareward.engines.local.engine import LocalEngine
from metareward.pocket.build import FAULTY
from metareward.pocket.demonstrations import METARUBRIC, RUBRIC, answer, judgment
from metareward.pocket.tasks import draw_instruction, parse_instruction
from metareward.pocket.world import MODEL, check_answer
from metareward.storage.run_log import environment
from metareward.types import Message, Messages, Prompt, Sampling

ROUNDS, PROMPTS, SAMPLES = 3, 24, 7
Work = tuple[str, list[Messages], int, int]  # name, conversations, samples of each, most new tokens


def workloads() -> list[Work]:
    """Judgments of one answer to each prompt, and all ordered pairs of four judgments of each."""
    rng, judging, comparing = random.Random(0), [], []
    for number in range(PROMPTS):
        instruction = draw_instruction(rng, held_out=True)
        prompt = Prompt(str(number), (Message("user", instruction),))
        text = answer(parse_instruction(instruction), FAULTY, rng)
        judging.append(RUBRIC.render(prompt, text))
        four = [judgment(check_answer(instruction, text), FAULTY, rng) for _ in range(4)]
        comparing += [METARUBRIC.render(prompt, text, a, b) for a in four for b in four if a is not b]
    return [("judge", judging, SAMPLES, 48), ("meta-judge", comparing, 1, 16)]


def _ours(engine: LocalEngine, work: Work) -> int:
    return asyncio.run(_asked(engine, work))


async def _asked(engine: LocalEngine, work: Work) -> int:
    _, conversations, n, limit = work
    asked = (engine.complete(messages, Sampling(1.0, 0.95, limit, i), n) for i, messages in enumerate(conversations))
    return sum(one.tokens for written in await asyncio.gather(*asked) for one in written)


def _generate(model: Any, tokenizer: Any, work: Work) -> int:
    """Plain `generate`, 8 prompts at a time; counts tokens up to the end of each sample, as the engine does."""
    _, conversations, n, limit = work
    written = 0
    for start in range(0, len(conversations), 8):
        texts = [
            tokenizer.apply_chat_template(
                [{"role": turn.role, "content": turn.content} for turn in messages],
                tokenize=False,
                add_generation_prompt=True,
            )
            for messages in conversations[start : start + 8]
        ]
        asked = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        drawn = model.generate(
            **asked, max_new_tokens=limit, do_sample=True, top_p=0.95, top_k=0, num_return_sequences=n
        )[:, asked.input_ids.shape[1] :]
        ended = (drawn == tokenizer.eos_token_id).int().cumsum(1)
        written += int((ended == 0).sum() + (ended[:, -1] > 0).sum())
    return written


def timed(call: Callable[[], int]) -> float:
    """Generated tokens per second of one call."""
    began = time.perf_counter()
    return call() / (time.perf_counter() - began)


def main() -> None:
    """Run all, print, write."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL, padding_side="left")
    results: dict[str, dict[str, float]] = {}
    for dtype in ("float32", "bfloat16"):
        model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=getattr(torch, dtype)).eval()
        fixed, free = (
            LocalEngine.open(MODEL, device="cpu", dtype=dtype, max_num_seqs=128, deterministic=deterministic)
            for deterministic in (True, False)
        )
        for work in workloads():
            contestants: dict[str, Callable[[], int]] = {
                "deterministic": partial(_ours, fixed, work),
                "not deterministic": partial(_ours, free, work),
                "generate": partial(_generate, model, tokenizer, work),
            }
            rates: dict[str, list[float]] = {name: [] for name in contestants}
            for call in contestants.values():
                call()  # warm-up
            for _ in range(ROUNDS):
                for name, call in contestants.items():
                    rates[name].append(timed(call))
            results[f"{work[0]}, {dtype}"] = {name: statistics.median(seen) for name, seen in rates.items()}
        for engine in (fixed, free):
            asyncio.run(engine.aclose())
    _show(results)


def _show(results: dict[str, dict[str, float]]) -> None:
    contestants: Sequence[str] = list(next(iter(results.values())))
    table = Table("tokens/s, one thread", *contestants, "deterministic / generate", "cost of determinism")
    for name, rates in results.items():
        ratio, cost = rates[contestants[0]] / rates[contestants[2]], rates[contestants[1]] / rates[contestants[0]]
        table.add_row(name, *(f"{rates[name]:,.0f}" for name in contestants), f"{ratio:.1f} x", f"{cost:.2f} x")
    Console().print(table)
    path = Path(__file__).parent / "results" / "engine.json"
    path.write_text(
        json.dumps({"tokens_per_second": results, **environment(), "load": os.getloadavg()}, indent=2) + "\n"
    )


if __name__ == "__main__":
    with torch.inference_mode():
        main()
