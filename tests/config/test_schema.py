from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from pydantic import ValidationError

from metareward.config.schema import Recipe, generation_fingerprint, load_recipe, pairs_rules
from metareward.config.yaml_file import default_folder, recipe_text
from metareward.engines.device import resolved_dtype
from metareward.errors import UserError
from metareward.storage.run_dir import LAYOUT, RunDir

Write = Callable[[str], str]
PRESET_NAMES = (
    "pocket, smollm2, self-rewarding, self-rewarding-lc, meta-rewarding, llama3-8b-8gpu, llama3-8b-1gpu, small-24gb"
)
HASHES = {"model": "m", "prompts": "p", "rubric": "r", "metarubric": "mr"}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes my.yaml in the working folder."""
    monkeypatch.chdir(tmp_path)

    def _write(text: str) -> str:
        Path("my.yaml").write_text(text, encoding="utf-8")
        return "my.yaml"

    return _write


def refusal(recipe: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(recipe, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_recipe_says_only_what_differs(write: Write) -> None:
    recipe = load_recipe(write("model: m\nprompts:\n  source: p.jsonl\nanswers:\n  k: 3\n"))
    assert (recipe.name, recipe.answers.k, recipe.answers.top_p, recipe.judgments.n) == ("my", 3, 0.95, 11)
    assert [each.rho for each in recipe.iterations.values()] == [0, 0.32, 0.32, 0.4]


def test_an_extended_recipe_is_changed_key_by_key(write: Write) -> None:
    pocket, mine = (
        load_recipe("pocket"),
        load_recipe(write("extends: pocket\nanswers:\n  k: 3\niterations:\n  2:\n    rho: 0.5\n")),
    )
    assert (mine.name, mine.answers.k, mine.answers.max_tokens) == ("my", 3, pocket.answers.max_tokens)
    assert mine.iterations[2].rho == 0.5
    assert {t: mine.iterations[t] for t in (1, 3, 4)} == {t: pocket.iterations[t] for t in (1, 3, 4)}


def test_a_recipe_may_extend_a_file_beside_it(write: Write) -> None:
    Path("sub").mkdir()
    Path("sub/base.yaml").write_text("extends: pocket\nseed: 7\n", encoding="utf-8")
    Path("sub/top.yaml").write_text("extends: base.yaml\nname: other\n", encoding="utf-8")
    top = load_recipe("sub/top.yaml")
    assert (top.seed, top.model, top.name) == (7, "pocket", "other")


def test_overrides_come_last_and_in_order(write: Write) -> None:
    recipe = load_recipe(write("extends: pocket\nseed: 1\n"), ["seed=2", "seed=3", "iterations.1.rho=0.2", "name=x"])
    assert (recipe.seed, recipe.iterations[1].rho, recipe.name) == (3, 0.2, "x")
    assert recipe.iterations[2] == load_recipe("pocket").iterations[2]


def test_an_override_reaches_into_the_default_iterations(write: Write) -> None:
    recipe = load_recipe(write("model: m\nprompts: {source: p}\n"), ["iterations.1.rho=0.1"])
    assert [each.rho for each in recipe.iterations.values()] == [0.1, 0.32, 0.32, 0.4]
    assert recipe.iterations[1].max_answer_chars == 2500


def test_listed_iterations_are_all_there_are_and_drop_takes_one_away(write: Write) -> None:
    assert list(load_recipe(write("model: m\nprompts: {source: p}\niterations:\n  1:\n  2: {}\n")).iterations) == [1, 2]
    assert list(load_recipe("pocket", ["iterations.4=drop", "iterations.3=drop"]).iterations) == [1, 2]
    assert list(load_recipe("pocket", ["iterations.5.rho=0.1"]).iterations) == [1, 2, 3, 4, 5]


def test_empty_sections_change_nothing(write: Write) -> None:
    assert load_recipe(write("extends: pocket\nname: pocket\nanswers:\niterations:\n  1:\n")) == load_recipe("pocket")


@pytest.mark.parametrize(
    ("text", "value"), [("5e-6", 5e-6), ("5E+0", 5.0), ("1_0.5", 10.5), (".5", 0.5), ("1", 1.0), ("1e-06", 1e-6)]
)
def test_numbers_are_read_as_written(text: str, value: float) -> None:
    assert load_recipe("pocket", [f"training.learning_rate={text}"]).training.learning_rate == value


def test_words_that_old_yaml_takes_for_booleans_and_dates_are_texts() -> None:
    recipe = load_recipe("pocket", ["name=no", "model=2024-01-31"])
    assert (recipe.name, recipe.model) == ("no", "2024-01-31")


TYPOS = [
    ("answers:\n  kk: 3", "my.yaml:3: answers.kk: unknown key; the nearest known one is answers.k"),
    ("seeed: 3", "my.yaml:2: seeed: unknown key; the nearest known one is seed"),
    ("learning_rate: 1", "my.yaml:2: learning_rate: unknown key; the nearest known one is training.learning_rate"),
    (
        "iterations:\n  2:\n    roh: 0",
        "my.yaml:4: iterations.2.roh: unknown key; the nearest known one is iterations.2.rho",
    ),
    ("rho: 0.3", "my.yaml:2: rho: unknown key; the nearest known one is iterations.1.rho"),
    ("engine:\n  xyzzy: 1", "my.yaml:3: engine.xyzzy: unknown key; known here: kind, device, dtype, workers, threads"),
]


@pytest.mark.parametrize(("text", "line"), TYPOS)
def test_an_unknown_key_is_refused_with_the_nearest(write: Write, text: str, line: str) -> None:
    assert refusal(write(f"extends: pocket\n{text}\n")).startswith(line)


WRONG = [
    ("answers.k=three", 'answers.k: "three": expected a whole number'),
    ("answers.k=2.0", "answers.k: 2.0: expected a whole number"),
    ("answers.k=1", "answers.k: 1: expected a number that is at least 2"),
    ("answers.top_p=0", "answers.top_p: 0: expected a number above 0.0"),
    ("answers.top_p=true", "answers.top_p: true: expected a number"),
    ("answers.temperature=.inf", 'answers.temperature: ".inf": expected a number'),
    ("answers=3", "answers: 3: expected a section of keys with values"),
    ("seed=-1", "seed: -1: expected a number that is at least 0"),
    ("seed=", "seed: null: expected a whole number"),
    ("name=a/b", "name: \"a/b\": expected letters, digits, '.', '_' and '-', as in a folder's name"),
    ("meta_judgments.hide_scores=yes", 'meta_judgments.hide_scores: "yes": expected true or false'),
    ("engine.workers=0", "engine.workers: 0: expected 'auto' or a number that is at least 1"),
    ("engine.dtype=fp16", "engine.dtype: \"fp16\": expected 'auto', 'float32' or 'bfloat16'"),
    ("prompts.held_out=true", "prompts.held_out: true: expected a text or a whole number"),
    ("prompts.held_out=''", 'prompts.held_out: "": expected a text that is not empty or a whole number'),
    ("iterations=3", "iterations: 3: expected a section of keys with values"),
    ("iterations.1.rho=1.5", "iterations.1.rho: 1.5: expected a number that is at most 1.0"),
    ("iterations.1.max_answer_chars=0", "iterations.1.max_answer_chars: 0: expected a number that is at least 1"),
    ("pairs.elo_prior=0", "pairs.elo_prior: 0: expected a number above 0.0"),
    ("training.reference=last", "training.reference: \"last\": expected 'start', 'previous', 'm0' or 'ema'"),
]


@pytest.mark.parametrize(("change", "line"), WRONG)
def test_a_wrong_value_is_named_where_it_stands(write: Write, change: str, line: str) -> None:
    place, _, value = change.partition("=")
    top, *inner = place.split(".")
    nested = "".join(f"{{{part}: " for part in inner) + value + "}" * len(inner)
    assert refusal(write(f"extends: pocket\n{top}: {nested}\n")) == f"my.yaml:2: {line}"


@pytest.mark.parametrize(("change", "line"), WRONG)
def test_a_wrong_override_is_named_as_it_was_typed(change: str, line: str) -> None:
    assert refusal("pocket", change) == f"--set {change}: expected {line.split(': expected ')[1]}"


NO_JUDGE_PAIRS = [f"iterations.{t}.judge_pairs=false" for t in (1, 2, 3, 4)]
ONE_JUDGMENT = ["judgments.n=1", "judgments.min_valid=1", *NO_JUDGE_PAIRS]
TOGETHER = [
    (
        ["judgments.n=2", "judgments.min_valid=3"],
        "--set judgments.min_valid=3: expected at most judgments.n, which is 2",
    ),
    (
        ["judgments.n=1", "judgments.min_valid=1"],
        "iterations.1.judge_pairs: true: expected false while judgments.n is 1",
    ),
    (
        ["judgments.min_score=5"],
        "--set judgments.min_score=5: expected a number below judgments.max_score, which is 5.0",
    ),
    (["answers.temperature=0"], "--set answers.temperature=0: expected a number above 0: greedy answers"),
    (["judgments.temperature=0"], "--set judgments.temperature=0: expected a number above 0: greedy judgments"),
    (
        ["meta_judgments.temperature=0", "meta_judgments.retries=1"],
        "--set meta_judgments.retries=1: expected 0: a greedy judgment is the same each time",
    ),
    (
        [
            "judge=a:B",
            "judgments.verdict=constrained",
            "iterations.1.judge_pairs=false",
            "iterations.2.judge_pairs=false",
        ],
        "--set judgments.verdict=constrained: expected text, as judge is an object of yours",
    ),
    (
        ["judge=a:B", "judgments.retries=1", "iterations.1.judge_pairs=false", "iterations.2.judge_pairs=false"],
        "--set judgments.retries=1: expected 0, as judge is an object of yours",
    ),
    (
        ["pairs.min_battles=43"],
        "--set pairs.min_battles=43: expected at most 42, the battles that 7 judgments can have",
    ),
    (["judgments.first_round=2"], "--set judgments.first_round=2: expected from 3 to 6, or null"),
    (["judgments.first_round=7"], "--set judgments.first_round=7: expected from 3 to 6, or null: below judgments.n"),
    (
        ["judgments.first_round=3", "judge=a:B", "iterations.1.judge_pairs=false", "iterations.2.judge_pairs=false"],
        "--set judgments.first_round=3: expected null: rounds are for judgments that the model or a server writes",
    ),
    (
        ["judgments.n=3", "judgments.first_round=2"],
        "first_round=2: expected null, as all of judgments.n, 3, are needed",
    ),
    (
        ["meta_judgments.max_pairs=3", "pairs.min_battles=7"],
        "--set meta_judgments.max_pairs=3: expected at least 4: in both orders that is enough for pairs.min_battles, 7",
    ),
    (["training.per_device_train_batch_size=5"], "expected a divisor of batch_size, which is 32"),
    (["training.lr_scheduler_type=constant", "training.min_lr=1e-7"], "expected 0 with the constant schedule"),
    (["training.min_lr=1"], "expected at most learning_rate, which is 0.0002"),
    (["iterations.2.learning_rate=0"], "expected a number above 0"),
    (
        ["training.min_lr=1e-5", "iterations.2.learning_rate=1e-6"],
        "expected at least 1e-05, the rate at the end of the",
    ),
    (
        ["judgments.rubric=criteria"],
        "expected with a rubric of criteria also judgments.n 1, judgments.min_valid 1, "
        "evaluation.judgments 1, evaluation.meta_pairs 0, iterations.1.judge_pairs false, iterations.2.judge_pairs",
    ),
    (
        ["judgments.rubric=mine.yaml", *ONE_JUDGMENT, "evaluation.judgments=1"],
        "expected with a rubric of criteria also evaluation.meta_pairs 0: N judgments by",
    ),
    (["pairs.min_margin=1", *ONE_JUDGMENT], "expected 0: one judgment as written doesn't say"),
    (["pairs.min_margin=1", "reward=a:B", *NO_JUDGE_PAIRS], "expected 0: a reward doesn't say"),
    (["iterations.2.stop_after_epoch=3"], "expected at most 1, the epochs of this iteration's schedule"),
    (
        ["iterations.6.rho=0"],
        "--set iterations.6.rho=0: iterations.6: expected iterations numbered 1, 2, 3 and so on; 5",
    ),
    (
        ["iterations.0.rho=0"],
        "--set iterations.0.rho=0: iterations.0: expected iterations numbered 1, 2, 3 and so on; 1",
    ),
    (["iterations.x.rho=0"], "--set iterations.x.rho=0: iterations.x: expected iterations numbered 1, 2, 3 and so on"),
    ([f"iterations.{t}=drop" for t in (1, 2, 3, 4)], "expected at least one iteration"),
]


@pytest.mark.parametrize(
    "changes",
    [
        ["judgments.rubric=criteria", "evaluation.judgments=1", "evaluation.meta_pairs=0"],
        ["judgments.score=expected", "judgments.verdict=constrained"],
    ],
)
def test_one_judgment_that_says_how_sure_it_is_allows_a_margin(changes: list[str]) -> None:
    assert load_recipe("pocket", [*ONE_JUDGMENT, *changes, "pairs.min_margin=1.0"]).pairs.min_margin == 1


@pytest.mark.parametrize(("changes", "line"), TOGETHER)
def test_settings_that_contradict_each_other_are_refused(changes: list[str], line: str) -> None:
    base = ["training.num_train_epochs=1", "training.batch_size=32", "training.learning_rate=2e-4", "judgments.n=7"]
    assert line in refusal("pocket", *base, *changes)


def test_one_judgment_is_enough_without_judge_pairs() -> None:
    changes = ["judgments.n=1", "judgments.min_valid=1", *(f"iterations.{t}.judge_pairs=false" for t in (1, 2))]
    assert load_recipe("pocket", changes).judgments.n == 1


@pytest.mark.parametrize("override", ["answers.k", "=3", "answers..k=3", "", ".=1"])
def test_an_override_without_key_and_value_is_refused(override: str) -> None:
    assert refusal("pocket", override) == f"--set {override}: expected key=value with a dotted key, such as answers.k=7"


def test_an_override_of_an_unknown_key_names_the_nearest() -> None:
    assert refusal("pocket", "answer.k=3") == "--set answer.k=3: answer: unknown key; the nearest known one is answers"
    assert refusal("pocket", "extends=pocket").startswith("--set extends=pocket: extends: unknown key")


BROKEN = [
    ("answers: [1\nseed: 0\n", "my.yaml:2: not valid YAML: "),
    ("seed: 0\n\tk: 1\n", "my.yaml:2: not valid YAML: found character '\\t' that cannot start any token"),
    ("answers:\n  k: 3\n  k: 4\n", "my.yaml:3: answers.k: this key is given twice (first in line 2); keep one"),
    ("iterations:\n  1: {}\n  '1': {}\n", "my.yaml:3: iterations.1: this key is given twice (first in line 2)"),
    ("- a\n- b\n", 'my.yaml: expected keys with values, such as \'seed: 0\', at the top; found ["a", "b"]'),
    ("a: &x 1\nb: *x\n", "my.yaml:1: not valid YAML: anchors (&name, *name) and tags (!name) are not used in recipes"),
    (
        "model: !!python/object/apply:os.getcwd []\n",
        "my.yaml:1: not valid YAML: anchors (&name, *name) and tags (!name) are not used in recipes",
    ),
    ("seed: 0\n---\nseed: 1\n", "my.yaml:2: not valid YAML: but found another document"),
    ("seed: \x01\n", "my.yaml: not valid YAML: unacceptable character #x0001"),
    (
        "extends: 3\n",
        f"my.yaml:1: extends: 3: expected a preset's name ({PRESET_NAMES}) or a file",
    ),
    ("extends: my.yaml\n", 'my.yaml:1: extends: "my.yaml": this recipe ends up extending itself'),
    (
        "seed: 0\nextends: pokket\n",
        "my.yaml:2: extends: pokket: no such recipe file or run folder; the nearest preset is 'pocket'",
    ),
    (f"seed: {'[' * 3000}\n", "my.yaml: not a recipe: brackets are nested too deeply"),
    (f"seed: {'9' * 5000}\nextends: pocket\n", 'my.yaml:1: seed: "99999'),
    (f"extends: pocket\niterations:\n  {'9' * 50}: {{}}\n", "my.yaml:3: iterations.9999"),
    ("seed: 0\n", "my.yaml: model: must be given: M0: a Hugging Face model folder, or 'pocket'"),
    ("model: m\n", "my.yaml: prompts.source: must be given: Prompts in a file"),
    ("model:\nprompts: {source: p}\n", "my.yaml: model: must be given: "),
    ("", "my.yaml: model: must be given: "),
]


@pytest.mark.parametrize(("text", "line"), BROKEN)
def test_a_broken_file_is_refused_with_its_line(write: Write, text: str, line: str) -> None:
    assert refusal(write(text)).startswith(line)


def test_a_file_that_is_no_text_is_refused(write: Write) -> None:
    Path(write("")).write_bytes(b"seed: \xff\n")
    assert refusal("my.yaml") == "my.yaml: not a UTF-8 text (byte 6); a recipe is a YAML text file"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("pokket", "pokket: no such recipe file or run folder; the nearest preset is 'pocket'"),
        (
            "recipes/meta-reward.yaml",
            "recipes/meta-reward.yaml: no such recipe file or run folder; the nearest preset is 'meta-rewarding'",
        ),
        ("zzz", f"zzz: no such recipe file or run folder; the presets are {PRESET_NAMES}"),
        (".", ".: this is no run folder (resolved.json is missing); fix: name one, such as runs/NAME"),
    ],
)
def test_a_recipe_that_is_not_there_names_the_presets(write: Write, name: str, line: str) -> None:
    assert refusal(name) == line


def test_a_resolved_recipe_is_plain_json_in_stable_order_and_loads_as_itself(write: Write) -> None:
    recipe = load_recipe("pocket", ["seed=4", "iterations.2.rho=0.3"])
    text = json.dumps(recipe.resolved())
    assert list(recipe.resolved()) == list(Recipe.model_fields)
    Path("resolved.json").write_text(text, encoding="utf-8")
    assert load_recipe("resolved.json") == recipe
    assert json.dumps(load_recipe("resolved.json").resolved()) == text
    assert load_recipe("resolved.json", ["iterations.2.rho=0.1"]).iterations[2].rho == 0.1


def test_a_recipe_never_changes() -> None:
    recipe = load_recipe("pocket")
    with pytest.raises(ValidationError):
        recipe.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        recipe.answers.k = 3  # type: ignore[misc]


def test_the_recipe_as_given_keeps_its_words_and_the_overrides(write: Write) -> None:
    assert recipe_text(write("extends: pocket # mine\n"), ["seed=1"]) == "# --set seed=1\nextends: pocket # mine\n"


def test_pair_rules_are_the_iteration_s(write: Write) -> None:
    recipe = load_recipe("meta-rewarding", ["model=m", "prompts.source=p"])
    rules = asdict(pairs_rules(recipe, 2))
    assert rules == {
        "rho": 0.32,
        "on_tie": "shortest",
        "mask_truncated_completions": True,
        "min_margin": 0.0,
        "max_answer_chars": None,
        "judge_pairs": True,
        "max_judgment_chars": 1000,
        "min_valid": 2,
        "position_weights_scope": "iteration",
        "elo_prior": 0.1,
        "min_battles": 2,
    }


def fingerprint(*overrides: str, t: int = 1) -> dict[str, object]:
    return generation_fingerprint(load_recipe("pocket", overrides), t, **HASHES)


@pytest.mark.parametrize(
    "override",
    [
        "engine.workers=3",
        "engine.threads=2",
        "training.beta=0.3",
        "iterations.1.rho=0.9",
        "name=x",
        "evaluation.answers=9",
        "pairs.elo_prior=1",
        "iterations.1.max_answer_chars=9",
        "judgments.rubric=elsewhere.txt",
    ],
)
def test_what_does_not_bear_on_records_is_not_in_their_fingerprint(override: str) -> None:
    assert fingerprint(override) == fingerprint()


@pytest.mark.parametrize(
    "override",
    [
        "seed=5",
        "answers.k=3",
        "answers.temperature=0.3",
        "judgments.n=3",
        "judgments.max_tokens=9",
        "judgments.max_score=6",
        "judgments.min_valid=2",
        "meta_judgments.hide_scores=true",
        "meta_judgments.top_p=0.5",
    ],
)
def test_what_bears_on_records_is_in_their_fingerprint_by_name(override: str) -> None:
    key = override.partition("=")[0]
    assert fingerprint(override)[key] != fingerprint()[key]
    assert {**fingerprint(override), key: None} == {**fingerprint(), key: None}


def test_the_number_format_bears_on_records_and_auto_is_what_it_comes_to() -> None:
    told = {dtype: fingerprint(f"engine.dtype={dtype}")["engine.dtype"] for dtype in ("float32", "bfloat16", "auto")}
    assert told == {"float32": "float32", "bfloat16": "bfloat16", "auto": resolved_dtype("auto", "auto")}
    assert fingerprint("engine.device=cuda:1")["engine.dtype"] == "bfloat16"
    same = ("engine.device=cpu", "engine.device=cuda")
    assert len({str(fingerprint("engine.dtype=float32", device)) for device in same}) == 1


def test_the_meta_judge_bears_only_on_iterations_that_ask_it() -> None:
    assert fingerprint("meta_judgments.top_p=0.5", t=3) == fingerprint(t=3)
    assert fingerprint("iterations.1.judge_pairs=false")["meta_judge"] is False


@pytest.mark.parametrize("changed", ["iterations.1.rho=0.3", "pairs.mask_truncated_completions=false"])
def test_the_rules_of_pairs_decide_records_whose_judgments_come_in_rounds(changed: str) -> None:
    assert fingerprint(changed) == fingerprint()
    rounds = "judgments.first_round=3"
    (key,) = (key for key, value in fingerprint(rounds, changed).items() if fingerprint(rounds).get(key) != value)
    assert key.startswith("judgments.rounds.")


def test_the_batch_bears_on_records_only_where_they_are_promised_to_be_the_same() -> None:
    exact, loose = "engine.deterministic=true", "engine.deterministic=false"
    assert fingerprint(exact, "engine.max_num_seqs=8") != fingerprint(exact, "engine.max_num_seqs=16")
    assert fingerprint(loose, "engine.max_num_seqs=8") == fingerprint(loose, "engine.max_num_seqs=16")


def test_hashes_stand_for_the_texts() -> None:
    recipe = load_recipe("pocket")
    made = generation_fingerprint(recipe, 1, model="m", prompts="p", rubric="r", metarubric="mr")
    assert (made["model"], made["prompts"], made["judgments.rubric"], made["meta_judgments.rubric"]) == (
        "m",
        "p",
        "r",
        "mr",
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("training.num_processes=3", "training.num_processes"),
        ("training.loss_weights=[1.0, 2.0]", "one for each of loss_type, or none"),
        ("training.loss_type=[exo_pair]", "training.label_smoothing"),
        ("training.loss_type=[nonsense]", "training.loss_type"),
        ("training.checkpoint_selection.metric=judge_win_rate", "training.checkpoint_selection.judge"),
    ],
)
def test_training_settings_that_do_not_agree(change: str, why: str) -> None:
    assert why in refusal("pocket", change)


def test_epochs_are_not_chosen_on_servers_that_lack_them() -> None:
    told = refusal(
        "pocket",
        "engine.kind=openai",
        "engine.base_urls=[http://127.0.0.1:1]",
        "training.checkpoint_selection.metric=win_rate",
    )
    assert "training.checkpoint_selection.metric" in told


# --- the recipe of a run folder ---

OVERRIDES = ("answers.k=3", 'answers.system_prompt="Two\nlines."')


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run folder as its start leaves it, started with overrides."""
    (tmp_path / "mine.yaml").write_text("extends: pocket\nseed: 5\n")
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    recipe = load_recipe(str(tmp_path / "mine.yaml"), OVERRIDES)
    run.resolved.write_text(json.dumps(recipe.resolved()))
    run.recipe.write_text(recipe_text(str(tmp_path / "mine.yaml"), OVERRIDES))
    return run


def test_a_run_s_recipe_has_the_overrides_of_its_start(run: RunDir) -> None:
    begun = load_recipe(str(run.path.parent / "mine.yaml"), OVERRIDES)
    assert (begun.name, begun.seed, begun.answers.k, begun.answers.system_prompt) == ("mine", 5, 3, "Two lines.")
    for name in (run.path, run.resolved, run.recipe):
        assert load_recipe(str(name)) == begun
        assert load_recipe(str(name), ["answers.k=4", "seed=6"]).answers.k == 4
        assert default_folder(str(name), "mine") == run.path
    assert default_folder("pocket", "pocket") == Path("runs/pocket")


def test_a_run_s_recipe_keeps_its_overrides_when_it_is_written_again(run: RunDir) -> None:
    text = recipe_text(str(run.path), ["seed=6"])
    assert text.splitlines()[0] == "# --set answers.k=3"
    assert text.splitlines()[2:] == ["# --set seed=6", "extends: pocket", "seed: 5"]
    run.recipe.write_text(text)
    assert load_recipe(str(run.recipe)) == load_recipe(str(run.path), ["seed=6"])


def test_comments_of_any_other_recipe_are_comments(run: RunDir) -> None:
    copy = run.path.parent / "copy.yaml"
    copy.write_text(run.recipe.read_text())
    assert load_recipe(str(copy)).answers.k == load_recipe("pocket").answers.k


def test_a_run_of_another_version_is_refused_by_its_version(run: RunDir) -> None:
    run.environment.write_text(json.dumps({"layout": LAYOUT, "packages": {"metareward": "99.1"}}))
    assert load_recipe(str(run.path)).seed == 5
    run.resolved.write_text(json.dumps({**load_recipe("pocket").resolved(), "novelty": 1}))
    with pytest.raises(UserError, match=r"novelty: unknown key; .*begun by metareward 99\.1, .*fix: use that version"):
        load_recipe(str(run.path))
    run.environment.write_text(json.dumps({"layout": LAYOUT + 1, "packages": {"metareward": "99.1"}}))
    with pytest.raises(UserError, match=rf"layout {LAYOUT + 1}, and this version has layout {LAYOUT}; .*99\.1"):
        load_recipe(str(run.path))
