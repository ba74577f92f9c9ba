"""A run whose files aren't what it made: `verify` names them, a start refuses them, `repair` has them made again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from flips import Flip, apply, contents, draw_flips, outcome
from run_folders import begin_fork, bound_recipe, made, model_folder, work
from scripted_models import reply, role_of

from metareward.engines.base import ScriptedEngine
from metareward.errors import UserError
from metareward.generation.progress import SILENT
from metareward.method.verdict_format import READER_VERSION
from metareward.pipeline import stages
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.pipeline.loop import require_whole_run
from metareward.pipeline.repair import repair
from metareward.pipeline.verify import verification_text, verify
from metareward.report.write import write_report
from metareward.storage import manifest
from metareward.storage.run_dir import RunDir
from metareward.storage.serialization import canonical_json
from metareward.storage.store import RecordStore, as_stored, checksum
from metareward.types import Messages, Sampling


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> BoundRecipe:
    """M0 is evaluated, iteration 1 has records and pairs."""
    folder = tmp_path_factory.mktemp("begun")
    of = bound_recipe(folder)
    with of.run.lock():
        of.begin((folder / "recipe.yaml").read_text())
    work(of)
    write_report(of.run)
    return of


@pytest.fixture
def of(begun: BoundRecipe, tmp_path: Path) -> BoundRecipe:
    """A copy that a test may damage."""
    return BoundRecipe(RunDir(Path(shutil.copytree(begun.run.path, tmp_path / "run"))), begun.recipe)


def problems(of: BoundRecipe) -> dict[str, str]:
    return {each.name: each.problem for each in verify(of.run).findings}


def altered(path: Path) -> None:
    """Another content, as an editor leaves it."""
    path.write_bytes(path.read_bytes() + b" ")


def change_record(of: BoundRecipe, change: Callable[[str], str], with_checksum: bool) -> str:
    """Change the first record of iteration 1; its key."""
    with sqlite3.connect(of.run.iteration(1).records) as connection:
        key, document = connection.execute("SELECT key, document FROM record ORDER BY key").fetchone()
        changed = change(document)
        connection.execute("UPDATE record SET document = ? WHERE key = ?", (changed, key))
        if with_checksum:
            connection.execute("UPDATE record SET checksum = ? WHERE key = ?", (checksum(key, changed), key))
    connection.close()
    return str(key)


def another_score(document: str) -> str:
    """The first readable judgment has another score than its text."""
    record = json.loads(document)
    judgments = [each for answer in record["candidates_K"] for each in answer["judgments_N"]]
    reading = next(each["reading"] for each in judgments if each["reading"]["kind"] == "scored")
    reading["score"] = 1.0
    return json.dumps(record)


def change_reader_version(of: BoundRecipe, version: int | None) -> None:
    """As if another version of the readers had read iteration 1's records; None: one that didn't name itself."""
    folder, fields = of.run.iteration(1), of.generation_fingerprint(1)
    fields = {**fields, "judgments.reader_version": version} if version is not None else fields
    stored = {each: value for each, value in as_stored(fields).items() if version or each != "judgments.reader_version"}
    with sqlite3.connect(folder.records) as connection:
        connection.execute("DELETE FROM fingerprint")
        connection.executemany("INSERT INTO fingerprint VALUES (?, ?)", stored.items())
        digest = hashlib.sha256(canonical_json(stored).encode()).hexdigest()
        connection.execute("UPDATE fingerprint_checksum SET sha256 = ?", (digest,))
    connection.close()
    manifest.record(of.run, folder.records)
    manifest.record(of.run, folder.summary, made_from=manifest.entry_of(folder.records).sha256)


def test_records_that_another_version_of_the_readers_read_are_not_called_damaged(of: BoundRecipe) -> None:
    change_record(of, another_score, with_checksum=True)
    change_reader_version(of, READER_VERSION + 1)
    found = verify(of.run)
    assert not found.findings
    said = verification_text(of.run, found).splitlines()[1]
    assert said.startswith("not compared with its texts: iter-1/records.sqlite: its scores and verdicts were read by")
    assert said.endswith(f"version {READER_VERSION + 1} of the readers, and this is {READER_VERSION}")
    shutil.rmtree(of.run.iteration(1).summary.parent)
    named = f"with other settings: judgments.reader_version {READER_VERSION + 1} -> {READER_VERSION};"
    with pytest.raises(UserError, match=named):
        stages.make_pairs(of, 1)


def test_records_without_a_reader_version_were_read_by_the_first(of: BoundRecipe) -> None:
    before = made(of)
    change_reader_version(of, None)
    found = verify(of.run)
    assert not found.findings and not found.other_readers
    shutil.rmtree(of.run.iteration(1).summary.parent)
    stages.make_pairs(of, 1)
    assert made(of) == before


def test_a_run_is_whole_and_reading_it_changes_nothing(of: BoundRecipe) -> None:
    before = {path: path.stat().st_mtime_ns for path in of.run.path.rglob("*") if path.is_file()}
    found = verify(of.run)
    assert not found.findings
    assert found.records == 13 and found.unfinished == ("iteration 1", "iteration 2")
    assert verification_text(of.run, found).splitlines()[-1] == "all of it is what the run made"
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert list(repair(of.run)) == []
    assert of.run.report.is_file()


SEED = 1


def test_every_flipped_bit_is_noticed_or_changes_nothing_that_is_used(of: BoundRecipe) -> None:
    before = contents(of.run)
    outcomes = Counter(outcome(of.run, flip, before) for flip in draw_flips(of.run, SEED, 25))
    print(SEED, outcomes)
    assert outcomes["noticed"] > 12
    assert not verify(of.run).findings


@pytest.mark.parametrize("with_checksum", [False, True])
def test_a_record_with_another_score_than_its_text_is_made_again_and_no_other(
    of: BoundRecipe, with_checksum: bool
) -> None:
    before = made(of)
    key = change_record(of, another_score, with_checksum)
    why = "is stored as 1, and its text says" if with_checksum else "its checksum is another one"
    assert f'"{key}": ' in problems(of)["iter-1/records.sqlite"]
    assert why in problems(of)["iter-1/records.sqlite"]
    shutil.rmtree(of.run.iteration(1).summary.parent)
    with pytest.raises(UserError, match=rf'records.sqlite: "{key}": .*{why}.*verify RUN --repair') as caught:
        stages.make_pairs(of, 1)
    assert "\n" not in str(caught.value)
    done = list(repair(of.run))
    assert done[-1] == "iter-1/records.sqlite: 7 records kept; the next start makes the others again"
    engine = ScriptedEngine(reply)
    asyncio.run(stages.generate(of, 1, engine, SILENT))
    assert [each for each in engine.calls if role_of(each.messages) == "actor"][1:] == []
    stages.make_pairs(of, 1)
    assert made(of) == before
    assert not problems(of)


def test_a_record_is_made_again_under_pairs_that_stay(of: BoundRecipe) -> None:
    before, pairs = made(of), of.run.iteration(1).pairs("actor").stat().st_mtime_ns
    change_record(of, another_score, with_checksum=False)
    list(repair(of.run))
    require_whole_run(of.run)
    manifest.bring_up_to_date(of.run)
    assert stages.records_pending(of, 1)
    assert work(of)["actor"] == 1
    assert made(of) == before and of.run.iteration(1).pairs("actor").stat().st_mtime_ns == pairs
    assert not problems(of) and not stages.records_pending(of, 1)


def other_reply(messages: Messages, sampling: Sampling, index: int) -> str:
    return f"{reply(messages, sampling, index)} Or so." if role_of(messages) == "actor" else "Score: 2"


def test_what_comes_out_differently_makes_the_pairs_out_of_date(of: BoundRecipe) -> None:
    change_record(of, another_score, with_checksum=False)
    list(repair(of.run))
    with pytest.raises(UserError, match="the pairs beside it were built from other records"):
        asyncio.run(stages.generate(of, 1, ScriptedEngine(other_reply), SILENT))
    with pytest.raises(UserError, match="the pairs beside it were built from other records"):
        stages.make_pairs(of, 1)
    assert problems(of) == {"iter-1/pairs": "were built from other records than those that are there"}
    list(repair(of.run))
    assert work(of) == Counter()
    assert not problems(of)


FILES = (
    *("iter-1/pairs/actor.parquet", "iter-1/pairs/summary.json", "iter-1/dropped.jsonl", "iter-1/prompts.jsonl"),
    *("iter-0/eval/model.json", "iter-0/eval/records.sqlite", "iter-0/prompts.jsonl", "iter-0/seconds.json"),
    *("recipe.yaml", "inputs.json", "environment.json", "manifest.json", "iter-1/records.sqlite"),
)


@pytest.mark.parametrize("gone", [False, True])
def test_files_that_are_altered_or_gone_are_made_again(of: BoundRecipe, gone: bool) -> None:
    before = made(of)
    for name in FILES:
        path = of.run.path / name
        if gone:
            path.unlink()
        elif path.suffix in (".sqlite", ".parquet", ".json"):
            apply(Flip(path, 18, 3))
        else:
            altered(path)
    assert problems(of).keys() == {*FILES}
    done = list(repair(of.run))
    assert len(done) == len(FILES)
    assert not problems(of)
    require_whole_run(of.run)
    manifest.bring_up_to_date(of.run)
    work(of)
    assert made(of) == before
    assert not problems(of)


@pytest.mark.parametrize("damage", [altered, Path.unlink])
def test_the_recipe_is_written_again_from_what_was_given(of: BoundRecipe, damage: Callable[[Path], None]) -> None:
    text = of.run.resolved.read_bytes()
    damage(of.run.resolved)
    altered(of.run.manifest_copy)
    with pytest.raises(UserError, match=r"resolved\.json"):
        require_whole_run(of.run)
    assert list(repair(of.run)) == ["resolved.json: written again from recipe.yaml"]
    assert of.run.resolved.read_bytes() == text
    damage(of.run.resolved)
    altered(of.run.inputs)
    of.run.recipe.write_text("{")
    with pytest.raises(UserError, match=r"[23] of the files can't be made again: .*recipe\.yaml"):
        list(repair(of.run))


def test_a_start_refuses_what_is_altered_and_makes_what_is_gone(of: BoundRecipe) -> None:
    path = of.run.iteration(1).pairs("judge")
    path.unlink()
    require_whole_run(of.run)
    assert problems(of) == {"iter-1/pairs/judge.parquet": "is missing"}
    path.write_bytes(b"no pairs")
    with pytest.raises(UserError, match=r"judge.parquet: has 8 bytes, not [\d,]+; fix: .*verify .*run --repair"):
        require_whole_run(of.run)


def test_a_trained_model_that_is_altered_is_never_used(of: BoundRecipe) -> None:
    model = model_folder(of.run.iteration(1).model, "m1")
    manifest.bring_up_to_date(of.run)
    apply(Flip(model / "model.safetensors", 1, 0))
    with pytest.raises(UserError, match=r"model.safetensors: has another content than when it was made; fix:"):
        asyncio.run(of.engine(1))
    assert "iter-1/model/model.safetensors" in problems(of)
    list(repair(of.run))
    assert not model.exists() and of.run.iteration(1).summary.is_file()


def test_a_models_file_that_another_model_has_is_copied(of: BoundRecipe) -> None:
    model = model_folder(of.run.iteration(1).model, "m1")
    manifest.bring_up_to_date(of.run)
    (model / "config.json").write_text("[]")
    assert list(repair(of.run)) == [f"iter-1/model/config.json: copied from {of.model(0)}, where it is the same"]
    assert (model / "config.json").read_text() == "{}" and not problems(of)


def test_a_fork_is_whole_and_names_its_parent(tmp_path: Path, of: BoundRecipe) -> None:
    fork = begin_fork(tmp_path, of)
    manifest.bring_up_to_date(fork.run)
    assert json.loads(fork.run.fork.read_text())["parent_manifest"] == json.loads(of.run.manifest.read_text())["sha256"]
    assert not verify(fork.run).findings
    altered(of.run.iteration(1).pairs("actor"))
    with pytest.raises(UserError, match=r"run/iter-1/pairs/actor.parquet: has .* bytes"):
        begin_fork(tmp_path, of, out="other")


def test_a_run_of_an_earlier_version_gets_its_manifest_at_the_next_start(of: BoundRecipe) -> None:
    layout = json.loads(of.run.environment.read_text()) | {"layout": 1}
    of.run.environment.write_text(json.dumps(layout))
    of.run.manifest.unlink()
    of.run.manifest_copy.unlink()
    found = verify(of.run)
    assert not found.findings and found.files == 0
    manifest.bring_up_to_date(of.run)
    assert verify(of.run).files > 10


def test_records_without_resolved_json_are_never_deleted(of: BoundRecipe) -> None:
    of.run.resolved.unlink()
    with pytest.raises(UserError, match=r"resolved.json: missing, though there are records or models here; fix:"):
        of.check()
    with RecordStore.read(of.run.iteration(1).records) as store:
        assert len(store.keys()) == 8


def test_a_start_that_was_killed_before_its_last_file_begins_anew(tmp_path: Path) -> None:
    of = bound_recipe(tmp_path)
    text = (tmp_path / "recipe.yaml").read_text()
    with of.run.lock():
        of.begin(text)
        of.run.resolved.unlink()
        assert of.made_nothing
        of.begin(text)
    assert not verify(of.run).findings


def test_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this is no run folder"):
        verify(RunDir(tmp_path))
