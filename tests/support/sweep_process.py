"""A sweep in a process of its own, to be killed: ``python sweep_process.py STORE PROMPTS SECONDS``.

Says a line for every committed prompt, and the outcome at the end. SIGTERM is taken as Ctrl-C, as the command does.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from scripted_world import SlowEngine, prompts, settings

from metareward.generation.progress import SilentProgress
from metareward.generation.runner import sweep
from metareward.generation.unit import fingerprint
from metareward.storage.store import RecordStore


class Told(SilentProgress):
    def advance(self, role: str, n: int) -> None:
        if role == "prompts":
            print("committed", flush=True)


def main(path: Path, count: int, seconds: float) -> None:
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with RecordStore.open(path, fingerprint(settings())) as store:
        work = sweep(SlowEngine(seconds), prompts(count), settings(), store, Told(), in_flight=8)
        outcome = asyncio.run(work)
        print(f"finished {outcome.finished} already {outcome.already} failed {len(outcome.failed)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
