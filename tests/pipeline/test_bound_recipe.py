from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import (
    HELD_OUT,
    PROMPTS,
    begin_recipe,
    begin_with_record,
    bound_recipe,
    log_entries,
    model_folder,
    write_prompts,
)

from metareward.config.schema import load_recipe
from metareward.errors import UserError
from metareward.generation.verdicts import VerdictRules
from metareward.method.template import load_template
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.storage.run_dir import RunDir
from metareward.storage.store import RecordStore


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_to_begin_writes_down_what_the_run_is_made_of(tmp_path: Path) -> None:
    of = begin_recipe(tmp_path)
    assert of.run.recipe.read_text() == "name: scripted\n"
    assert json.loads(of.run.resolved.read_text()) == of.recipe.resolved()
    assert {"python", "packages", "cores"} <= json.loads(of.run.environment.read_text()).keys()
    assert [len(of.prompts(t)) for t in range(3)] == [HELD_OUT, PROMPTS, PROMPTS]
    assert of.held_out == of.prompts(0)


def test_no_prompt_serves_twice(tmp_path: Path) -> None:
    of = begin_recipe(tmp_path)
    ids = [prompt.id for t in range(3) for prompt in of.prompts(t)]
    assert len(ids) == len(set(ids)) == HELD_OUT + 2 * PROMPTS


def test_begun_once_the_run_no_longer_needs_the_prompts_file(tmp_path: Path) -> None:
    chosen = begin_recipe(tmp_path).prompts(2)
    (tmp_path / "prompts.jsonl").unlink()
    assert begin_recipe(tmp_path).prompts(2) == chosen


def test_to_begin_again_changes_nothing(tmp_path: Path) -> None:
    of = begin_recipe(tmp_path)
    before = contents(of.run.path)
    begin_recipe(tmp_path)
    assert contents(of.run.path) == before


def test_what_a_start_that_died_has_left_is_not_used(tmp_path: Path) -> None:
    dead = begin_recipe(tmp_path, "seed=1", "prompts.held_out=9", "prompts.per_iteration=6")
    held_out_then = dead.held_out
    dead.run.resolved.unlink()  # it is written last
    again = begin_recipe(tmp_path)
    assert again.held_out != held_out_then
    ids = [prompt.id for t in range(3) for prompt in again.prompts(t)]
    assert len(ids) == len(set(ids)) == HELD_OUT + 2 * PROMPTS


def test_held_out_prompts_from_a_file_are_taken_out_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "held.jsonl").write_text('{"id": "x", "prompt": "Say something about 3."}\n{"prompt": "New."}\n')
    of = begin_recipe(tmp_path, f"prompts.held_out={tmp_path}/held.jsonl")
    assert [prompt.messages[0].content for prompt in of.held_out] == ["Say something about 3.", "New."]
    assert "p003" not in {prompt.id for t in (1, 2) for prompt in of.prompts(t)}


@pytest.mark.parametrize(("count", "borrowed"), [(21, 0), (20, 1), (16, 5)])
def test_training_never_lacks_prompts_because_of_the_evaluation(
    tmp_path: Path, count: int, borrowed: int, caplog: pytest.LogCaptureFixture
) -> None:
    bound_recipe(tmp_path)
    write_prompts(tmp_path / "prompts.jsonl", count)
    of = begin_recipe(tmp_path)
    held_out, *trained_on = ({prompt.id for prompt in of.prompts(t)} for t in range(3))
    assert [len(held_out), *map(len, trained_on)] == [HELD_OUT, PROMPTS, PROMPTS]
    assert not trained_on[0] & (trained_on[1] | held_out)
    assert len(held_out & trained_on[1]) == borrowed
    told = f"training leaves {HELD_OUT - borrowed} prompts over, so {borrowed} of the {HELD_OUT} held-out ones"
    assert caplog.text.count(told) == (1 if borrowed else 0)


@pytest.mark.parametrize("preset", ["meta-rewarding", "self-rewarding"])
def test_the_papers_20_000_prompts_are_enough_for_a_preset(tmp_path: Path, preset: str) -> None:
    model_folder(tmp_path / "model", "m0")
    write_prompts(tmp_path / "prompts.jsonl", 20_000)
    given = [f"model={tmp_path / 'model'}", f"prompts.source={tmp_path / 'prompts.jsonl'}"]
    of = BoundRecipe(RunDir(tmp_path / "run"), load_recipe(preset, given))
    of.check()
    assert len({prompt.id for t in range(1, of.last + 1) for prompt in of.choose_prompts(t)}) == 20_000


Break = Callable[[Path], object]


@pytest.mark.parametrize(
    ("spoil", "changes", "line"),
    [
        (lambda at: (at / "model/config.json").unlink(), (), "no model here (config.json is missing)"),
        (lambda at: None, ("model=nowhere",), "nowhere: no model here"),
        (lambda at: None, ("prompts.source=nowhere.jsonl",), "nowhere.jsonl: can't be read: No such file"),
        (
            lambda at: (at / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": 3}\n'),
            (),
            "prompts.jsonl:2: field",
        ),
        (lambda at: write_prompts(at / "prompts.jsonl", 12), (), "iteration 2 needs 16 (2 x 8) and there are 12"),
        (
            lambda at: write_prompts(at / "prompts.jsonl", 16),
            ("prompts.held_out={}/prompts.jsonl",),
            "prompts.held_out: 16 of the 16 prompts of",
        ),
        (lambda at: None, ("judgments.rubric=jugde",), "jugde"),
        (lambda at: (at / "bad.txt").write_text("{question}"), ("judgments.rubric={}/bad.txt",), "answer"),
        (lambda at: None, ("prompts.source=pocket", "prompts.held_out=held.jsonl"), "give a number, not a file"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(
    tmp_path: Path, spoil: Break, changes: tuple[str, ...], line: str
) -> None:
    bound_recipe(tmp_path)
    spoil(tmp_path)
    of = bound_recipe(tmp_path, *(change.replace("{}", str(tmp_path)) for change in changes))
    before = contents(tmp_path)
    with pytest.raises(UserError) as told:
        of.check()
    assert line in str(told.value)
    assert contents(tmp_path) == before


def test_a_changed_recipe_is_refused_by_its_fields(tmp_path: Path) -> None:
    begin_with_record(tmp_path)
    with pytest.raises(UserError) as told:
        bound_recipe(tmp_path, "answers.k=3", "iterations.1.rho=0.2", "iterations.2=drop").check()
    assert "answers.k (4 -> 3)" in str(told.value)
    assert "iterations.1.rho (0.0 -> 0.2)" in str(told.value)
    assert "iterations.2.rho (0.0 -> null)" in str(told.value)
    assert str(told.value).endswith("fix: set it back, or give another folder with --out")


def test_a_start_that_made_nothing_doesnt_bind_the_folder(tmp_path: Path) -> None:
    other = begin_recipe(tmp_path, "answers.k=3", "seed=5")
    with RecordStore.open(other.run.iteration(1).records, {"of": "another recipe"}) as store:
        store.put_failure("p000", "does not fit")
    model_folder(tmp_path / "model", "the right weights")
    of = begin_recipe(tmp_path)
    assert json.loads(of.run.resolved.read_text()) == of.recipe.resolved()
    assert not of.run.iteration(1).records.exists()
    assert [len(of.prompts(t)) for t in range(3)] == [HELD_OUT, PROMPTS, PROMPTS]


def test_training_may_change_until_a_model_is_trained(tmp_path: Path) -> None:
    """A package that training lacks shows after all of iteration 1's generation, none of which depends on it."""
    begin_with_record(tmp_path, "training.method=lora", "iterations.1.learning_rate=1e-5")
    of = begin_recipe(tmp_path, "training.beta=0.2")
    assert json.loads(of.run.resolved.read_text()) == of.recipe.resolved()
    with pytest.raises(UserError, match=r"answers\.k \(4 -> 3\); fix"):
        begin_recipe(tmp_path, "training.beta=0.2", "answers.k=3")
    model_folder(of.model(1), "m1")
    with pytest.raises(UserError, match=r"training\.beta \(0\.2 -> 0\.1\)"):
        begin_recipe(tmp_path)


def test_where_and_how_fast_it_runs_may_change(tmp_path: Path) -> None:
    begin_with_record(tmp_path)
    of = begin_recipe(tmp_path, "engine.device=cuda:1", "engine.dtype=float32", "engine.workers=3", "engine.threads=2")
    assert load_recipe(str(of.run.path)) == of.recipe  # the next start by the folder has these, too
    changes = ("training.device=cpu", "judge_health.readable_judgments.action=note")
    of = begin_recipe(tmp_path, *changes)
    assert load_recipe(str(of.run.path)) == of.recipe
    told = str(log_entries(of.run, "settings changed")[-1]["settings"])
    assert "engine.workers (3 -> " in told and 'training.device ("auto" -> "cpu")' in told
    begin_recipe(tmp_path, *changes)
    assert len(log_entries(of.run, "settings changed")) == 2


def test_a_setting_that_came_later_has_its_default_in_a_run_that_began_before_it(tmp_path: Path) -> None:
    of = begin_with_record(tmp_path)
    kept = json.loads(of.run.resolved.read_text())
    del kept["prompts"]["network"], kept["prompts"]["field"], kept["benchmarks"]
    of.run.resolved.write_text(json.dumps(kept))
    bound_recipe(tmp_path).check()
    with pytest.raises(UserError, match=r"prompts\.field \(null -> \"text\"\)"):
        bound_recipe(tmp_path, "prompts.field=text").check()


def test_prompts_may_be_named_by_field_and_on_the_hub_only_if_the_network_is_allowed(tmp_path: Path) -> None:
    rows = ({"text": f"Ask {number}.", "prompt": "wrong"} for number in range(2 * PROMPTS + 9))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    of = begin_recipe(tmp_path, f"prompts.source={tmp_path}/rows.jsonl", "prompts.field=text")
    assert all(prompt.messages[0].content.startswith("Ask ") for t in (0, 1, 2) for prompt in of.prompts(t))
    with pytest.raises(UserError, match=r"hub:own/set: is on the Hugging Face hub, and the network is off"):
        bound_recipe(tmp_path, "prompts.source=hub:own/set", out="other").check()


def test_files_that_the_recipe_only_names_may_not_change(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(load_template("judge").text)
    change = f"judgments.rubric={tmp_path}/mine.txt"
    begin_with_record(tmp_path, change)
    (tmp_path / "mine.txt").write_text(load_template("judge").text + "Be strict.")
    with pytest.raises(UserError, match=r"changed since this run began: the rubric's text \(\"?\w{12}\"? -> \"?\w{12}"):
        bound_recipe(tmp_path, change).check()
    (tmp_path / "mine.txt").write_text(load_template("judge").text)
    model_folder(tmp_path / "model", "other weights")
    with pytest.raises(UserError, match="the model's files"):
        bound_recipe(tmp_path, change).check()


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_damaged_run_folder_is_one_line(tmp_path: Path, text: str) -> None:
    of = begin_recipe(tmp_path)
    of.run.resolved.write_text(text)
    with pytest.raises(UserError, match=r"resolved\.json: can't be read"):
        bound_recipe(tmp_path).check()


def test_complete_when_every_iteration_is(tmp_path: Path) -> None:
    of = begin_recipe(tmp_path)
    assert not of.complete()
    for t in (1, 2):
        assert not of.complete()
        of.run.iteration(t).done.write_text("{}")
    assert of.complete()


def test_every_iteration_draws_anew_and_every_model_is_measured_alike(tmp_path: Path) -> None:
    of = bound_recipe(tmp_path, "judgments.min_valid=2")
    first, second = of.settings(1), of.settings(2)
    assert (first.meta_judge, second.meta_judge) == (True, False)
    assert replace(second, seed=first.seed, meta_judge=True) == first
    measuring = of.evaluation_settings()
    assert (measuring.k, measuring.n, measuring.min_valid) == (2, 2, 1)
    assert len({first.seed, second.seed, measuring.seed}) == 3


def test_fingerprints_tell_models_iterations_and_purposes_apart(tmp_path: Path) -> None:
    of = begin_recipe(tmp_path)
    model_folder(of.model(1), "m1")
    made = [of.generation_fingerprint(1), of.generation_fingerprint(2), *map(of.evaluation_fingerprint, (0, 1))]
    assert len({json.dumps(each, sort_keys=True) for each in made}) == 4
    before = of.evaluation_fingerprint(1)
    model_folder(of.model(1), "m1, otherwise")
    after = of.evaluation_fingerprint(1)
    assert [key for key in before if before[key] != after[key]] == ["model"]


def test_how_verdicts_are_obtained_reaches_the_judges_and_the_fingerprints(tmp_path: Path) -> None:
    plain = begin_recipe(tmp_path / "plain")
    drawn = begin_recipe(tmp_path / "drawn", "judgments.verdict=constrained", "meta_judgments.retries=2")
    for settings in (drawn.settings(1), drawn.evaluation_settings()):
        assert settings.verdicts == VerdictRules(constrained=True)
        assert settings.meta_verdicts == VerdictRules(retries=2)
    assert plain.settings(1).verdicts == plain.settings(1).meta_verdicts == VerdictRules()
    for before, after in (
        (plain.generation_fingerprint(1), drawn.generation_fingerprint(1)),
        (plain.evaluation_fingerprint(0), drawn.evaluation_fingerprint(0)),
    ):
        changed = {key for key in before if before[key] != after[key]}
        assert changed == {"judgments.verdict", "meta_judgments.retries"}


def test_records_are_fingerprinted_by_the_model_that_generates_them(tmp_path: Path) -> None:
    of = begin_recipe(tmp_path)
    first = of.generation_fingerprint(1)
    models = []
    for weights in ("m1", "m1, otherwise"):
        model_folder(of.model(1), weights)
        models.append(of.generation_fingerprint(2))
        assert of.generation_fingerprint(1) == first
    assert [key for key in models[0] if models[0][key] != models[1][key]] == ["model"]
    assert first["model"] != models[0]["model"]


@pytest.mark.parametrize(
    ("start", "reference", "folders"),
    [
        ("previous", "start", ("iter-1/model", "iter-1/model")),
        ("previous", "m0", ("iter-1/model", "model")),
        ("m0", "start", ("model", "model")),
        ("m0", "m0", ("model", "model")),
    ],
)
def test_what_is_trained_from_what(tmp_path: Path, start: str, reference: str, folders: tuple[str, str]) -> None:
    of = bound_recipe(tmp_path, f"training.start={start}", f"training.reference={reference}")
    job = of.job(2, ("actor", "judge"))
    expected = tuple(of.run.path / each if each.startswith("iter") else tmp_path / each for each in folders)
    assert (job.start, job.reference) == expected
    assert job.data == (of.run.iteration(2).pairs("actor"), of.run.iteration(2).pairs("judge"))
    assert job.output == of.model(2) == of.run.iteration(2).model
    assert of.job(1, ("actor",)).start == tmp_path / "model"


def test_a_job_has_what_the_recipe_says(tmp_path: Path) -> None:
    changes = (
        "iterations.1.num_train_epochs=3",
        "iterations.1.stop_after_epoch=2",
        "iterations.2.learning_rate=3e-7",
        "training.device=cuda",
        "training.beta=0.2",
    )
    of = bound_recipe(tmp_path, *changes)
    first, second = of.job(1, ("actor",)), of.job(2, ("actor",))
    assert (first.settings.num_train_epochs, first.settings.last_epoch) == (3, 2)
    assert (first.settings.device, first.settings.beta) == ("cuda", 0.2)
    assert second.settings.num_train_epochs == of.recipe.training.num_train_epochs
    assert (first.settings.learning_rate, second.settings.learning_rate) == (of.recipe.training.learning_rate, 3e-7)
    assert first.seed != second.seed and 0 <= first.seed < 2**31


def test_only_the_pocket_world_has_an_oracle(tmp_path: Path) -> None:
    assert bound_recipe(tmp_path).oracle is None
    pocket = bound_recipe(tmp_path, "prompts.source=pocket")
    assert pocket.oracle is not None
    pocket.check()


def test_a_bound_recipe_is_a_value(tmp_path: Path) -> None:
    assert bound_recipe(tmp_path) == bound_recipe(tmp_path)
    assert isinstance(bound_recipe(tmp_path), BoundRecipe)


def test_where_training_starts_and_what_it_is_held_to(tmp_path: Path) -> None:
    def folders(*changes: str) -> list[tuple[Path, Path]]:
        jobs = (bound_recipe(tmp_path, *changes).job(t, ("actor",)) for t in (1, 2))
        return [(job.start, job.reference) for job in jobs]

    zero, run = tmp_path / "model", tmp_path / "run"
    one = run / "iter-1/model"
    given = model_folder(tmp_path / "given", "others")
    assert folders() == [(zero, zero), (one, one)]
    assert folders("training.start=m0", "training.reference=previous") == [(zero, zero), (zero, one)]
    assert folders("training.reference=ema") == [(zero, zero), (one, run / "iter-2/reference")]
    assert folders(f"training.start={given}", "training.reference=m0") == [(given, zero), (given, zero)]


def test_how_training_is_done_reaches_the_job(tmp_path: Path) -> None:
    changes = ("method=lora", "lora.r=8", "loss_type=[sigmoid, sft]", "checkpoint_selection.metric=answer_chars")
    bound = bound_recipe(tmp_path, *(f"training.{change}" for change in changes))
    job = bound.job(1, ("actor",))
    assert (job.run_name, job.keep_epochs, job.settings.last_epoch) == ("recipe-M1", True, 10)
    same = {"num_train_epochs", "stop_after_epoch"}
    assert job.settings.model_dump(exclude=same) == bound.recipe.training.model_dump(exclude=same)
    assert not bound_recipe(tmp_path).job(1, ("actor",)).keep_epochs


def test_a_start_of_its_own_may_not_change_later(tmp_path: Path) -> None:
    given = model_folder(tmp_path / "given", "others")
    begin_with_record(tmp_path, f"training.start={given}")
    model_folder(given, "changed")
    with pytest.raises(UserError, match=r"changed since this run began: training\.start's files"):
        begin_recipe(tmp_path, f"training.start={given}")


def test_the_constraint_world_gives_the_prompts_and_the_truth_on_the_rubrics_scale(tmp_path: Path) -> None:
    changes = ("prompts.source=constraints", "prompts.held_out=8", "judgments.max_score=10")
    of = begin_recipe(tmp_path, *changes)
    assert {prompt.id.rsplit("-", 1)[0] for prompt in of.held_out} == {
        "held-out-topic",
        "held-out-combination",
        "held-out-family",
    }
    ids = [prompt.id for t in range(3) for prompt in of.prompts(t)]
    assert len(ids) == len(set(ids)) == 8 + 2 * PROMPTS
    assert of.oracle is not None and of.oracle.full_score == 10
    assert 0 <= of.oracle.answer_score(of.held_out[0], "An answer.") < 10
    with pytest.raises(UserError, match="constraints give a number, not a file"):
        bound_recipe(tmp_path / "other", changes[0], "prompts.held_out=held.jsonl").choose_prompts(1)
