"""A benchmark's files may be on a hub: one on this machine here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hub_server import serve_hub

RECIPE = "extends: pocket\nbenchmarks: [{kind: alpaca_eval, questions: hub:someone/set/asked.jsonl}]\n"
ASK = """
import sys
from pathlib import Path
from metareward.pipeline.benchmarks import benchmark_runs
from metareward.errors import UserError
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.config.schema import load_recipe
from metareward.storage.run_dir import RunDir

recipe = load_recipe(sys.argv[1], ["prompts.network=" + sys.argv[2]])
(run,) = benchmark_runs(BoundRecipe(RunDir(Path("nowhere")), recipe), 1)
try:
    print([prompt.messages[-1].content for prompt in run.local.requests().prompts], run.benchmark.questions)
except UserError as error:
    print(error)
"""


def ask(folder: Path, address: str, network: str) -> str:
    """A process of its own: the hub's library reads its settings when it is imported."""
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    settings = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", ASK, str(folder / "recipe.yaml"), network]
    return subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=True).stdout


def test_a_recipe_names_files_of_a_hub(tmp_path: Path) -> None:
    (tmp_path / "root/someone/set").mkdir(parents=True)
    (tmp_path / "root/someone/set/asked.jsonl").write_text('{"instruction": "one"}\n{"instruction": "two"}\n')
    with serve_hub(tmp_path / "root") as address:
        assert ask(tmp_path, address, "true") == "['one', 'two'] hub:someone/set/asked.jsonl\n"
        told = ask(tmp_path, address, "false")
    assert "hub:someone/set/asked.jsonl: is on the Hugging Face hub, and the network is off; fix: allow it" in told
