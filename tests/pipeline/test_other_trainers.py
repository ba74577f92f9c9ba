"""Our files in the code by which other trainers read data, set up by the words of docs/data.md; where it is installed.

A trainer's source folder on PYTHONPATH is enough, with what its data code imports.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import yaml
from test_data_docs import TALK, section
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from metareward.pocket.world import MODEL
from metareward.storage.pair_files import write_pairs
from metareward.types import PreferencePair

WORDS = section("Pairs in other trainers")


@dataclass(frozen=True)
class Exported:
    """A file of pairs: a talk that begins with a system prompt, and a single question."""

    path: Path
    cache: Path

    def rows(self) -> Any:
        return datasets.Dataset.from_parquet(str(self.path), cache_dir=str(self.cache))


@pytest.fixture
def exported(tmp_path: Path) -> Exported:
    pairs = [PreferencePair("actor", "p", prompt, "good", "bad", 1, 0, 4.0, 2.5) for prompt in (TALK, TALK[1:2])]
    write_pairs(tmp_path / "actor.parquet", pairs)
    return Exported(tmp_path / "actor.parquet", tmp_path / "cache")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One whose template takes a system prompt."""
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return tokenizer


PROMPTS = ("<system>be kind</s><user>one</s><assistant>two</s><user>three</s><assistant>", "<user>one</s><assistant>")


def test_llama_factory(exported: Exported) -> None:
    loader = pytest.importorskip("llamafactory.data.loader")
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.hparams import DataArguments, ModelArguments
    from transformers import Seq2SeqTrainingArguments

    described = json.loads(re.findall(r"```json\n(\{\n.*?)```", WORDS, re.DOTALL)[0])
    described["metareward"]["file_name"] = exported.path.name
    folder = exported.path.parent
    (folder / "dataset_info.json").write_text(json.dumps(described))
    (found,) = get_dataset_list(["metareward"], str(folder))
    rows = loader._load_single_dataset(
        found,
        ModelArguments(model_name_or_path=str(MODEL), cache_dir=str(exported.cache)),
        DataArguments(dataset_dir=str(folder)),
        Seq2SeqTrainingArguments(output_dir=str(folder / "out"), use_cpu=True, report_to="none"),
    )
    asked = [[(each["role"], each["content"]) for each in row["_prompt"]] for row in rows]
    assert asked == [[("user", "one"), ("assistant", "two"), ("user", "three")], [("user", "one")]]
    assert [row["_system"] for row in rows] == ["be kind", ""]
    for row in rows:
        assert [(each["role"], each["content"]) for each in row["_response"]] == [
            ("assistant", "good"),
            ("assistant", "bad"),
        ]


def test_axolotl(exported: Exported, tokenizer: PreTrainedTokenizerFast) -> None:
    strategy = pytest.importorskip("axolotl.prompt_strategies.dpo.chat_template")
    from axolotl.utils.dict import DictDefault

    (words,) = re.findall(r"```text\n(rl: dpo\n.*?)```", WORDS, re.DOTALL)
    settings = DictDefault(yaml.safe_load(words))
    transform, options = strategy.default(settings, 0)
    rows = exported.rows().map(transform, fn_kwargs={"tokenizer": tokenizer}, **options)
    assert tuple(rows["prompt"]) == PROMPTS
    assert set(rows["chosen"]) == {"good</s>"}
    assert set(rows["rejected"]) == {"bad</s>"}


def test_openrlhf(exported: Exported, tokenizer: PreTrainedTokenizerFast) -> None:
    reading = pytest.importorskip("openrlhf.datasets.reward_dataset")
    keys = dict(re.findall(r"--data\.(\w+_key) (\w+)", WORDS))
    assert "--data.apply_chat_template" in WORDS
    strategy = SimpleNamespace(args=SimpleNamespace(data=SimpleNamespace(**keys, apply_chat_template=True)))
    rows = reading.RewardDataset(exported.rows(), tokenizer, 512, strategy, is_dpo=True, num_processors=1)
    assert tuple(rows.prompts) == PROMPTS
    assert set(rows.chosens) == {"good</s>"}
    assert set(rows.rejects) == {"bad</s>"}
