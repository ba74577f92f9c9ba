"""Cards, and pushing to a hub that is a server on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_run import fake_run
from hub_server import TOKEN, serve_hub
from whole_runs import invoke

from metareward.errors import UserError
from metareward.pipeline.publish import model_publication, pairs_publication
from metareward.report.cards import base_of, model_card, pairs_card, write_model_card
from metareward.storage.custody import ModelRef, delete_weights
from metareward.storage.pair_files import read_pairs
from metareward.storage.run_dir import RunDir
from metareward.training.lineage import Lineage, read_lineage

BASE = "0" * 64


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of the pocket world with M1 and M2, whose M0 lies in a folder of this machine."""
    run = fake_run(tmp_path_factory.mktemp("made") / "mine", models=3)
    run.inputs.write_text(json.dumps({"the model's files": BASE}))
    for t in (1, 2):
        folder = run.iteration(t).model
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(bytes([t]) * 100)
        start = ModelRef("../../../home/me/models/start", BASE) if t == 1 else ModelRef("../../iter-1/model", "1" * 64)
        lineage = Lineage("dpo", start, ("a" * 64,), {"actor": 5}, {}, 9, 20, 7, 3, {"beta": 0.1}, {}, start)
        (folder / "lineage.json").write_text(lineage.to_json())
    return run


@pytest.fixture
def run(made: RunDir, tmp_path: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(made.path, tmp_path / "private" / "mine")))


def parsed(card: str) -> tuple[dict[str, Any], str]:
    """A card's metadata and its text, as the hub reads them."""
    _, metadata, text = card.split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_a_card_says_what_a_model_is_where_it_is_from_and_what_was_measured(run: RunDir) -> None:
    card, text = parsed(model_card(run, 2, "someone/base", "apache-2.0"))
    assert (card["base_model"], card["license"]) == ("someone/base", "apache-2.0")
    assert (card["library_name"], card["pipeline_tag"]) == ("transformers", "text-generation")
    assert {"metareward", "meta-rewarding", "dpo"} <= set(card["tags"])
    assert "# mine-M2" in text and "Meta-Rewarding Language Models" in text
    assert f"| M1 | someone/base ({BASE[:12]}) | someone/base ({BASE[:12]}) | aaaaaaaaaaaa |" in text
    assert "| M2 | M1 (111111111111) | M1 (111111111111) | aaaaaaaaaaaa |" in text
    assert "| Answer quality (oracle) | 2.41 (2.28 to 2.54) | 3.63 (3.50 to 3.76) |" in text
    assert "may be worse at refusing" in text and "not for use" in text
    assert "That of the base model: apache-2.0." in text


def test_what_is_not_known_is_said(run: RunDir) -> None:
    card, text = parsed(model_card(run, 1))
    assert not {"license", "base_model"} & card.keys()
    assert "The licence of the base model is unknown" in text


def test_the_card_lies_in_the_model_s_folder_and_is_no_part_of_the_model(run: RunDir) -> None:
    before = read_lineage(run.iteration(1).model)
    path = write_model_card(run, 1)
    assert path == run.iteration(1).model / "README.md" and path.read_text() == model_card(run, 1)
    assert read_lineage(run.iteration(1).model) == before


@pytest.mark.parametrize(
    ("readme", "found"),
    [
        ("---\nlicense: mit\nbase_model: a/b\n---\n# Hi\n", ("a/b", "mit")),
        ("---\nlicense: mit\n---\n", (None, "mit")),
        (
            "Org/Model-1 from the package some-package 0.1 (x.gguf, SHA-256 ab12), licence Apache-2.0. The weights are",
            ("Org/Model-1", "apache-2.0"),
        ),
        ("# A model\n", (None, None)),
        ("---\nlicense: [\n---\n", (None, None)),
    ],
)
def test_base_and_licence_are_read_from_the_model_s_own_card(
    tmp_path: Path, readme: str, found: tuple[str | None, str | None]
) -> None:
    (tmp_path / "README.md").write_text(readme)
    assert base_of(str(tmp_path), tmp_path) == found


def test_a_model_without_a_card_says_nothing(tmp_path: Path) -> None:
    assert base_of("model", tmp_path) == (None, None)
    assert base_of("pocket", tmp_path) == (None, "apache-2.0")


def test_nothing_that_is_published_names_a_folder_of_this_machine(run: RunDir) -> None:
    files = (*model_publication(run, "me/mine").files, *pairs_publication(run, "me/pairs").files)
    for each in files:
        text = (each.content if isinstance(each.content, bytes) else each.content.read_bytes()).decode(errors="replace")
        assert "private" not in text and "home" not in text and "../" not in text, each.name
    published = {each.name: each.content for each in files}
    lineage = json.loads(published["lineage.json"])  # type: ignore[arg-type]
    assert lineage["start"] == {"path": "M1", "sha256": "1" * 64}
    first = json.loads(published["lineage/M1.json"])  # type: ignore[arg-type]
    assert first["start"] == {"path": "pocket", "sha256": BASE}


def test_judges_are_named_without_their_address(tmp_path: Path) -> None:
    benchmark = '[{kind: independent_judge, judge: "http://10.0.0.7:8000/v1#judge-8b"}]'
    run = fake_run(tmp_path / "mine", models=1, overrides=[f"benchmarks={benchmark}"])
    assert "10.0.0.7" not in pairs_card(run)


def test_the_pairs_card_names_configurations_and_counts(run: RunDir) -> None:
    card, text = parsed(pairs_card(run, "mit"))
    assert card["license"] == "mit"
    assert card["configs"] == [
        {"config_name": "actor", "data_files": "iter-*/actor.parquet"},
        {"config_name": "judge", "data_files": "iter-*/judge.parquet"},
    ]
    count = json.loads(run.iteration(1).summary.read_text())
    assert f"| 1 | M0 | 24 | {count['actor_pairs']} | {count['judge_pairs']} |" in text


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--to", "mine"), "--to mine: expected OWNER/NAME"),
        (("--to", "me/mine", "--iteration", "3"), "iteration 3 is not done; fix: finish the run"),
        (("--to", "me/mine", "--pairs", "--iteration", "1"), "takes the pairs of all iterations"),
    ],
)
def test_mistakes_are_refused_before_anything_is_sent(run: RunDir, words: tuple[str, ...], line: str) -> None:
    error = invoke(["push", str(run.path), *words, "--yes"]).exception
    assert isinstance(error, UserError) and line in str(error)


def test_without_yes_files_are_listed_and_nothing_is_sent(run: RunDir) -> None:
    told = invoke(["push", str(run.path), "--to", "me/mine"])  # a hub would be refused: offline
    assert told.exit_code == 0, told.output
    assert "model.safetensors" in told.output and "nothing was sent; send it with --yes" in told.output


def push(run: RunDir, address: str, *words: str, token: str = TOKEN) -> tuple[int, str, str]:
    """In a process of its own: the hub's library reads its settings when it is imported."""
    settings = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", "from metareward.cli.main import main; main()", "push", str(run.path), *words]
    home = {"HF_HOME": str(run.path.parent / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(command, env=os.environ | settings | home, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_a_model_and_its_card_arrive_as_they_are_listed(run: RunDir, tmp_path: Path) -> None:
    with serve_hub(tmp_path / "hub") as address:
        code, told, errors = push(run, address, "--to", "me/mine", "--base", "a/b", "--licence", "mit", "--yes")
    assert code == 0, errors
    assert f"pushed to {address}/me/mine" in told
    listed = model_publication(run, "me/mine", base="a/b", licence="mit").files
    arrived = {p.relative_to(tmp_path / "hub/me/mine").as_posix(): p for p in (tmp_path / "hub/me/mine").rglob("*.*")}
    assert arrived.keys() == {each.name for each in listed}
    for each in listed:
        content = each.content if isinstance(each.content, bytes) else each.content.read_bytes()
        assert arrived[each.name].read_bytes() == content
    assert json.loads((tmp_path / "hub/me/mine.created").read_text())["visibility"] == "private"
    assert TOKEN not in told + errors


@pytest.mark.slow
def test_pairs_arrive_as_a_data_set(run: RunDir, tmp_path: Path) -> None:
    with serve_hub(tmp_path / "hub") as address:
        code, told, errors = push(run, address, "--to", "me/pairs", "--pairs", "--yes", "--public")
    assert code == 0, errors
    assert f"pushed to {address}/datasets/me/pairs" in told
    there = tmp_path / "hub/me/pairs"
    assert read_pairs(there / "iter-1/actor.parquet") == read_pairs(run.iteration(1).pairs("actor"))
    assert "configs:" in (there / "README.md").read_text()


@pytest.mark.slow
def test_a_refusal_is_one_line_without_the_token(run: RunDir, tmp_path: Path) -> None:
    with serve_hub(tmp_path / "hub") as address:
        code, _, errors = push(run, address, "--to", "me/mine", "--yes", token="hf_wrong")
    assert code == 2
    assert errors.count("\n") == 1 and errors.startswith("metareward: me/mine: can't be pushed (")
    assert "fix: log in" in errors and "hf_wrong" not in errors


def test_a_model_that_has_changed_since_it_was_evaluated_is_not_published(run: RunDir) -> None:
    from metareward.storage.store import RecordStore

    with RecordStore.open(run.iteration(2).evaluation / "records.sqlite", {"model": "f" * 64}):
        pass
    with pytest.raises(UserError, match="not the model that was evaluated: its files have changed"):
        model_publication(run, "me/mine")
    assert model_publication(run, "me/mine", 1).title.startswith("M1 of ")


def test_a_model_whose_weights_are_deleted_is_not_published(run: RunDir) -> None:
    delete_weights(run.iteration(1).model, "training.keep_models: 1")
    with pytest.raises(UserError, match="its weights are deleted"):
        model_publication(run, "me/mine", 1)
