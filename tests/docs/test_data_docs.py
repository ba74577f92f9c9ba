"""docs/data.md is true: its snippets name columns that there are, its tables name every reason, its numbers hold."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any, get_args

import datasets
import pytest
from whole_runs import invoke

from metareward.data.prompts import parse_prompt
from metareward.data.propose import LIMITS, SAMPLING, DropReason
from metareward.data.seed_sets import RejectReason
from metareward.storage.pair_files import write_pairs
from metareward.training.config import SFT_PRESETS, SftSettings
from metareward.types import Message, PreferencePair

PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
TALK = (
    Message("system", "be kind"),
    Message("user", "one"),
    Message("assistant", "two"),
    Message("user", "three"),
)


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """A file of pairs as other trainers load it: by `datasets`, every column as it comes."""
    folder = tmp_path_factory.mktemp("pairs")
    pairs = [PreferencePair("actor", "p", prompt, "good", "bad", 1, 0, 4.0, 2.5) for prompt in (TALK, TALK[1:2])]
    write_pairs(folder / "actor.parquet", pairs)
    loaded = datasets.Dataset.from_parquet(str(folder / "actor.parquet"), cache_dir=str(folder / "cache"))
    return list(loaded)


def test_llama_factory_finds_what_its_documentation_asks_for(rows: list[dict[str, Any]]) -> None:
    """data/README.md there: a list of messages, the user's at odd places and last; chosen and rejected one message."""
    (described,) = json.loads(
        re.findall(r"```json\n(\{\n.*?)```", section("Pairs in other trainers"), re.DOTALL)[0]
    ).values()
    columns, tags = described["columns"], described["tags"]
    role, content = tags["role_tag"], tags["content_tag"]
    for row in rows:
        messages = [each for each in row[columns["messages"]] if each[role] != tags["system_tag"]]
        assert [each[role] for each in messages[::2]] == [tags["user_tag"]] * (len(messages) // 2 + 1)
        assert [each[role] for each in messages[1::2]] == [tags["assistant_tag"]] * (len(messages) // 2)
        for name, text in (("chosen", "good"), ("rejected", "bad")):
            assert row[columns[name]] == {role: tags["assistant_tag"], content: text}


def test_axolotl_finds_what_its_documentation_asks_for(rows: list[dict[str, Any]]) -> None:
    """docs/rlhf.qmd there, chat_template.default: messages, and chosen and rejected as a message or a list of them."""
    fields = dict(re.findall(r"field_(\w+): (\w+)", section("Pairs in other trainers")))
    assert fields.keys() == {"messages", "chosen", "rejected"}
    for row in rows:
        assert all(each["role"] in ("system", "user", "assistant") for each in row[fields["messages"]])
        assert row[fields["chosen"]][-1] == {"role": "assistant", "content": "good"}
        assert row[fields["rejected"]][-1] == {"role": "assistant", "content": "bad"}


def test_openrlhf_finds_what_its_options_name(rows: list[dict[str, Any]]) -> None:
    """With a prompt key, the prompt's messages and those of a side are put one after the other."""
    keys = dict(re.findall(r"--data\.(prompt|chosen|rejected)_key (\w+)", PAGE))
    for row in rows:
        whole = row[keys["prompt"]] + row[keys["chosen"]]
        assert [each["role"] for each in whole][-2:] == ["user", "assistant"]
        assert row[keys["prompt"]] + row[keys["rejected"]] != whole


def test_every_column_is_named(rows: list[dict[str, Any]]) -> None:
    assert {name for name in rows[0] if f"`{name}`" not in section("Pairs in other trainers")} == set()


def test_every_form_in_the_table_is_read() -> None:
    forms = [json.loads(cell) for cell in re.findall(r"^\| `([\"{].*?)` \|", section("What is read"), re.MULTILINE)]
    assert len(forms) == 6
    for form in forms:
        assert parse_prompt(form, "here")[-1].role == "user"


def test_every_reason_is_explained() -> None:
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", section("New prompts"), re.MULTILINE))))
    assert named == set(get_args(DropReason))
    assert all(f"`{reason}`" in section("Seed sets") for reason in get_args(RejectReason))


@pytest.mark.slow
def test_what_ships_can_be_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed sets from the packaged example, judged by the packaged model, and a training on them: as the page says."""
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"With what ships, .*?```sh\n(.*?)```", section("Seed sets"), re.DOTALL)
    for line in block.splitlines():
        done = invoke(shlex.split(line)[1:])
        assert done.exit_code == 0, (line, done.output, done.exception)
    eft = (tmp_path / "seeds/eft.jsonl").read_text(encoding="utf-8").splitlines()
    steps = json.loads((tmp_path / "trained/model/lineage.json").read_text(encoding="utf-8"))["steps"]
    assert f"({len(eft)} judgments agree with the ranks; {steps} steps)" in section("Seed sets")


def test_the_numbers_are_the_code_s() -> None:
    prompts, seeds = section("New prompts"), " ".join(section("Seed sets").split())
    assert f"with temperature {SAMPLING.temperature} and top-p {SAMPLING.top_p}," in " ".join(prompts.split())
    assert f"fewer than {LIMITS.min_words} or more than {LIMITS.max_words} words" in prompts
    assert f"ROUGE-L of {LIMITS.max_similarity} or more" in prompts
    settings = SftSettings()
    assert (settings.learning_rate, settings.min_lr, settings.batch_size, settings.dropout) == (5.5e-6, 1.1e-6, 16, 0.1)
    assert settings.num_train_epochs == 3
    assert "(learning rate 5.5e-6 falling to 1.1e-6, batch size 16, dropout 0.1; 3 epochs, which" in seeds
    other = SFT_PRESETS["meta-rewarding"]
    assert (other.learning_rate, other.stop_after_epoch, other.num_train_epochs) == (5e-8, 5, 10)
    assert other.batch_size == 32
    assert "(5e-8 as printed, epoch 5 of 10, batch size 32)" in seeds
