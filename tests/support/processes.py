"""Programs that tests run in processes of their own, to kill them or to fill their disk: ``processes.py NAME ...``."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from scripted_models import SlowEngine, open_slow, prompts, rank_reply, ranked_set, seed_settings, settings
from whole_runs import Workspace, run_results

from metareward.data.seed_sets import judge_prompts, split_prompts
from metareward.engines.base import ScriptedEngine
from metareward.engines.ray.engine import open_ray
from metareward.engines.ray.settings import RaySettings
from metareward.generation.annotate import annotation_fingerprint
from metareward.generation.progress import SilentProgress
from metareward.generation.runner import annotate_prompts
from metareward.pocket import world
from metareward.storage.run_dir import RunDir
from metareward.storage.store import RecordStore

_PAGE = 4096


class Committed(SilentProgress):
    def advance(self, role: str, n: int) -> None:
        if role == "prompts":
            print("committed", flush=True)


def annotate(path: Path, count: int, seconds: float) -> None:
    """Annotate prompts; print a line for every committed prompt, then the result. SIGTERM interrupts like Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with RecordStore.open(path, annotation_fingerprint(settings())) as store:
        run = annotate_prompts(
            SlowEngine(seconds), prompts(count), settings(), store, Committed(), max_concurrent_prompts=8
        )
        result = asyncio.run(run)
        print(f"finished {result.finished} cached {result.cached} failed {len(result.failed)}")


def annotate_on_ray(path: Path, count: int, seconds: float, address: str) -> None:
    """As `annotate`, by replicas of the slow engine on a Ray cluster; ``local`` is one of its own."""

    async def run() -> None:
        settings_ = RaySettings.model_validate({"address": address, "engine": {"dtype": "float32"}})
        engine = await open_ray(world.MODEL, settings_, partial(open_slow, seconds))
        print("opened", flush=True)
        with RecordStore.open(path, annotation_fingerprint(settings())) as store:
            await annotate_prompts(engine, prompts(count), settings(), store, Committed())
        await engine.aclose()

    asyncio.run(run())


def judge_seeds(folder: Path, count: int, seconds: float) -> None:
    """Judge seed sets; print a line for every committed prompt."""
    ranked = ranked_set(count)
    engine = SlowEngine(seconds, ScriptedEngine(rank_reply))
    split = split_prompts(ranked.prompts, seed_settings())
    asyncio.run(judge_prompts(engine, split.eft, seed_settings(), folder, {"model": "m"}, Committed()))


def run_on_small_disk(folder: Path, disk: Path, run: Path, steps: list[int]) -> None:
    """Start a run again and again on a disk with little free space, in a mount namespace of its own.

    Mounts a disk at DISK and copies RUN there, if there is one. For each step, leaves so many 4 KiB pages free (at
    least one: a disk of no pages has no limit) and starts the run. Prints one JSON line per start, and the results at
    the end.
    """
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], check=True)
    there = disk / "run"
    if run.is_dir():
        shutil.copytree(run, there)
    for pages in steps:
        _leave_free(disk, pages)
        code, out, errors = Workspace(folder).run(str(there))
        print(json.dumps({"code": code, "out": out, "errors": errors}), flush=True)
    print(json.dumps(run_results(RunDir(there))))


def _leave_free(disk: Path, pages: int) -> None:
    """Resize the disk so that ``pages`` are free."""
    space = os.statvfs(disk)
    used = (space.f_blocks - space.f_bfree) * space.f_frsize
    size = used + pages * _PAGE
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


def main(name: str, words: list[str]) -> None:
    match name:
        case "annotate":
            annotate(Path(words[0]), int(words[1]), float(words[2]))
        case "annotate_on_ray":
            annotate_on_ray(Path(words[0]), int(words[1]), float(words[2]), words[3])
        case "judge_seeds":
            judge_seeds(Path(words[0]), int(words[1]), float(words[2]))
        case "run_on_small_disk":
            run_on_small_disk(Path(words[0]), Path(words[1]), Path(words[2]), [int(word) for word in words[3:]])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
