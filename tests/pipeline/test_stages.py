from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
from run_folders import HELD_OUT, PROMPTS, begin_recipe, log_entries, model_folder
from scripted_models import reply, role_of

from metareward.engines.base import EngineError, ScriptedEngine
from metareward.errors import UserError
from metareward.evaluation.held_out import HeldOut, held_out_records
from metareward.generation.progress import SILENT
from metareward.pipeline import stages
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.storage.pair_files import read_pairs
from metareward.storage.records import read_records
from metareward.storage.store import RecordStore
from metareward.types import Completion, Messages, ModelRole, PromptRecord, Sampling


class Failing:
    """A scripted engine that can't answer some prompts."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.inner = ScriptedEngine(reply)
        self.bad = [f"about {int(each[1:])}." for each in ids]

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        if any(messages[-1].content.endswith(each) for each in self.bad):
            raise EngineError("too long\nfor this model")
        return await self.inner.complete(messages, sampling, n, role)

    async def aclose(self) -> None:
        pass


def silent_judge(messages: Messages, sampling: Sampling, index: int) -> str:
    """It answers, and its judgments end in nothing."""
    return reply(messages, sampling, index) if role_of(messages) == "actor" else "Rather good."


def generate(of: BoundRecipe, t: int, engine: ScriptedEngine | Failing | None = None) -> ScriptedEngine | Failing:
    engine = engine or ScriptedEngine(reply)
    asyncio.run(stages.generate(of, t, engine, SILENT))
    return engine


def measure(of: BoundRecipe, t: int, engine: ScriptedEngine | Failing | None = None) -> ScriptedEngine | Failing:
    engine = engine or ScriptedEngine(reply)
    asyncio.run(stages.evaluate_model(of, t, engine, SILENT))
    return engine


def records(of: BoundRecipe, t: int) -> tuple[PromptRecord, ...]:
    with RecordStore.read(of.run.iteration(t).records) as store:
        return tuple(read_records(store))


def held_out(of: BoundRecipe, t: int) -> tuple[HeldOut, ...]:
    with RecordStore.read(of.run.iteration(t).evaluation / "records.sqlite") as store:
        return held_out_records(store)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_generating_asks_for_what_is_owed_and_then_for_nothing(tmp_path: Path) -> None:
    of = begin_recipe(tmp_path)
    assert stages.records_pending(of, 1)
    generate(of, 1)
    assert {record.prompt.id for record in records(of, 1)} == {prompt.id for prompt in of.prompts(1)}
    assert not stages.records_pending(of, 1)
    engine = generate(of, 1)
    assert isinstance(engine, ScriptedEngine) and engine.calls == []


def test_nothing_is_owed_after_the_last_iteration(tmp_path: Path) -> None:
    assert not stages.records_pending(begin_recipe(tmp_path), 3)


def test_a_store_whose_making_was_cut_short_is_made(tmp_path: Path) -> None:
    of = begin_recipe(tmp_path)
    connection = sqlite3.connect(of.run.iteration(1).records)
    connection.execute("PRAGMA journal_mode = WAL")  # what is there before the tables are
    connection.close()
    assert stages.records_pending(of, 1)
    generate(of, 1)
    assert len(records(of, 1)) == PROMPTS


def test_records_of_another_model_are_refused(tmp_path: Path) -> None:
    of = begin_recipe(tmp_path)
    generate(of, 1)
    model_folder(tmp_path / "model", "other weights")
    with pytest.raises(UserError, match=r"records\.sqlite: the records here were made with other settings: model"):
        stages.records_pending(of, 1)


def test_a_few_prompts_may_be_left_behind_and_the_log_says_so(tmp_path: Path) -> None:
    of = begin_recipe(tmp_path, "prompts.per_iteration=40", "iterations.2=drop", *forty(tmp_path))
    bad = of.prompts(1)[7].id
    generate(of, 1, Failing([bad]))
    assert len(records(of, 1)) == 39
    (entry,) = log_entries(of.run, "skipped prompts")
    assert entry["stage"] == "iteration 1"
    assert entry["note"] == f"1 of 40 prompts failed, the first ({bad}) with: too long for this model"
    stages.make_pairs(of, 1)
    assert not stages.records_pending(of, 1)


def forty(folder: Path) -> tuple[str, ...]:
    rows = ({"id": f"p{number:03d}", "prompt": f"Say something about {number}."} for number in range(80))
    (folder / "forty.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (f"prompts.source={folder}/forty.jsonl", "prompts.held_out=30")


def test_many_prompts_left_behind_stop_the_run(tmp_path: Path) -> None:
    of = begin_recipe(tmp_path)
    bad = [prompt.id for prompt in of.prompts(1)[:2]]
    with pytest.raises(UserError, match=r"^iteration 1: 2 of 8 prompts failed, the first \(p\d+\) with: too long"):
        generate(of, 1, Failing(bad))
    assert len(records(of, 1)) == PROMPTS - 2  # kept
    assert stages.records_pending(of, 1)
    engine = generate(of, 1)
    assert isinstance(engine, ScriptedEngine)
    assert sum(call.messages[-1].content.startswith("Say") for call in engine.calls) == 2


def test_pairs_come_with_a_summary(tmp_path: Path) -> None:
    of = begin_recipe(tmp_path)
    generate(of, 1)
    stages.make_pairs(of, 1)
    folder = of.run.iteration(1)
    summary = json.loads(folder.summary.read_text())
    assert summary["prompts"] == PROMPTS
    assert len(read_pairs(folder.pairs("actor"))) == summary["actor_pairs"] > 0
    assert len(read_pairs(folder.pairs("judge"))) == summary["judge_pairs"] > 0
    dropped = sum(sum(reasons.values()) for reasons in summary["dropped"].values())
    assert len(folder.dropped.read_text().splitlines()) == dropped
    assert summary["actor_pairs"] + summary["judge_pairs"] + dropped == 2 * PROMPTS


def test_pairs_are_made_once(tmp_path: Path) -> None:
    of = begin_recipe(tmp_path)
    generate(of, 1)
    stages.make_pairs(of, 1)
    folder = of.run.iteration(1)
    folder.records.unlink()  # nothing looks at it again
    before = contents(folder.path)
    stages.make_pairs(of, 1)
    assert contents(folder.path) == before
    assert not stages.records_pending(of, 1)


def test_pairs_cut_short_are_made_again_the_same(tmp_path: Path) -> None:
    of = begin_recipe(tmp_path)
    generate(of, 1)
    folder = of.run.iteration(1)
    folder.dropped.mkdir()  # where a file must go: this stops it half way
    with pytest.raises(UserError, match="can't be written"):
        stages.make_pairs(of, 1)
    assert folder.pairs("actor").is_file() and not folder.summary.exists()
    assert not stages.records_pending(of, 1)  # complete, though its pairs aren't
    half = folder.pairs("actor").read_bytes()
    folder.dropped.rmdir()
    stages.make_pairs(of, 1)
    assert folder.pairs("actor").read_bytes() == half
    assert folder.summary.is_file()


def test_without_any_pairs_training_says_why_in_one_line(tmp_path: Path) -> None:
    of = begin_recipe(tmp_path)
    generate(of, 1, ScriptedEngine(silent_judge))
    stages.make_pairs(of, 1)
    with pytest.raises(UserError) as stop:
        stages.train(of, 1, SILENT)
    line = str(stop.value)
    assert "\n" not in line
    assert "iteration 1 gave no pairs: of " in line and "judgments 0 have a readable score" in line
    assert "8 actor too few valid answers" in line and "8 judge" in line
    assert "dropped.jsonl there says why for each prompt" in line
    assert not of.model(1).exists()


def test_measuring_writes_one_file_of_figures(tmp_path: Path) -> None:
    of = begin_recipe(tmp_path)
    assert stages.evaluation_pending(of, 0)
    measure(of, 0)
    assert not stages.evaluation_pending(of, 0)
    found = json.loads((of.run.iteration(0).evaluation / "model.json").read_text())
    assert (found["model"], found["prompts"]) == ("M0", HELD_OUT)
    assert found["metrics"]["answer_chars"]["n"] == 2 * HELD_OUT
    assert not {"answer_quality", "judgment_exact", "meta_accuracy"} & found["metrics"].keys()  # nobody knows the truth
    assert set(found["score_histogram"]) == {"own", "anchor"}
    assert found["seconds"] >= 0
    (entry,) = log_entries(of.run, "evaluated")
    assert entry["model"] == "M0"


def test_measuring_goes_on_where_it_stopped(tmp_path: Path) -> None:
    of = begin_recipe(tmp_path)
    with pytest.raises(UserError, match=r"^evaluating M0: 1 of 5 prompts failed"):
        measure(of, 0, Failing([of.held_out[0].id]))
    assert stages.evaluation_pending(of, 0)
    engine = measure(of, 0)
    assert isinstance(engine, ScriptedEngine)
    assert {call.messages for call in engine.calls if len(call.messages[0].content) < 40} == {of.held_out[0].messages}


def test_every_model_judges_the_answers_of_the_first(tmp_path: Path) -> None:
    of = begin_recipe(tmp_path)
    model_folder(of.model(1), "m1")
    measure(of, 0)
    measure(of, 1)
    before, after = held_out(of, 0), held_out(of, 1)
    for first, later in zip(before, after, strict=True):
        assert [answer.text for answer in later.anchors_K] == [answer.text for answer in first.own]


def test_a_prompt_that_the_first_model_left_behind_is_measured_with_no_other(tmp_path: Path) -> None:
    of = begin_recipe(tmp_path, "prompts.per_iteration=20", *forty(tmp_path))
    model_folder(of.model(1), "m1")
    measure(of, 0, Failing([of.held_out[3].id]))
    assert len(held_out(of, 0)) == 29
    measure(of, 1)
    assert [each.prompt.id for each in held_out(of, 1)] == [each.prompt.id for each in held_out(of, 0)]
