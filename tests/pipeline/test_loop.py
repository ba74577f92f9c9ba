"""Whole runs through the command line, on an ordinary small Llama that has nothing of the pocket world."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer
from whole_runs import HELD_OUT, ITERATIONS, PROMPTS, Workspace, documents, files

from metareward.cli.main import main
from metareward.storage.custody import fingerprint_model
from metareward.storage.pair_files import read_pairs
from metareward.storage.records import record_from_json
from metareward.storage.run_dir import RunDir
from metareward.training.lineage import read_lineage
from metareward.types import PairKind

pytestmark = pytest.mark.timeout(3600)

KINDS: tuple[PairKind, ...] = ("actor", "judge")
Called = Callable[..., tuple[int, str, str]]


@pytest.fixture
def finished(workspace: Workspace) -> RunDir:
    return workspace.reference()


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Called:
    """``metareward`` in a folder with some words, in this process: exit code, standard output, standard error."""

    def call(at: Path, *words: str) -> tuple[int, str, str]:
        monkeypatch.chdir(at)
        monkeypatch.setattr(sys, "argv", ["metareward", *words])
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out, told.err

    return call


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def one_line(errors: str) -> str:
    """The only line of standard error."""
    assert errors.startswith("metareward: ") and errors.count("\n") == 1 and errors.endswith("\n"), errors
    return errors


# --- what a run leaves ---


def test_records_of_every_iteration(finished: RunDir) -> None:
    for t in range(1, ITERATIONS + 1):
        records = [record_from_json(document) for document in documents(finished.iteration(t).records).values()]
        assert len(records) == PROMPTS
        assert all(len(answer.judgments_N) == 3 for record in records for answer in record.candidates_K)
        assert any(record.dispute for record in records)


def test_pairs_of_both_kinds(finished: RunDir) -> None:
    summaries = [read(finished.iteration(t).summary) for t in range(1, ITERATIONS + 1)]
    for kind in KINDS:
        made = [read_pairs(finished.iteration(t).pairs(kind)) for t in range(1, ITERATIONS + 1)]
        assert [len(pairs) for pairs in made] == [summary[f"{kind}_pairs"] for summary in summaries]
        assert sum(map(len, made)) > 0


def test_every_model_made_is_a_folder_like_the_first(workspace: Workspace, finished: RunDir) -> None:
    first = AutoModelForCausalLM.from_pretrained(workspace.folder / "model")
    weights = [first.state_dict()]
    for t in range(1, ITERATIONS + 1):
        folder = finished.iteration(t).model
        assert f"\n# recipe-M{t}\n" in (folder / "README.md").read_text()
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert tokenizer.chat_template == AutoTokenizer.from_pretrained(workspace.folder / "model").chat_template
        assert {name: value.shape for name, value in model.state_dict().items()} == {
            name: value.shape for name, value in first.state_dict().items()
        }
        weights.append(model.state_dict())
    for before, after in pairwise(weights):
        assert any(not torch.equal(before[name], after[name]) for name in before)


def test_each_model_starts_from_the_one_before_and_is_held_to_it(workspace: Workspace, finished: RunDir) -> None:
    folders = [workspace.folder / "model", *(finished.iteration(t).model for t in range(1, ITERATIONS + 1))]
    for before, after in pairwise(folders):
        lineage = read_lineage(after)
        assert lineage.reference is not None
        assert lineage.start.sha256 == lineage.reference.sha256 == fingerprint_model(before)
        assert sum(lineage.examples.values()) == lineage.steps > 0


def test_every_model_is_measured_and_nobody_pretends_to_know_the_truth(finished: RunDir) -> None:
    for t in range(ITERATIONS + 1):
        found = read(finished.iteration(t).evaluation / "model.json")
        assert (found["model"], found["prompts"]) == (f"M{t}", HELD_OUT)
        assert {"answer_chars", "judgment_valid", "judgment_chars"} <= found["metrics"].keys()
        assert not {name for name in found["metrics"] if name.startswith(("answer_quality", "answer_perfect"))}
        assert not {"judgment_exact", "judgment_rank_correlation", "meta_accuracy"} & found["metrics"].keys()


def test_the_log_and_the_marks_tell_the_whole_story(finished: RunDir) -> None:
    events = [json.loads(line)["event"] for line in finished.log.read_text(encoding="utf-8").splitlines()]
    checked = ["evaluated", "judge health"]
    assert (
        events == checked + ["pairs", "judge health", "trained", *checked, "benchmark", "iteration done"] * ITERATIONS
    )
    for t in range(1, ITERATIONS + 1):
        mark = read(finished.iteration(t).done)
        assert mark["model"] == f"M{t}"
        assert set(mark["seconds"]) == {"generating", "training", "evaluating", "benchmarks"}


def test_the_report_knows_all_models(finished: RunDir) -> None:
    page = finished.report.read_text(encoding="utf-8")
    assert f"{ITERATIONS} of {ITERATIONS} done" in page
    assert f"M{ITERATIONS}" in page


def test_status_says_that_it_is_finished(finished: RunDir, called: Called) -> None:
    code, told, _ = called(finished.path.parent, "status", str(finished.path))
    assert code == 0 and f"{finished.path}: finished" in told


# --- started again ---


def test_a_finished_run_started_again_does_nothing_and_says_so(
    workspace: Workspace, finished: RunDir, called: Called
) -> None:
    before = files(finished.path)
    recipe = finished.recipe.relative_to(workspace.folder)
    for name in (recipe.parent, recipe):
        code, told, errors = called(workspace.folder, "run", str(name), "--set", NO_SUCH_DEVICE)
        assert (code, errors) == (0, "")
    assert told.endswith("\nfinished before, nothing to do; open the report: reference/report.html\n")
    assert f"M{ITERATIONS}" in told
    assert files(finished.path) == before


# Where it runs may change, so this is the same run; an engine would refuse it.
NO_SUCH_DEVICE = "engine.device=nowhere"


def test_a_finished_run_without_its_report_only_writes_that(
    workspace: Workspace, finished: RunDir, called: Called
) -> None:
    again = RunDir(workspace.folder / "unreported")
    shutil.copytree(finished.path, again.path)
    report = again.report.read_bytes()
    again.report.unlink()
    before = files(again.path)
    code, told, errors = called(
        workspace.folder, "run", "recipe.yaml", "--out", again.path.name, "--set", NO_SUCH_DEVICE
    )
    assert code == 0, errors
    assert told.endswith("\nfinished; open the report: unreported/report.html\n")
    assert again.report.read_bytes() == report
    assert {name for name, seen in files(again.path).items() if before.get(name) != seen} == {"report.html"}


# --- refused ---


def refused(called: Called, at: Path, *words: str) -> str:
    """The one line with which ``metareward run`` ends with 2, having written nothing."""
    before = files(at)
    code, told, errors = called(at, "run", *words)
    assert (code, told) == (2, "")
    assert files(at) == before
    return one_line(errors)


@pytest.fixture
def room(workspace: Workspace, tmp_path: Path) -> Path:
    """A folder with the workspace's model, prompts and recipe, to be spoilt."""
    shutil.copytree(workspace.folder / "model", tmp_path / "model")
    for name in ("prompts.jsonl", "questions.jsonl", "recipe.yaml"):
        shutil.copy(workspace.folder / name, tmp_path)
    return tmp_path


def test_a_second_run_into_the_folder_is_refused(workspace: Workspace) -> None:
    with RunDir(workspace.folder / "taken").lock():
        code, told, errors = workspace.run("taken")
    assert (code, told) == (2, "")
    assert "taken: process " in one_line(errors) and "is running here; fix: wait for it or stop it" in errors


def test_a_typo_in_the_recipe_is_refused(room: Path, called: Called) -> None:
    text = (room / "recipe.yaml").read_text()
    (room / "recipe.yaml").write_text(text.replace("judgments: {n", "judgments: {min_vallid"))
    line = refused(called, room, "recipe.yaml")
    assert "recipe.yaml:4: judgments.min_vallid: unknown key; the nearest known one is judgments.min_valid" in line


def test_a_prompt_that_can_t_be_read_is_refused_by_its_line(room: Path, called: Called) -> None:
    with (room / "prompts.jsonl").open("a") as prompts:
        prompts.write('{"prompt": "unfinished\n')
    line = refused(called, room, "recipe.yaml")
    assert f"prompts.jsonl:{ITERATIONS * PROMPTS + HELD_OUT + 1}: not JSON" in line


def test_a_model_that_isn_t_there_is_refused(room: Path, called: Called) -> None:
    line = refused(called, room, "recipe.yaml", "--set", "model=models/none")
    assert "models/none: no such model folder; fix: name a Hugging Face model folder" in line


def test_a_changed_recipe_on_old_records_is_refused_by_its_fields(
    workspace: Workspace, finished: RunDir, called: Called
) -> None:
    changes = ("--set", "answers.k=3", "--set", "judgments.temperature=0.5")
    line = refused(called, workspace.folder, "recipe.yaml", "--out", finished.path.name, *changes)
    assert "reference: the recipe has changed since this run began: " in line
    assert "answers.k (2 -> 3), judgments.temperature (0.8 -> 0.5); fix: " in line


def test_a_model_that_never_writes_a_score_ends_the_run_and_says_why(room: Path) -> None:
    tiny_llama(room / "model", verdicts=False)
    code, told, errors = Workspace(room).run("run", "--set", "iterations.2=drop")
    assert (code, told) == (2, "")
    assert "Traceback" not in errors
    why = errors.splitlines()[-1]
    # Random letters are a score by chance now and then, never two of one answer's judgments.
    assert re.search(r"iteration 1 gave no pairs: of \d+ judgments [0-3] have a readable score \(6 actor too few", why)
    assert not RunDir(room / "run").iteration(1).model.exists()
    assert why in refused_again(room)


def refused_again(room: Path) -> str:
    """It stops at the same place at once: no engine is needed to know."""
    code, _, errors = Workspace(room).run("run", "--set", "iterations.2=drop", "--set", NO_SUCH_DEVICE)
    changed, why = errors.splitlines(keepends=True)
    assert code == 2 and changed.startswith("settings changed") and "nowhere" in changed
    return one_line(why)
