"""Size and speed of the report of a made-up run of the papers' size: 4 iterations of 5,000 prompts, each with 7
answers, 77 judgments and 110 meta-judgments (the records of bench/viewer.py, the same ones in each iteration).

    .venv/bin/python bench/report.py [--folder DIR] [--prompts 5000]

Makes the run (some 700 MB) in DIR, or a temporary folder, if it isn't there, writes the report as a command, and opens
it in headless Chromium at two widths: ``load_seconds`` is from the navigation's start to the end of the load event.
Writes bench/results/report.json.
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from metareward.config.schema import load_recipe, pairs_rules
from metareward.evaluation.held_out import HeldOut, held_out_to_json
from metareward.method.health_checks import HealthCheck, check_gates
from metareward.method.judge_health import Scale, record_figures
from metareward.storage.atomic import write_atomic
from metareward.storage.pair_files import read_pairs
from metareward.storage.records import read_records
from metareward.storage.run_dir import RunDir, mark_done
from metareward.storage.store import RecordStore
from metareward.types import Candidate, Judgment, Message, Prompt, Scored
from viewer import Texts, main, make

RESULT = Path(__file__).parent / "results" / "report.json"
ITERATIONS, HELD_OUT, STEPS, FIGURES = 4, 256, 1000, 500
METRICS = ("answer_self_score", "answer_chars", "judgment_valid", "judgment_chars", "anchor_score", "meta_valid")


def make_run(folder: Path, prompts: int) -> RunDir:
    """Records and pairs of four iterations, with trainings, evaluations and judge health."""
    run = make(folder, prompts)
    recipe = load_recipe(str(run.resolved))
    first = run.iteration(1)
    rules = pairs_rules(recipe, 1)
    with RecordStore.read(first.records) as store:
        records = tuple(islice(read_records(store), FIGURES))
    pairs = [pair for kind in ("actor", "judge") for pair in read_pairs(first.path / "pairs" / f"{kind}.parquet")]
    keys = {record.prompt.id for record in records}
    pairs = [pair for pair in pairs if pair.prompt_id in keys]
    figures = record_figures(records, pairs, Scale(0.0, 5.0), rules.min_valid, rules.judge_pairs)
    checks = []
    for t in range(ITERATIONS + 1):
        place = run.iteration(t)
        if t > 1:
            shutil.copytree(first.path / "pairs", place.path / "pairs", ignore=lambda *_: {first.summary.name})
            for path, copy in ((first.records, place.records), (first.dropped, place.dropped)):
                os.link(path, copy)
        if t:
            summary = json.loads(first.summary.read_text())
            write_atomic(place.summary, json.dumps({**summary, "iteration": t, "prompts": prompts}))
            write_training(place.path / "training.jsonl", t)
            mark_done(place.done, {"model": f"M{t}", "seconds": {"generating": 3600.0, "training": 900.0}})
            checks.append(HealthCheck("records", f"M{t - 1}", t, check_gates(figures, recipe.gate_limits)))
        write_evaluation(run, t)
    write_atomic(run.judge_health, json.dumps([asdict(check) for check in checks]))
    return run


def write_training(path: Path, t: int) -> None:
    """A log of so many steps."""
    draw = random.Random(t)
    lines = []
    for step in range(1, STEPS + 1):
        margin = 1 - math.exp(-step / 300) + draw.gauss(0, 0.05)
        loss = math.log(1 + math.exp(-margin))
        lines.append({"step": step, "loss": loss, "rewards/margins": margin, "rewards/accuracies": draw.random()})
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines))


def write_evaluation(run: RunDir, t: int) -> None:
    """Made-up figures of M_t, and its answers to held-out prompts."""
    texts = Texts(t)
    measures = {key: {"mean": 3 + t / 9, "low": 2.9 + t / 9, "high": 3.1 + t / 9, "n": HELD_OUT} for key in METRICS}
    paired = {"mean": t / 9, "low": t / 9 - 0.1, "high": t / 9 + 0.1, "n": HELD_OUT}
    evaluation = {"model": f"M{t}", "prompts": HELD_OUT, "seconds": 60.0, "metrics": measures}
    evaluation["differences"] = {"answer_chars": paired} if t else {}
    evaluation["score_histogram"] = {"own": {str(score): 50 + score * t for score in range(6)}, "anchor": {"3": 300}}
    write_atomic(run.iteration(t).evaluation / "model.json", json.dumps(evaluation))
    with RecordStore.open(run.iteration(t).evaluation / "records.sqlite", {"made": "up", "model": f"M{t}"}) as store:
        for number in range(HELD_OUT):
            prompt = Prompt(f"held-{number:03d}", (Message("user", f"Held-out question {number}?"),))
            judgment = Judgment(0, texts.take(600), 150, Scored(3.0))
            own = (Candidate(0, texts.take(1500), "stop", 350, (judgment,)),)
            store.put(prompt.id, held_out_to_json(HeldOut(prompt, own, (), ())))


def measure(run: RunDir) -> dict[str, object]:
    """Writing and opening the report."""
    code = "from metareward.cli.main import main; main()"
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", code, "report", str(run.path)], check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "iterations": ITERATIONS,
        "prompts_per_iteration": json.loads(run.iteration(1).summary.read_text())["prompts"],
        "records_mb_per_iteration": run.iteration(1).records.stat().st_size / 2**20,
        "written": {
            "seconds": seconds,
            "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "mb": after.ru_maxrss / 1024,
        },
        "file_mb": run.report.stat().st_size / 2**20,
        "load_average": os.getloadavg()[0],
        "load_seconds": {str(width): opened(run.report, width) for width in (1280, 390)},
    }


def opened(path: Path, width: int, times: int = 7) -> dict[str, float]:
    """Median and slowest load in Chromium, each in a new page."""
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("METAREWARD_CHROMIUM") or shutil.which("chromium")
    event = "performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        found = []
        for _ in range(times):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.goto(path.as_uri())
            found.append(float(page.evaluate(event)))
            page.close()
        browser.close()
    return {"median": statistics.median(found), "max": max(found), "n": times}


if __name__ == "__main__":
    main(__doc__, "report-run", make_run, measure, RESULT)
