"""A run folder with a recipe and prompts whose models are folders with nothing in them: a scripted engine answers."""

from __future__ import annotations

import json
from pathlib import Path

from metareward.config.schema import load_recipe
from metareward.pipeline.experiment import Experiment
from metareward.storage.run_dir import RunDir

PROMPTS = 8
HELD_OUT = 5
RECIPE = f"""\
model: MODEL
prompts: {{source: FOLDER/prompts.jsonl, per_iteration: {PROMPTS}, held_out: {HELD_OUT}}}
answers: {{k: 4, max_tokens: 64}}
judgments: {{n: 3, max_tokens: 64}}
meta_judgments: {{max_tokens: 64}}
evaluation: {{answers: 2, judgments: 2, meta_pairs: 1}}
iterations: {{1: {{}}, 2: {{judge_pairs: false}}}}
"""


def write_recipe(folder: Path) -> Path:
    """A recipe in ``folder``, with its prompts and its model."""
    model(folder / "model", "m0")
    write_prompts(folder / "prompts.jsonl", 2 * PROMPTS + HELD_OUT)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("MODEL", str(folder / "model")).replace("FOLDER", str(folder)), encoding="utf-8")
    return recipe


def model(folder: Path, weights: str) -> Path:
    """What passes for a model folder as long as nobody loads it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text(weights)
    return folder


def write_prompts(path: Path, count: int) -> None:
    rows = ({"id": f"p{number:03d}", "prompt": f"Say something about {number}."} for number in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def experiment(folder: Path, *changes: str, out: str = "run") -> Experiment:
    """The recipe, changed, bound to ``folder``/``out``; nothing is begun."""
    recipe = folder / "recipe.yaml"
    return Experiment(
        RunDir(folder / out), load_recipe(str(recipe if recipe.is_file() else write_recipe(folder)), changes)
    )


def begun(folder: Path, *changes: str) -> Experiment:
    """The same, begun."""
    of = experiment(folder, *changes)
    with of.run.lock():
        of.begin("name: scripted\n")
    return of


def told(run: RunDir, event: str) -> list[dict[str, object]]:
    """The log's entries of one kind."""
    lines = run.log.read_text(encoding="utf-8").splitlines() if run.log.is_file() else []
    return [entry for line in lines if (entry := json.loads(line))["event"] == event]
