"""Annotates prompts in a process that a test kills: ``python annotate_process.py STORE PROMPTS SECONDS``.

Prints a line for every committed prompt, and the result at the end. SIGTERM interrupts like Ctrl-C, as in the command.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from scripted_world import SlowEngine, prompts, settings

from metareward.generation.annotate import annotation_fingerprint
from metareward.generation.progress import SilentProgress
from metareward.generation.runner import annotate_prompts
from metareward.storage.store import RecordStore


class Committed(SilentProgress):
    def advance(self, role: str, n: int) -> None:
        if role == "prompts":
            print("committed", flush=True)


def main(path: Path, count: int, seconds: float) -> None:
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with RecordStore.open(path, annotation_fingerprint(settings())) as store:
        run = annotate_prompts(
            SlowEngine(seconds), prompts(count), settings(), store, Committed(), max_concurrent_prompts=8
        )
        result = asyncio.run(run)
        print(f"finished {result.finished} cached {result.cached} failed {len(result.failed)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
