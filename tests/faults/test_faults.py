"""A slice of the fault harness (``make test-faults``), which needs no mounts, no compiler and no training."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Result, plan, read_results, table
from world import Scene, World

from faults import FAULTS, LINE, SAME
from metareward.pocket.world import MODEL

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and walks through /proc")

QUICK = ("driver: kill -9 at random moments, one after another", "lock and lock.json deleted, a second driver")
SLICE = (
    *QUICK,
    *("driver: SIGINT twice", "two drivers at once", "run folder moved away, a second driver in its place"),
    "server: some judgments fail",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("faults")
    for name in ("disk", "cache"):
        (folder / name).mkdir()
    model = Path(shutil.copytree(MODEL, folder / "model"))  # the server answers, so only its files are looked at
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    opened = World.open(folder / "disk", folder / "cache", model)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    "name", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in SLICE]
)
def test_a_slice_of_the_faults(world: World, name: str) -> None:
    (fault,) = (each for each in FAULTS if each.name == name)
    scene = Scene(world, random.Random(1), f"run-{SLICE.index(name)}", fault.part)
    count, outcome = fault.act(scene)
    assert count >= 1 and outcome in (SAME, LINE)


def test_the_plan_has_every_fault_in_an_order_that_the_seed_decides() -> None:
    assert plan(1) == plan(1) != plan(2)
    assert {fault.name for fault in plan(1)} == {fault.name for fault in FAULTS}
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_results_are_continued_and_counted(tmp_path: Path) -> None:
    first = Result(0, 1, FAULTS[0].name, "kill", 5, SAME, 2.5)
    second = Result(1, 1, FAULTS[-1].name, "kill", 1, "FAILED: other results: iter-1", 9.0)
    lines = [json.dumps({name: getattr(each, name) for name in Result.__slots__}) for each in (first, second)]
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(lines) + '\n{"number": 2, "se')
    assert read_results(path) == [first, second]
    found = table(read_results(path))
    assert found["totals"] == {"kill": 6, "other": 0} and found["done"] == 2 and found["seeds"] == [1]
    assert [row["outcomes"] for row in found["rows"]] == [{SAME: 1}, {"FAILED": 1}]  # type: ignore[attr-defined]
