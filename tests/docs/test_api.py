"""The programs of docs/api.md run, each in a process of its own, on a tiny model and a recipe of one iteration."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from regenerate import ROOT
from run_folders import small_run
from tiny_models import tiny_llama
from whole_runs import RECIPE, write_inputs

import metareward

PAGE = (ROOT / "docs/api.md").read_text(encoding="utf-8")
PROGRAMS = dict(re.findall(r"^## (.+?)\n.*?^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the programs name: a recipe with its model and prompts, and a run."""
    here = tmp_path_factory.mktemp("api")
    tiny_llama(here / "model", verdicts=True)
    write_inputs(here)
    lines = (line for line in RECIPE.splitlines() if not line.startswith("benchmarks"))
    recipe = "\n".join(lines).replace("2: {}}", "}").replace("k: 2", "k: 3") + "\n"
    (here / "recipe.yaml").write_text(recipe.replace(", }", "}"))
    small_run(here / "runs/pocket-1")
    return here


def test_there_are_six_short_programs() -> None:
    assert list(PROGRAMS) == [
        "Judge two answers",
        "Build pairs from records",
        "Plug a reward",
        "A judge as the reward of GRPO",
        "Plug a benchmark",
        "Run a recipe",
    ]
    assert max(len(program.splitlines()) for program in PROGRAMS.values()) <= 20


# Each of these trains a model, or starts one as "Judge two answers" does. By default test_reward.py, test_objects.py,
# test_own_benchmark.py and test_loop.py run the like.
SLOW = ("Plug a reward", "A judge as the reward of GRPO", "Plug a benchmark", "Run a recipe")


# The pocket model's engine starts a worker for every core that it may use, and each imports torch.
_CORE = str(min(os.sched_getaffinity(0))) if sys.platform == "linux" else ""
ON_ONE_CORE = ("taskset", "--cpu-list", _CORE) if shutil.which("taskset") else ()


@pytest.mark.parametrize("title", [pytest.param(t, marks=pytest.mark.slow) if t in SLOW else t for t in PROGRAMS])
def test_programs_run(folder: Path, title: str) -> None:
    command = [*ON_ONE_CORE, sys.executable, "-c", PROGRAMS[title]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if title == "Plug a benchmark":
        assert "Share of short answers" in (folder / "runs/measured/report.html").read_text(encoding="utf-8")
    else:
        assert done.stdout.strip()


def test_every_public_name_exists_and_is_in_the_table() -> None:
    table = re.findall(r"`(\w+)`", PAGE.partition("| --- | --- |")[2].partition("\n\n")[0])
    assert sorted(set(metareward.__all__)) == sorted(name for name in set(table) if name in metareward.__all__)
    for name in metareward.__all__:
        assert getattr(metareward, name).__doc__
    assert not hasattr(metareward, "no_such_name")
