"""Questions to a chat server in a process of its own, to be killed: ``python openai_process.py URL CACHE COUNT``.

Says the number of every question that is answered.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from openai_setup import HOT, ask, engine_for


async def main(url: str, cache: Path, count: int) -> None:
    async with engine_for(url, cache_dir=str(cache), max_concurrency=4) as engine:

        async def one(number: int) -> None:
            assert len(await engine.complete(ask(f"question {number}"), HOT, 3)) == 3
            print(number, flush=True)

        await asyncio.gather(*(one(number) for number in range(count)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
