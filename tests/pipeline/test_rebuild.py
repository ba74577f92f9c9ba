from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from run_folders import SMALL_PROMPTS, small_run

from metareward.errors import UserError
from metareward.method.pairs import of_kind
from metareward.pipeline.rebuild import pair_counts_table, rebuild, write_rebuilt
from metareward.storage.pair_files import read_dropped, read_pairs
from metareward.storage.run_dir import IterationDir, RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return small_run(tmp_path / "run")


def test_the_same_rules_give_the_run_s_own_pairs(run: RunDir) -> None:
    first = rebuild(run, [])[0]
    assert (first.t, first.prompts) == (1, SMALL_PROMPTS)
    assert of_kind(first.pairs, "actor") == read_pairs(run.iteration(1).pairs("actor"))
    assert of_kind(first.pairs, "judge") == read_pairs(run.iteration(1).pairs("judge"))
    assert first.dropped == read_dropped(run.iteration(1).dropped)


def test_a_rubric_that_has_changed_since_is_refused(run: RunDir) -> None:
    rubric = run.path / "mine.txt"
    rubric.write_text("{question} {answer} Score:")
    settings = json.loads(run.resolved.read_text())
    run.resolved.write_text(json.dumps({**settings, "judgments": {**settings["judgments"], "rubric": str(rubric)}}))
    with pytest.raises(UserError, match=r"mine.txt: the rubric's text has changed since"):
        rebuild(run, [])


def test_other_rules_give_other_pairs_of_the_iteration_named(run: RunDir) -> None:
    before, after = rebuild(run, []), rebuild(run, ["iterations.1.max_answer_chars=1"])
    assert of_kind(before[0].pairs, "actor") and not of_kind(after[0].pairs, "actor")
    assert any(drop.reason == "chosen_answer_too_long" for drop in after[0].dropped)
    assert after[1] == before[1]


def test_iterations_without_records_are_left_out(run: RunDir) -> None:
    assert [each.t for each in rebuild(run, [])] == [1, 2]
    for t in (1, 2):
        run.iteration(t).records.unlink()
    with pytest.raises(UserError, match="no iteration has records yet"):
        rebuild(run, [])


def test_nothing_of_the_run_is_overwritten(run: RunDir) -> None:
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    changes = ["iterations.1.max_answer_chars=1"]
    rebuilt = rebuild(run, changes)
    folder = write_rebuilt(run, changes, rebuilt, None)
    assert folder.parent == run.path / "rebuilt"
    assert {path: path.read_bytes() for path in before} == before
    assert read_pairs(IterationDir(folder / "iter-1").pairs("actor")) == ()
    assert read_dropped(IterationDir(folder / "iter-2").dropped) == rebuilt[1].dropped
    assert json.loads((folder / "rules.json").read_text())["1"]["max_answer_chars"] == 1


def test_the_folder_follows_from_the_rules(run: RunDir) -> None:
    def folder(*changes: str) -> Path:
        return write_rebuilt(run, changes, rebuild(run, changes), None)

    assert folder("iterations.1.rho=0.1") == folder("iterations.1.rho=0.1") != folder("iterations.1.rho=0.2")


def test_another_folder_can_be_named_but_not_a_run(run: RunDir, tmp_path: Path) -> None:
    rebuilt = rebuild(run, [])
    assert write_rebuilt(run, [], rebuilt, tmp_path / "out") == tmp_path / "out"
    assert len(read_pairs(tmp_path / "out/iter-1/pairs/actor.parquet")) == len(of_kind(rebuilt[0].pairs, "actor"))
    with pytest.raises(UserError, match="this is a run folder"):
        write_rebuilt(run, [], rebuilt, run.path)


@pytest.mark.parametrize("change", ["iterations.1.rho=0.3", "pairs.mask_truncated_completions=false"])
def test_rules_that_decided_which_judgments_were_asked_are_refused(run: RunDir, change: str) -> None:
    assert rebuild(run, [change])
    resolved = json.loads(run.resolved.read_text())
    resolved["judgments"]["first_round"] = 2
    run.resolved.write_text(json.dumps(resolved))
    assert rebuild(run, ["pairs.min_battles=3"])
    with pytest.raises(UserError, match=rf"--set {change}: the judgments came in rounds .* fix: .* --from RUN"):
        rebuild(run, [change])


@pytest.mark.parametrize("change", ["answers.k=5", "judgments.n=4", "seed=1", "training.beta=0.2"])
def test_what_would_need_new_records_or_a_new_model_is_refused(run: RunDir, change: str) -> None:
    with pytest.raises(UserError, match=r"only pairs\.\*, judgments\.min_valid and judge_pairs, .* can change here"):
        rebuild(run, [change])


@pytest.mark.parametrize("change", ["iterations.4=drop", "iterations.5.rho=0"])
def test_iterations_can_not_be_added_or_dropped(run: RunDir, change: str) -> None:
    with pytest.raises(UserError, match="this run has 4; none can be added or dropped here"):
        rebuild(run, [change])


@pytest.mark.parametrize("change", ["pairs.elo_prior=1", "judgments.min_valid=3", "iterations.2.judge_pairs=false"])
def test_what_only_the_reduction_reads_can_change(run: RunDir, change: str) -> None:
    assert len(rebuild(run, [change])) == 2


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this is no run folder"):
        rebuild(RunDir(tmp_path), [])


def test_yields_are_shown_with_reasons(run: RunDir) -> None:
    stream = io.StringIO()
    Console(file=stream, width=160).print(pair_counts_table(rebuild(run, ["iterations.1.max_answer_chars=1"])))
    assert "chosen answer too long" in stream.getvalue()
    assert stream.getvalue().count("actor") == 2
