"""vLLM behind one of our doors, in a process that can be killed: ``python vllm_process.py served|inside FOLDER LOG``.

Reads questions, a JSON list in one line; says what the model wrote, in one line of JSON; goes on until standard input
ends. With "inside" it imports only what an environment made for vLLM has.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from metareward.engines.base import Engine
from metareward.engines.vllm import VllmSettings, open_vllm
from metareward.engines.vllm_server import open_vllm_server
from metareward.types import Completion, Message, Sampling

MARK = "said: "
HOT = Sampling(temperature=1.0, top_p=0.95, max_tokens=40, seed=3)
COLD = Sampling(temperature=0.0, top_p=1.0, max_tokens=40, seed=3, top_logprobs=3)
# A judgment without its score, which is drawn from these.
JUDGED = (
    Message("user", "Judge kind, count, items, order, brief.\nQuestion: repeat the words: red, sun\nAnswer: red"),
    Message("assistant", "I read the answer. kind yes, count no, items yes, order no, brief yes. Score:"),
)
SCORES = tuple(f" {score}" for score in range(6))
SETTINGS = VllmSettings.model_validate(
    {"dtype": "float32", "gpu_memory_utilization": 0.1, "max_concurrency": 8, "start_timeout": 800.0}
)


async def main(kind: str, folder: Path, log: Path) -> None:
    engine = await opened(kind, folder, log)
    try:
        said = await asked(engine, json.loads(sys.stdin.readline()))
        print(MARK + json.dumps({name: [asdict(each) for each in written] for name, written in said.items()}))
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
    finally:
        await engine.aclose()


async def opened(kind: str, folder: Path, log: Path) -> Engine:
    if kind == "inside":
        return await open_vllm(folder, SETTINGS)
    python = str(Path(".venv-vllm/bin/python").absolute())
    return await open_vllm_server(folder, SETTINGS.model_copy(update={"python": python}), log)


async def asked(engine: Engine, questions: list[str]) -> dict[str, list[Completion]]:
    async def ask(question: str, sampling: Sampling, n: int) -> list[Completion]:
        return list(await engine.complete((Message("user", question),), sampling, n))

    first = questions[0]
    # More tokens than vLLM reads in one pass.
    crowd = await asyncio.gather(*(ask(f"{i} {first} " * 8, replace(HOT, max_tokens=4), 2) for i in range(80)))
    greedy = await asyncio.gather(*(ask(question, COLD, 1) for question in questions))
    return {
        "greedy": [each for written in greedy for each in written],
        "hot": await ask(first, HOT, 7),
        "hot again": await ask(first, HOT, 7),
        "another seed": await ask(first, replace(HOT, seed=4), 7),
        "chosen": list(await engine.complete(JUDGED, replace(HOT, choices=SCORES), 7)),
        "most probable choice": list(await engine.complete(JUDGED, replace(COLD, top_logprobs=6, choices=SCORES), 1)),
        "crowd": [each for written in crowd for each in written],
        "cut off": await ask(first, replace(HOT, max_tokens=2), 3),
    }


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
