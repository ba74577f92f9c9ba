from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from metareward.config.schema import Recipe, load_recipe
from metareward.config.yaml_file import PRESETS, fields, nearest_preset, recipe_path, sections_of
from metareward.method.template import load_template
from metareward.storage.serialization import flatten

GIVEN = ["model=m", "prompts.source=p"]

# What each paper prints, and where. Meta-Rewarding is arXiv 2407.19594, Self-Rewarding arXiv 2401.10020.
META_REWARDING = [
    ("section 2: 7 answers", "answers.k", 7),
    ("section 2: temperature", "answers.temperature", 0.8),
    ("section 2: top_p", "answers.top_p", 0.95),
    ("section 2: 11 judgments", "judgments.n", 11),
    ("section 2: judged as answered", "judgments.temperature", 0.8),
    ("section 2: judged as answered", "judgments.top_p", 0.95),
    ("open in the paper; our default", "judgments.min_valid", 2),
    ("section 2: five-point rubric", "judgments.max_score", 5.0),
    ("section 2: judgments are compared as written", "meta_judgments.hide_scores", False),
    ("section 3: 5,000 prompts in each iteration", "prompts.per_iteration", 5000),
    ("section 3: each iteration starts from the last", "training.start", "previous"),
    ("appendix A.3: learning rate", "training.learning_rate", 5e-6),
    ("appendix A.3: beta", "training.beta", 0.1),
    ("appendix A.3: batch", "training.batch_size", 32),
    ("appendix A.3: schedule", "training.lr_scheduler_type", "cosine"),
    ("appendix A.3: epochs", "training.num_train_epochs", 10),
    ("open in the paper; our default", "pairs.on_tie", "shortest"),
    ("appendix A.3: rho", "iterations.*.rho", (0.0, 0.32, 0.32, 0.4)),
    ("appendix A.3: length of the chosen answer", "iterations.*.max_answer_chars", (2500, None, None, None)),
    ("section 3: judge pairs at first only", "iterations.*.judge_pairs", (True, True, False, False)),
    ("appendix A.3: length of the chosen judgment", "iterations.*.max_judgment_chars", (1100, 1000, None, None)),
    ("appendix A.3: epoch kept", "iterations.*.stop_after_epoch", (6, 4, 2, 2)),
]
SELF_REWARDING = [
    ("section 3.1: 4 answers", "answers.k", 4),
    ("section 3.1: temperature", "answers.temperature", 0.7),
    ("section 3.1: top_p", "answers.top_p", 0.9),
    ("section 3.1: 3 judgments", "judgments.n", 3),
    ("section 3.1: judged as answered", "judgments.temperature", 0.7),
    ("section 3.1: judged as answered", "judgments.top_p", 0.9),
    ("section 2: scores from 0", "judgments.min_score", 0.0),
    ("section 2: scores to 5", "judgments.max_score", 5.0),
    ("section 3.1: learning rate", "training.learning_rate", 1e-6),
    ("section 3.1: learning rate at the end", "training.min_lr", 1e-7),
    ("section 3.1: batch", "training.batch_size", 16),
    ("section 3.1: dropout", "training.dropout", 0.1),
    ("section 3.1: beta", "training.beta", 0.1),
    ("section 3.1: validation prompts", "prompts.held_out", 253),
    ("section 2: each round starts from the last", "training.start", "previous"),
    ("section 3: M2 and M3 come from DPO", "iterations.*.judge_pairs", (False, False)),
    ("section 2.3: best against worst, whatever their lengths", "pairs.on_tie", "random"),
    ("section 3: no length control", "iterations.*.rho", (0.0, 0.0)),
    ("section 3: no length control", "iterations.*.max_answer_chars", (None, None)),
]


# The baseline in Meta-Rewarding's tables: what it has of its own; all else is Meta-Rewarding's.
SELF_REWARDING_LC = [
    ("appendix A.3: rho", "iterations.*.rho", (0.0, 0.0, 0.0, 0.1)),
    ("appendix A.3: length of the chosen answer", "iterations.*.max_answer_chars", (2500, None, None, None)),
    ("appendix A.3: epoch kept", "iterations.*.stop_after_epoch", (5, 1, 2, 2)),
    ("section 3: the judge isn't trained", "iterations.*.judge_pairs", (False, False, False, False)),
    ("section 3: the judge isn't trained", "iterations.*.max_judgment_chars", (None, None, None, None)),
    ("not stated: without length control lengths play no part", "pairs.on_tie", "random"),
    ("section 3: the judge isn't trained", "evaluation.meta_pairs", 0),
]


def setting(recipe: Recipe, key: str) -> object:
    first, _, rest = key.partition(".*.")
    if rest:
        return tuple(getattr(iteration, rest) for iteration in recipe.iterations.values())
    value: object = recipe
    for part in first.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize(("source", "key", "value"), META_REWARDING)
def test_meta_rewarding_is_the_paper_s(source: str, key: str, value: object) -> None:
    assert setting(load_recipe("meta-rewarding", GIVEN), key) == value, source


@pytest.mark.parametrize(("source", "key", "value"), SELF_REWARDING)
def test_self_rewarding_is_the_paper_s(source: str, key: str, value: object) -> None:
    assert setting(load_recipe("self-rewarding", GIVEN), key) == value, source


@pytest.mark.parametrize(("source", "key", "value"), SELF_REWARDING_LC)
def test_self_rewarding_lc_is_the_baseline_of_meta_rewarding(source: str, key: str, value: object) -> None:
    assert setting(load_recipe("self-rewarding-lc", GIVEN), key) == value, source


def test_self_rewarding_lc_differs_from_meta_rewarding_in_nothing_else() -> None:
    baseline, method = (
        load_recipe(name, [*GIVEN, "name=x"]).resolved() for name in ("self-rewarding-lc", "meta-rewarding")
    )
    before, after = flatten(method), flatten(baseline)
    changed = {re.sub(r"\.\d\.", ".*.", key) for key in before | after if before.get(key) != after.get(key)}
    assert changed <= {key for _, key, _ in SELF_REWARDING_LC}


def test_the_defaults_are_meta_rewarding() -> None:
    preset = load_recipe("meta-rewarding", GIVEN)
    assert Recipe(name="meta-rewarding", model="m", prompts={"source": "p"}) == preset  # type: ignore[call-arg, arg-type]


@pytest.mark.parametrize("key", [key for _, key, _ in META_REWARDING])
def test_the_preset_says_what_the_paper_says_instead_of_leaning_on_defaults(key: str) -> None:
    written = yaml.safe_load(recipe_path("meta-rewarding").read_text(encoding="utf-8"))
    section, *_, name = key.split(".")
    places = list(written["iterations"].values()) if section == "iterations" else [written[section]]
    assert any(name in place for place in places)


def test_pocket_needs_nothing_and_trains_the_judge_in_two_of_four_iterations() -> None:
    pocket = load_recipe("pocket")
    assert (pocket.model, pocket.prompts.source, len(pocket.iterations)) == ("pocket", "pocket", 4)
    assert [pocket.runs_meta_judge(t) for t in (1, 2, 3, 4)] == [True, True, False, False]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads_by_name_and_names_texts_that_are_there(name: str) -> None:
    recipe = load_recipe(name, () if name in ("pocket", "smollm2") else GIVEN)
    assert recipe.name == name
    assert load_template(recipe.judgments.rubric).sha256 != load_template(recipe.meta_judgments.rubric).sha256


def test_the_folder_holds_the_presets_and_nothing_else() -> None:
    assert sorted(path.stem for path in recipe_path("pocket").parent.iterdir()) == sorted(PRESETS)


def test_every_setting_says_what_it_means() -> None:
    assert [key for key, field in fields(Recipe) if not (field.description or sections_of(field.annotation))] == []


def test_the_nearest_preset() -> None:
    assert nearest_preset("meta-reward") == "the nearest preset is 'meta-rewarding'"
    assert nearest_preset("qqq") == f"the presets are {', '.join(PRESETS)}"


def test_smollm2_is_the_constraint_world_without_judge_pairs_and_with_one_expected_score() -> None:
    smollm2 = load_recipe("smollm2")
    assert smollm2.prompts.source == "constraints" and len(smollm2.iterations) == 2
    assert not any(smollm2.runs_meta_judge(t) for t in smollm2.iterations)
    judged = smollm2.judgments
    assert (judged.n, judged.verdict, judged.score, smollm2.engine.kind) == (1, "constrained", "expected", "local")


def test_the_quick_run_of_make_is_a_small_smollm2() -> None:
    text = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    found = re.search(r"^QUICK_REAL := (.+)$", text, re.MULTILINE)
    assert found is not None
    quick, whole = load_recipe("smollm2", found[1].split()), load_recipe("smollm2")
    assert len(quick.iterations) == 1
    assert quick.prompts.per_iteration * quick.answers.k < whole.prompts.per_iteration * whole.answers.k / 2
    assert quick.judgments == whole.judgments and quick.training == whole.training
