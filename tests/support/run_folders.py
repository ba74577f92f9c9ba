"""Run folders of scripted models: one before its start, and one with iteration 1 complete and 2 incomplete."""

from __future__ import annotations

import asyncio
import json
import shutil
import struct
from collections import Counter
from pathlib import Path

from scripted_models import prompts, reply, role_of, settings
from whole_runs import digest, documents

from metareward.config.schema import Recipe, load_recipe, pairs_rules
from metareward.engines.base import ScriptedEngine
from metareward.generation.progress import SILENT
from metareward.generation.runner import annotate_prompts
from metareward.method.judge import Rubric
from metareward.method.pairs import build_pairs, of_kind
from metareward.method.template import load_template
from metareward.pipeline import stages
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.pipeline.fork import fork_of
from metareward.pocket.world import MODEL
from metareward.storage.atomic import write_atomic
from metareward.storage.pair_files import write_dropped, write_pairs
from metareward.storage.records import read_records
from metareward.storage.run_dir import RunDir, mark_done
from metareward.storage.store import RecordStore

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
    model_folder(folder / "model", "m0")
    write_prompts(folder / "prompts.jsonl", 2 * PROMPTS + HELD_OUT)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("MODEL", str(folder / "model")).replace("FOLDER", str(folder)), encoding="utf-8")
    return recipe


def model_folder(folder: Path, weights: str) -> Path:
    """A model folder that can't be loaded."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text(weights)
    return folder


def write_prompts(path: Path, count: int) -> None:
    rows = ({"id": f"p{number:03d}", "prompt": f"Say something about {number}."} for number in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def bound_recipe(folder: Path, *changes: str, out: str = "run") -> BoundRecipe:
    """The recipe with ``changes`` in ``folder``/``out``, bound to it, before its start."""
    recipe = folder / "recipe.yaml"
    return BoundRecipe(
        RunDir(folder / out), load_recipe(str(recipe if recipe.is_file() else write_recipe(folder)), changes)
    )


def begin_recipe(folder: Path, *changes: str) -> BoundRecipe:
    """The same, started."""
    started = bound_recipe(folder, *changes)
    with started.run.lock():
        started.begin("name: scripted\n")
    return started


def work(of: BoundRecipe) -> Counter[str]:
    """Evaluate M0, generate iteration 1 and build its pairs. How often each role was asked."""
    engine = ScriptedEngine(reply)
    if stages.evaluation_pending(of, 0):
        asyncio.run(stages.evaluate_model(of, 0, engine, SILENT))
    if stages.records_pending(of, 1):
        asyncio.run(stages.generate(of, 1, engine, SILENT))
    stages.make_pairs(of, 1)
    return Counter(role_of(call.messages) for call in engine.calls)


def made(of: BoundRecipe) -> dict[str, object]:
    """Everything of M0 and iteration 1 that must not depend on how it was made."""
    folder, measured = of.run.iteration(1), of.run.iteration(0).evaluation
    metrics = json.loads((measured / "model.json").read_text())
    return {
        "records": documents(folder.records),
        "evaluation": documents(measured / "records.sqlite"),
        "metrics": {key: value for key, value in metrics.items() if key != "seconds"},
        **{path.name: digest(path) for path in (folder.pairs("actor"), folder.pairs("judge"), folder.summary)},
        "dropped": digest(folder.dropped),
    }


def begin_fork(folder: Path, parent: BoundRecipe, *changes: str, out: str = "fork") -> BoundRecipe:
    fork = bound_recipe(folder, *changes, out=out)
    with fork.run.lock():
        fork.begin("name: forked\n")
        fork_of(fork, parent.run).take_over()
    return fork


def llama_folder(folder: Path, layers: int = 32, hidden: int = 4096, whole: bool = False) -> Path:
    """A folder that says it holds a Llama, by default of 8 B weights in bfloat16: headers, with zeros if ``whole``.

    Tokenizer and chat template are the pocket model's.
    """
    vocabulary, middle = 31 * hidden, 7 * hidden // 2
    layer = {"q": (hidden, hidden), "k": (hidden // 4, hidden), "v": (hidden // 4, hidden), "o": (hidden, hidden)}
    layer |= {"gate": (middle, hidden), "up": (middle, hidden), "down": (hidden, middle)}
    shapes = {f"{number}.{name}": shape for number in range(layers) for name, shape in layer.items()}
    shapes |= {"embed": (vocabulary, hidden), "head": (vocabulary, hidden)}
    header, place = dict[str, object](), 0
    for name, (rows, columns) in shapes.items():
        end = place + 2 * rows * columns
        header[name] = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [place, end]}
        place = end
    encoded = json.dumps(header).encode()
    folder.mkdir(parents=True, exist_ok=True)
    weights = struct.pack("<Q", len(encoded)) + encoded + bytes(place * whole)
    (folder / "model.safetensors").write_bytes(weights)
    config = {"model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers, "vocab_size": vocabulary}
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (MODEL / name).is_file():
            shutil.copyfile(MODEL / name, folder / name)
    return folder


def begin_with_record(folder: Path, *changes: str) -> BoundRecipe:
    """The same with a first record, so that the folder is bound to the recipe."""
    started = begin_recipe(folder, *changes)
    with RecordStore.open(started.run.iteration(1).records, {}) as store:
        store.put("p", "{}")
    return started


def log_entries(run: RunDir, event: str) -> list[dict[str, object]]:
    """The log's entries about one event."""
    lines = run.log.read_text(encoding="utf-8").splitlines() if run.log.is_file() else []
    return [entry for line in lines if (entry := json.loads(line))["event"] == event]


SMALL_PROMPTS = 6
SMALL_SECONDS = 2.0


def small_run(path: Path) -> RunDir:
    """Iteration 1 is done; iteration 2 has 2 of 6 prompts; 3 and 4 are pending."""
    run = RunDir(path)
    recipe = small_recipe()
    write_atomic(run.resolved, json.dumps(recipe.resolved()))
    write_atomic(run.path / "inputs.json", json.dumps({"the rubric's text": load_template("judge").sha256}))
    entry = {"time": "2026-01-01T00:00:00+00:00", "event": "pairs", "iteration": 1, "actor": 6}
    write_atomic(run.log, json.dumps(entry) + "\nnot json \x1b[31m\n")
    generate(run, 1, SMALL_PROMPTS)
    write_built(run, recipe, 1)
    write_atomic(run.iteration(1).model / "config.json", "{}")
    for t in (0, 1):
        write_atomic(run.iteration(t).evaluation / "model.json", json.dumps(evaluation(t)))
    mark_done(run.iteration(1).done, {"seconds": {"generating": SMALL_SECONDS, "training": 1.0}})
    generate(run, 2, 2)
    return run


def small_recipe() -> Recipe:
    changes = ("answers.k=4", "judgments.n=3", "judgments.min_valid=2", f"prompts.per_iteration={SMALL_PROMPTS}")
    return load_recipe("pocket", ["judgments.rubric=judge", "meta_judgments.rubric=metajudge", *changes])


def generate(run: RunDir, t: int, count: int) -> None:
    path = run.iteration(t).records
    path.parent.mkdir(parents=True)
    with RecordStore.open(path, {"iteration": t}) as store:
        asyncio.run(annotate_prompts(ScriptedEngine(reply), prompts(count), settings(k=4, n=3, seed=t), store, SILENT))
        store.put_failure("bad", "does not fit")


def write_built(run: RunDir, recipe: Recipe, t: int) -> None:
    folder = run.iteration(t)
    with RecordStore.read(folder.records) as store:
        records = list(read_records(store))
    pairs, dropped = build_pairs(records, pairs_rules(recipe, t), Rubric.load("judge"), recipe.seed)
    actor, judge = of_kind(pairs, "actor"), of_kind(pairs, "judge")
    write_pairs(folder.pairs("actor"), actor)
    write_pairs(folder.pairs("judge"), judge)
    write_dropped(folder.dropped, dropped)
    counts = {"actor_pairs": len(actor), "judge_pairs": len(judge), "dropped": {}}
    write_atomic(folder.summary, json.dumps({"iteration": t, "prompts": SMALL_PROMPTS, **counts}))


def evaluation(t: int) -> dict[str, object]:
    return {"model": f"M{t}", "prompts": 3, "seconds": 1.0, "metrics": {}, "score_histogram": {}}
