"""The judging of seed sets in a process of its own, to be killed: ``python seed_process.py FOLDER PROMPTS SECONDS``.

Prints a line for every committed prompt.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from scripted_world import SlowEngine
from seed_world import ranked_set, reply, settings

from metareward.data.seed_sets import judge_prompts, split_prompts
from metareward.engines.scripted import ScriptedEngine
from metareward.generation.progress import SilentProgress


class Committed(SilentProgress):
    def advance(self, role: str, n: int) -> None:
        if role == "prompts":
            print("committed", flush=True)


def main(folder: Path, count: int, seconds: float) -> None:
    ranked = ranked_set(count)
    engine = SlowEngine(seconds, ScriptedEngine(reply))
    split = split_prompts(ranked.prompts, settings())
    asyncio.run(judge_prompts(engine, split.eft, settings(), folder, {"model": "m"}, Committed()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
