"""``make test-faults``: do every fault of the table as often as it says, and store what came of it.

    python tests/faults/harness.py [--seed 1] [--only TEXT] [--results FILE] [--store FILE]

The order and every random moment follow from the seed. Each fault is one line of the results file; the same command
goes on after the last one. ``--store`` writes the table that docs/reliability.md shows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support"), str(HERE.parent / "engines")]

from world import BrokenPromiseError, Scene, World  # noqa: E402

from faults import FAULTS, Fault  # noqa: E402

_BUILD = HERE.parents[1] / "build" / "faults"
_INSIDE = "METAREWARD_FAULTS_INSIDE"  # set in the mount namespace


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one fault; ``count``: how many faults it was, such as five kills."""

    number: int
    seed: int
    fault: str
    kind: str
    count: int
    outcome: str
    seconds: float


def plan(seed: int) -> list[Fault]:
    """All faults in the order of this seed, which mixes the kinds, so that a part of it has every kind."""
    faults = [fault for fault in FAULTS for _ in range(fault.count)]
    random.Random(seed).shuffle(faults)
    return faults


def do(world: World, number: int, seed: int, fault: Fault) -> Result:
    """Do one fault. A broken promise is an outcome, too, and its run folder's path is printed."""
    began, scene = time.monotonic(), Scene(world, random.Random(f"{seed} {number}"), f"run-{number}", fault.part)
    try:
        count, outcome = fault.act(scene)
    except BrokenPromiseError as error:
        count, outcome = 1, " ".join(f"FAILED: {error}".split())
        shutil.copytree(scene.logs, _BUILD / f"failed-{seed}-{number}", dirs_exist_ok=True)
    scene.remove()
    return Result(number, seed, fault.name, fault.kind, count, outcome, round(time.monotonic() - began, 2))


def missing_needs(world: World) -> set[str]:
    """What faults need that this machine hasn't: mounts, a C compiler for the clock."""
    return {
        *(() if os.path.ismount(world.disk) else ("mounts",)),
        *(() if (_BUILD / "clock.so").is_file() else ("clock",)),
    }


def read_results(path: Path) -> list[Result]:
    """The results so far; a torn last line is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(Result(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def table(results: Iterable[Result]) -> dict[str, object]:
    """The stored form: a row for each fault with its count and outcomes, and the totals by kind."""
    names = {fault.name for fault in FAULTS}
    # One that found nothing to disturb, such as no file yet, doesn't count.
    every, rows = [each for each in results if each.fault in names and each.count], list[dict[str, object]]()
    for name in dict.fromkeys(fault.name for fault in FAULTS):
        of_fault = [each for each in every if each.fault == name]
        if of_fault:
            outcomes = Counter(each.outcome.partition(":")[0] for each in of_fault)
            count = sum(each.count for each in of_fault)
            rows.append({"fault": name, "kind": of_fault[0].kind, "count": count, "outcomes": dict(outcomes)})
    totals = {kind: sum(each.count for each in every if each.kind == kind) for kind in ("kill", "other")}
    failed = [asdict(each) for each in every if each.outcome.startswith("FAILED")]
    planned = len(plan(0))
    return {"seeds": sorted({each.seed for each in every}), "done": len(every), "planned": planned} | {
        "totals": totals,
        "failed": failed,
        "rows": rows,
    }


def run(seed: int, only: str, path: Path) -> list[Result]:
    """Do what is not in the results file yet."""
    done = {(each.seed, each.number) for each in read_results(path)}
    folder = Path(tempfile.mkdtemp(prefix="metareward-faults-"))
    disk = folder / "disk"
    disk.mkdir()
    mounted = (
        os.environ.get(_INSIDE)
        and not subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(disk)], check=False).returncode
    )
    _BUILD.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"seed {seed}; results in {path}", flush=True)
    world = World.open(disk, _BUILD)
    missing = missing_needs(world)
    try:
        for number, fault in enumerate(plan(seed)):
            if (seed, number) in done or only not in fault.name or fault.needs in missing:
                continue
            result = do(world, number, seed, fault)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(result)) + "\n")
            print(f"{number:4} {result.seconds:6.1f} s  {result.count} x {fault.name}: {result.outcome}", flush=True)
    finally:
        world.close()
        if mounted:
            subprocess.run(["umount", "-l", str(disk)], check=False)
        shutil.rmtree(folder, ignore_errors=True)
    return read_results(path)


def main() -> int:
    """The command. Returns 1 if a fault broke a promise."""
    parser = argparse.ArgumentParser(prog="tests/faults/harness.py", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="only faults with this text in their names")
    parser.add_argument("--results", type=Path, default=_BUILD / "results.jsonl")
    parser.add_argument("--store", type=Path, help="write the table there")
    options = parser.parse_args()
    if not os.environ.get(_INSIDE) and shutil.which("unshare"):
        inside = ["unshare", "-rm", sys.executable, *sys.argv]
        if not subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
            os.execvpe("unshare", inside, {**os.environ, _INSIDE: "1"})
    results = run(options.seed, options.only, options.results)
    if options.store:
        options.store.write_text(json.dumps(table(results), indent=1) + "\n", encoding="utf-8")
    failed = [each for each in results if each.outcome.startswith("FAILED")]
    for each in failed:
        print(f"seed {each.seed}, number {each.number}, {each.fault}: {each.outcome}")
    print(f"{sum(each.count for each in results)} faults, {len(failed)} failed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
