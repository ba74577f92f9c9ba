"""How many completions one run takes from replicas on a Ray cluster, and what that costs: the engines answer at once.

So it measures all but the models: requests, balancing, Ray's calls. A request asks for 11 completions of 800 characters
after a prompt of 2000, as for judgments. Memory is that of the run's process, sampled during the run.
The result goes to bench/results/ray.json. (This file can't be called ray.py: Python would import it in place of Ray.)
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import platform
import pstats
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metareward.engines.ray.engine import RayEngine, open_ray
from metareward.engines.ray.settings import RaySettings
from metareward.pocket import world
from metareward.types import Completion, Message, Messages, ModelRole, Sampling

RESULTS = Path(__file__).parent / "results" / "ray.json"
SAMPLES, ANSWER, PROMPT = 11, "A judgment. " * 67, "A prompt. " * 200
_TICKS = os.sysconf("SC_CLK_TCK")


class InstantEngine:
    """Answers at once."""

    async def complete(
        self,
        messages: Messages,  # noqa: ARG002
        sampling: Sampling,
        n: int,
        role: ModelRole = "actor",  # noqa: ARG002
    ) -> Sequence[Completion]:
        return tuple(Completion(f"{sampling.seed} {i} {ANSWER}", "stop", 200) for i in range(n))

    async def aclose(self) -> None:
        pass


async def open_instant(settings: object, folder: Path, logs: Path) -> InstantEngine:  # noqa: ARG001
    return InstantEngine()


def cpu_seconds() -> dict[str, float]:
    """CPU seconds so far: of this process and of the actors, together."""
    found = {"run": 0.0, "replicas": 0.0}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            line = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        seconds = (int(fields[11]) + int(fields[12])) / _TICKS
        if stat.parent.name == str(os.getpid()):
            found["run"] += seconds
        elif line.startswith("ray::ReplicaActor"):
            found["replicas"] += seconds
    return found


def resident() -> float:
    """This process's memory in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def ask(engine: RayEngine, seconds: float, in_flight: int) -> dict[str, Any]:
    """Ask for so many seconds; counts, memory on the way, CPU seconds."""
    done, began, before = 0, time.monotonic(), cpu_seconds()
    memory = [(0.0, resident())]

    async def worker(number: int) -> None:
        nonlocal done
        while time.monotonic() - began < seconds:
            message = (Message("user", f"{number} {PROMPT}"),)
            made = await engine.complete(message, Sampling(0.8, 0.95, 200, done), SAMPLES)
            done += len(made)

    async def watch() -> None:
        while True:
            await asyncio.sleep(seconds / 20)
            memory.append((done, resident()))

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(worker(number) for number in range(in_flight)))
    watching.cancel()
    wall, after = time.monotonic() - began, cpu_seconds()
    return {
        "completions": done,
        "seconds": round(wall, 1),
        "completions_per_second": round(done / wall, 1),
        "cpu_microseconds_per_completion": {key: round(1e6 * (after[key] - before[key]) / done, 1) for key in after},
        "memory_mb": [[int(count), round(mb, 1)] for count, mb in memory],
    }


async def measure(replicas: int, seconds: float, in_flight: int) -> dict[str, Any]:
    settings = RaySettings.model_validate(
        {"address": "local", "replicas": replicas, "engine": {"dtype": "float32", "device": "cpu"}}
    )
    engine = await open_ray(world.MODEL, settings, open_instant)
    try:
        while len(engine.nodes) < replicas:
            await asyncio.sleep(0.1)
        await ask(engine, 5.0, in_flight)  # warm
        result = await ask(engine, seconds, in_flight)
        with cProfile.Profile() as profile:
            await ask(engine, 10.0, in_flight)
        result["hottest"] = hottest(profile)
        return result
    finally:
        await engine.aclose()


def hottest(profile: cProfile.Profile) -> list[list[object]]:
    """The functions of this process with the largest share of its own time."""
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    total = sum(each[2] for each in stats.values())
    top = sorted(stats.items(), key=lambda item: -item[1][2])[:8]
    return [[f"{Path(file).name}:{name}", round(row[2] / total, 3)] for (file, _, name), row in top]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--in-flight", type=int, default=128)
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    # By its module's name, so that actors can import it.
    import ray_engine

    result = asyncio.run(ray_engine.measure(options.replicas, options.seconds, options.in_flight))
    import ray

    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "ray": ray.__version__}
    found = {**machine, "replicas": options.replicas, "in_flight": options.in_flight, **result}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
