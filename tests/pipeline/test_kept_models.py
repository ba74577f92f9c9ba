"""``training.keep_models``: weights that nothing needs any more are deleted, never those that something still needs."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from run_folders import begin_recipe, model_folder

from metareward.errors import UserError
from metareward.pipeline import benchmarks
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.pipeline.kept_models import delete_old_weights, most_models
from metareward.pipeline.status import status_text
from metareward.storage.custody import delete_weights, fingerprint_model, require_weights, weights_deleted
from metareward.storage.run_dir import mark_done


def weighty(bound: BoundRecipe) -> list[int]:
    """The models that have their weights."""
    return [t for t in range(bound.last + 1) if list(bound.model(t).glob("*.safetensors"))]


def made(tmp_path: Path, *changes: str, upto: int = 2) -> BoundRecipe:
    """A run whose first iterations are done."""
    bound = begin_recipe(tmp_path, *changes)
    for t in range(1, upto + 1):
        model_folder(bound.model(t), f"m{t}")
        mark_done(bound.run.iteration(t).done, {"model": f"M{t}"})
    return bound


def test_deleted_weights_leave_the_digest(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", "weights")
    (folder / "adapter").mkdir()
    before = fingerprint_model(folder)
    require_weights(folder)
    assert delete_weights(folder, "why not") and weights_deleted(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["adapter", "config.json", "weights_deleted.json"]
    assert fingerprint_model(folder) == before
    assert not delete_weights(folder, "another time")
    with pytest.raises(UserError, match=r"its weights are deleted \(why not\); fix: name a model that has"):
        require_weights(folder)
    (folder / "weights_deleted.json").write_text("{")
    with pytest.raises(UserError, match=r"weights_deleted\.json: can't be read"):
        fingerprint_model(folder)


def test_a_kill_while_weights_are_deleted_is_made_good(tmp_path: Path) -> None:
    """The digest is written first, so what a kill leaves is that with all weights, or with some."""
    folder = model_folder(tmp_path / "m", "one half")
    (folder / "more.safetensors").write_text("the other")
    before = fingerprint_model(folder)
    shutil.copytree(folder, tmp_path / "whole")
    delete_weights(folder, "x")
    for left in (["model.safetensors", "more.safetensors"], ["more.safetensors"]):
        for name in left:
            shutil.copy(tmp_path / "whole" / name, folder / name)
        assert fingerprint_model(folder) == before
        assert delete_weights(folder, "x") and not list(folder.glob("*.safetensors"))


def test_a_model_goes_when_a_later_iteration_is_done(tmp_path: Path) -> None:
    bound = made(tmp_path, "training.keep_models=1", upto=1)
    model_folder(bound.model(2), "being evaluated")
    delete_old_weights(bound)
    assert weighty(bound) == [0, 1, 2]  # M1 is M2's reference until iteration 2 is done
    mark_done(bound.run.iteration(2).done, {"model": "M2"})
    delete_old_weights(bound)
    delete_old_weights(bound)
    assert weighty(bound) == [0, 2]
    logged = [json.loads(line) for line in bound.run.log.read_text().splitlines()]
    assert [each["folder"] for each in logged if each["event"] == "weights deleted"] == ["iter-1/model"]
    assert "M1 (weights deleted)" in status_text(bound.run)


@pytest.mark.parametrize("changes", [(), ("training.keep_models=all",), ("training.keep_models=2",)], ids=str)
def test_so_many_stay(tmp_path: Path, changes: tuple[str, ...]) -> None:
    bound = made(tmp_path, *changes)
    delete_old_weights(bound)
    assert weighty(bound) == [0, 1, 2]


def test_what_the_recipe_names_stays(tmp_path: Path) -> None:
    bound = made(tmp_path, "training.keep_models=1")
    judged = bound.recipe.training.checkpoint_selection.model_copy(update={"judge": str(bound.model(1))})
    training = bound.recipe.training.model_copy(update={"checkpoint_selection": judged})
    recipe = bound.recipe.model_copy(update={"training": training})
    delete_old_weights(BoundRecipe(bound.run, recipe))
    assert weighty(bound) == [0, 1, 2]


def test_the_most_at_one_time(tmp_path: Path) -> None:
    recipe = made(tmp_path, upto=0).recipe
    for keep, most in ((1, 2), (2, 2), (5, 2), ("all", 2)):
        changed = recipe.training.model_copy(update={"keep_models": keep})
        assert most_models(recipe.model_copy(update={"training": changed})) == most


def test_a_benchmark_that_comes_later_measures_the_models_that_are_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"prompt": "Write about rain."}\n')
    made(tmp_path, "training.keep_models=1")
    asked = f'benchmarks=[{{"kind": "alpaca_eval", "name": "late", "questions": "{questions}"}}]'
    bound = begin_recipe(tmp_path, "training.keep_models=1", asked)
    delete_old_weights(bound)
    with caplog.at_level(logging.WARNING):
        benchmarks.check(bound)
    assert "benchmarks.late: M1 isn't measured: weights that it needs are deleted" in caplog.text
    assert [benchmarks.needs_model(bound, t) for t in (0, 1, 2)] == [True, False, True]
