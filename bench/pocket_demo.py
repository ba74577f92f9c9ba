"""What the demo shows: actor and judge of M0 to MT by the oracle, over seeds, for the pocket preset or an ablation.

Runs the pocket preset once for each seed; a run that is finished is only read. Besides the run's own evaluation, every
model judges the same right answers to held-out instructions, because M0 gives too few perfect answers to tell whether a
judge still gives them 5.

    python bench/pocket_demo.py NAME --seed 1 --seed 2 [--set KEY=VALUE]... [--runs FOLDER]

Prints a table and writes bench/results/pocket_demo.json, where NAME is the setting's: ``preset`` for the shipped one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from rich.table import Table

from metareward.config.schema import load_recipe
from metareward.config.yaml_file import recipe_text
from metareward.engines.local.engine import LocalEngine
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.pipeline.loop import run_recipe
from metareward.pipeline.stages import held_out_of
from metareward.pocket.demonstrations import CLEAN, RUBRIC, answer
from metareward.pocket.tasks import draw_instructions, parse_instruction
from metareward.pocket.world import check_answer
from metareward.seeds import derive
from metareward.storage.run_dir import RunDir
from metareward.storage.run_log import environment, stage_seconds
from metareward.types import Message, Prompt, Sampling, Scored

RESULTS = Path(__file__).parent / "results" / "pocket_demo.json"
RIGHT_ANSWERS, JUDGMENTS = 300, 3
Judged = tuple[float, float | None]  # an answer's true score, and the score of one judgment of it, if readable
Figures = dict[str, float]
# The figures, in the order of the columns, and what they are called there.
COLUMNS = {
    "readable": "readable",
    "readable_perfect": "of perfect",
    "readable_flawed": "of flawed",
    "five_of_right": "5 for right",
    "exact": "exact",
    "rank_correlation": "rank corr.",
    "answer_quality": "answers",
    "answer_chars": "chars",
    "meta_accuracy": "meta",
}


def right_answers(seed: int) -> list[tuple[Prompt, str]]:
    """Held-out instructions with right answers."""
    rng = random.Random(derive(seed, "right answers"))
    drawn = draw_instructions(RIGHT_ANSWERS, derive(seed, "right answers"), held_out=True)
    return [(Prompt(text, (Message("user", text),)), answer(parse_instruction(text), CLEAN, rng)) for text in drawn]


async def judged_right_answers(folder: Path, seed: int) -> list[Judged]:
    """`JUDGMENTS` judgments of each right answer by the model in ``folder``."""
    engine = LocalEngine.open(folder, device="cpu", dtype="auto", max_num_seqs=128, deterministic=False)
    section = load_recipe("pocket").judgments
    sampling = Sampling(section.temperature, section.top_p, section.max_tokens)
    calls = (
        engine.complete(RUBRIC.render(prompt, text), replace(sampling, seed=derive(seed, place)), JUDGMENTS)
        for place, (prompt, text) in enumerate(right_answers(seed))
    )
    written = await asyncio.gather(*calls)
    await engine.aclose()
    readings = (RUBRIC.read(each.text, each.finish) for judgments in written for each in judgments)
    return [(5.0, reading.score if isinstance(reading, Scored) else None) for reading in readings]


def held_out_judgments(experiment: BoundRecipe, t: int) -> Iterable[Judged]:
    """M_t's judgments of M0's answers and of its own."""
    for record in held_out_of(experiment, t):
        for judged in (*record.anchors_K, *(record.own if t else ())):
            truth = float(check_answer(record.prompt.messages[-1].content, judged.text).score)
            for judgment in judged.judgments_N:
                yield truth, judgment.reading.score if isinstance(judgment.reading, Scored) else None


def readable(judged: Iterable[Judged]) -> float:
    """The share of judgments with a score."""
    return fmean(score is not None for _, score in judged)


def figures(experiment: BoundRecipe, t: int) -> Figures:
    """M_t's figures. Readability of perfect and flawed answers counts the right answers among the perfect ones."""
    evaluated = json.loads((experiment.run.iteration(t).evaluation / "model.json").read_text())["metrics"]
    right = asyncio.run(judged_right_answers(experiment.model(t), experiment.recipe.seed))
    judged = [*held_out_judgments(experiment, t), *right]
    return {
        "readable": evaluated["judgment_valid"]["mean"],
        "readable_perfect": readable(each for each in judged if each[0] == 5),
        "readable_flawed": readable(each for each in judged if each[0] < 5),
        "five_of_right": fmean(score == 5 for _, score in right),
        "exact": evaluated["judgment_exact"]["mean"],
        "rank_correlation": evaluated["judgment_rank_correlation"]["mean"],
        "answer_quality": evaluated["answer_quality"]["mean"],
        "answer_quality_low": evaluated["answer_quality"]["low"],
        "answer_quality_high": evaluated["answer_quality"]["high"],
        "answer_chars": evaluated["answer_chars"]["mean"],
        "meta_accuracy": evaluated["meta_accuracy"]["mean"],
        "anchor_score": evaluated["anchor_score"]["mean"],
    }


def measure(folder: Path, seed: int, changes: Sequence[str]) -> dict[str, object]:
    """Run one seed in ``folder``, or read it there: seconds by iteration and figures by model."""
    changes = [f"seed={seed}", *changes]
    recipe = load_recipe("pocket", changes)
    run_recipe(recipe, folder, recipe_text("pocket", changes))
    experiment = BoundRecipe(RunDir(folder), recipe)
    models = {f"M{t}": figures(experiment, t) for t in range(experiment.last + 1)}
    pairs = {}
    for t in range(1, experiment.last + 1):
        summary = json.loads(experiment.run.iteration(t).summary.read_text())
        pairs[str(t)] = {"actor": summary["actor_pairs"], "judge": summary["judge_pairs"]}
    seconds = sum(sum(stage_seconds(experiment.run, t).values()) for t in range(experiment.last + 1))
    return {"seconds": round(seconds, 1), "pairs": pairs, "models": models}


def show(name: str, seeds: dict[str, dict[str, dict[str, Figures]]]) -> None:
    """Each seed's figures, then the means over the seeds."""
    table = Table("seed", "model", *COLUMNS.values(), title=name)
    for seed, found in seeds.items():
        for model, values in found["models"].items():
            table.add_row(seed, model, *(f"{values[key]:.3f}" for key in COLUMNS))
        table.add_section()
    for model in next(iter(seeds.values()))["models"]:
        rows = [found["models"][model] for found in seeds.values()]
        table.add_row("mean", model, *(f"{fmean(row[key] for row in rows):.3f}" for key in COLUMNS))
    Console(width=140).print(table)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--seed", type=int, action="append", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    given = parser.parse_args()
    found = {
        str(seed): measure(given.runs / f"{given.name.replace(' ', '-')}-{seed}", seed, given.set)
        for seed in given.seed
    }
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    before = known.get(given.name, {})
    known[given.name] = {"changes": given.set, "seeds": {**before.get("seeds", {}), **found}}
    RESULTS.write_text(json.dumps({**known, **environment()}, indent=2) + "\n")
    show(given.name, known[given.name]["seeds"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
