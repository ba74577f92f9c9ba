"""``kill -9`` of a whole run at random moments: started again, it ends as the run that nobody disturbed."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from house import HELD_OUT, PROMPTS, House, alive, documents, kill_tree, outcome
from metareward.errors import UserError
from metareward.rundir import RunDir

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="walks through /proc"),
    pytest.mark.timeout(1800),
]

LONGEST = 600.0


@dataclass(frozen=True)
class Moment:
    """So long (seconds) after ``count`` prompts or steps of a stage of iteration ``t`` were done."""

    stage: str
    t: int
    count: int
    delay: float


def reached(run: RunDir, moment: Moment) -> bool:
    folder = run.iteration(moment.t)
    if moment.stage == "starting":
        return (run.path / "lock.json").is_file()
    if moment.stage == "generating":
        return finished(folder.records) >= moment.count
    if moment.stage == "pairing":
        return (folder.path / "pairs").is_dir() or finished(folder.records) == PROMPTS
    if moment.stage == "training":
        return steps(folder.path / "training.jsonl") >= moment.count
    if moment.stage == "evaluating":
        return finished(folder.evaluation / "records.sqlite") >= moment.count
    return folder.done.is_file()


def finished(records: Path) -> int:
    """How many prompts a store holds; -1 when it isn't quite there."""
    try:
        return len(documents(records))
    except UserError:
        return -1


def steps(log: Path) -> int:
    """How many steps were told, after the line that training begins; -1 before that line."""
    return log.read_text(encoding="utf-8").count("\n") - 1 if log.is_file() else -1


def moments(seed: int, stages: Sequence[tuple[str, int]]) -> list[Moment]:
    """A random moment of each stage."""
    draw = random.Random(seed)
    most = {"generating": PROMPTS - 1, "training": 1, "evaluating": HELD_OUT - 1}
    return [Moment(stage, t, draw.randint(0, most.get(stage, 0)), draw.uniform(0, 0.2)) for stage, t in stages]


def interrupt(house: House, name: str, moment: Moment) -> None:
    """Start the run, kill all of it at the moment."""
    process = house.start(name)
    run, until = RunDir(house.folder / name), time.monotonic() + LONGEST
    try:
        while not reached(run, moment):
            assert process.poll() is None, f"ended before {moment}: {process.communicate()}"
            assert time.monotonic() < until, f"never came to {moment}"
            time.sleep(0.005)
        time.sleep(moment.delay)
    finally:
        kill_tree(process)
    assert process.returncode == -signal.SIGKILL, f"ended before {moment}"
    assert not alive(process.pid)


def check(house: House, name: str, plan: Sequence[Moment]) -> None:
    for moment in plan:
        print(moment)
        interrupt(house, name, moment)
    code, told, errors = house.run(name)
    assert code == 0, errors
    assert f"{name}: finished" in told
    assert outcome(RunDir(house.folder / name)) == outcome(house.finished())


SEED = 1


def test_killed_in_three_stages_it_ends_as_if_undisturbed(house: House) -> None:
    check(house, "killed", moments(SEED, [("generating", 1), ("training", 1), ("evaluating", 2)]))
