"""How often a model passes each constraint family: alone, on training topics, by the guarded truth.

metareward model smollm2 --out models/smollm2 --network
python bench/constraint_families.py --model models/smollm2 --out bench/results/constraint_families.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path
from statistics import fmean

from metareward.engines.base import run_concurrently
from metareward.engines.local.workers import LocalSettings, open_local
from metareward.evaluation.constraints.families import FAMILIES, Family
from metareward.evaluation.constraints.prompts import TASKS, TOPICS, draw_prompts, is_held_out_topic
from metareward.evaluation.constraints.world import Guards, check_answer
from metareward.seeds import derive
from metareward.types import Completion, Message, Sampling

DRAWN = "prompts as drawn"
GUARDS = tuple(field.name for field in fields(Guards))


def family_prompts(family: Family, count: int, seed: int) -> list[str]:
    """``count`` prompts with this constraint alone, about topics that aren't held out."""
    rng = random.Random(derive(seed, family.name))
    topics = [topic for topic in TOPICS if not is_held_out_topic(topic)]
    return [f"{rng.choice(TASKS).format(topic=rng.choice(topics))} {family.draw(rng)}" for _ in range(count)]


async def answers(
    folder: Path, prompts: Sequence[str], samples: int, sampling: Sampling, seed: int, dtype: str
) -> list[list[Completion]]:
    """``samples`` answers to each prompt."""
    engine = await open_local(
        folder, LocalSettings.model_validate({"dtype": dtype, "workers": 1, "deterministic": False})
    )

    async def answer(prompt: str) -> list[Completion]:
        asked = Sampling(sampling.temperature, sampling.top_p, sampling.max_tokens, derive(seed, prompt))
        return list(await engine.complete((Message("user", prompt),), asked, samples, "actor"))

    try:
        return list(await run_concurrently(answer(prompt) for prompt in prompts))
    finally:
        await engine.aclose()


def figures(rows: Sequence[tuple[str, Completion]]) -> dict[str, float]:
    """Shares of (prompt, answer) rows: constraint met, passed, each guard passed, cut off; and the mean length."""
    checked = [check_answer(prompt, answer.text) for prompt, answer in rows]
    return {
        "n": len(rows),
        "met": fmean(all(each.constraints) for each in checked),
        "passes": fmean(each.passes for each in checked),
        **{name: fmean(astuple(each.guards)[place] for each in checked) for place, name in enumerate(GUARDS)},
        "cut_off": fmean(answer.finish == "length" for _, answer in rows),
        "tokens": fmean(answer.tokens for _, answer in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("families", "drawn"), help="each family alone, or prompts as a run draws them")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=24, help="in all, or of each family")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="what else is there stays")
    parser.add_argument("--texts", type=Path, help="where to write all answers")
    given = parser.parse_args()
    sampling = Sampling(given.temperature, given.top_p, given.max_tokens)
    prompts = {family.name: family_prompts(family, given.prompts, given.seed) for family in FAMILIES}
    if given.what == "drawn":
        prompts = {DRAWN: [each.messages[-1].content for each in draw_prompts(given.prompts, given.seed)]}
    asked = [prompt for each in prompts.values() for prompt in each]
    found = asyncio.run(answers(given.model, asked, given.samples, sampling, given.seed, given.dtype))
    rows = [(prompt, answer) for prompt, each in zip(asked, found, strict=True) for answer in each]
    if given.texts:
        lines = ({"prompt": p, "answer": a.text, "finish": a.finish, "tokens": a.tokens} for p, a in rows)
        given.texts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    shares = {name: figures([row for row in rows if row[0] in set(own)]) for name, own in prompts.items()}
    before = json.loads(given.out.read_text(encoding="utf-8")) if given.out.is_file() else {}
    settings = {name: value for name, value in vars(given).items() if not isinstance(value, Path)}
    result = before | {given.what: {"settings": settings, "shares": shares}}
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, each in shares.items():
        print(f"{name:20}", *(f"{key} {value:.2f}" for key, value in each.items()))


if __name__ == "__main__":
    main()
