"""vLLM that gets another model's weights: ``python vllm_reload_process.py served|inside FOLDER OTHER LOG``.

Says, in one line of JSON, what was written by FOLDER's weights, by OTHER's loaded into the same vLLM, by FOLDER's
again, and by a vLLM that was started on OTHER.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from vllm_process import COLD, HOT, MARK, SETTINGS

from metareward.engines.vllm import VllmEngine, open_vllm
from metareward.engines.vllm_server import VllmServer, open_vllm_server
from metareward.pocket.world import prompts
from metareward.types import Completion, Message

# Long enough that their keys and values are cached in whole blocks.
QUESTIONS = [f"{prompt.messages[-1].content} " * 4 for prompt in prompts(12, seed=2)]


async def opened(kind: str, folder: Path, log: Path) -> VllmEngine | VllmServer:
    settings = SETTINGS.model_copy(update={"reload": True})
    if kind == "inside":
        engine = await open_vllm(folder, settings)
        assert isinstance(engine, VllmEngine)
        return engine
    python = str(Path(".venv-vllm/bin/python").absolute())
    server = await open_vllm_server(folder, settings.model_copy(update={"python": python}), log)
    assert isinstance(server, VllmServer)
    return server


async def asked(engine: VllmEngine | VllmServer) -> list[dict[str, object]]:
    written: list[Completion] = []
    for question in QUESTIONS:  # one at a time, so that every batch is the same
        written += await engine.complete((Message("user", question),), COLD, 1)
        written += await engine.complete((Message("user", question),), replace(HOT, top_logprobs=2), 2)
    return [asdict(each) for each in written]


async def main(kind: str, folder: Path, other: Path, log: Path) -> None:
    said, engine = {}, await opened(kind, folder, log)
    try:
        said["first"] = await asked(engine)
        for name, model in (("reloaded", other), ("back", folder)):
            await engine.sleep()
            await engine.load(model)
            said[name] = await asked(engine)
    finally:
        await engine.aclose()
    engine = await opened(kind, other, log)
    try:
        said["fresh"] = await asked(engine)
    finally:
        await engine.aclose()
    print(MARK + json.dumps(said), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(Path, sys.argv[2:5])))
