"""A supervised job's values, its files of examples, and which of them fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from dpo_world import save_model
from transformers import AutoTokenizer

from metareward.errors import UserError
from metareward.training.sft_examples import count_kinds, read_examples
from metareward.training.sft_job import SftJob
from metareward.training.sft_lengths import fitting
from metareward.training.sft_lineage import sft_settings_of, sources_of

JOB = SftJob(start=Path("M0"), data=(Path("eft.jsonl"),), output=Path("out/model"), log=Path("out/training.jsonl"))


def put(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_defaults_are_self_rewardings() -> None:
    assert (JOB.learning_rate, JOB.final_learning_rate, JOB.schedule) == (5.5e-6, 1.1e-6, "cosine")
    assert (JOB.batch_size, JOB.dropout) == (16, 0.1)


def test_json_round_trip(tmp_path: Path) -> None:
    for job in (JOB, replace(JOB, keep_epoch=2, data=(Path("a.jsonl"), Path("b.parquet")), device="cuda", seed=7)):
        job.write(tmp_path / "job.json")
        assert SftJob.read(tmp_path / "job.json") == job


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"micro_batch_size": 5}, r"micro_batch_size is 5; fix: make it a divisor of batch_size \(16\)"),
        ({"keep_epoch": 11}, r"keep_epoch is 11; fix: make it 1 to epochs \(3\)"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"final_learning_rate": 1e-5}, "final_learning_rate is 1e-05"),
        ({"data": ()}, "at least one file of examples"),
    ],
)
def test_values_that_cannot_be_trained_with(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        replace(JOB, **changes)


def test_a_wrong_file_of_a_job(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    JOB.write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "beta": 0.1}))
    with pytest.raises(UserError, match="beta"):
        SftJob.read(path)
    with pytest.raises(UserError, match=r"none\.json: can't be read: No such file"):
        SftJob.read(tmp_path / "none.json")


def test_what_decides_the_weights_is_told_and_what_does_not_is_not() -> None:
    settings = sft_settings_of(JOB)
    assert settings == sft_settings_of(replace(JOB, threads=8, device="cuda", micro_batch_size=1, output=Path("x")))
    assert {"learning_rate", "epochs", "dropout", "seed"} <= settings.keys()
    assert not {"beta", "reference", "prefix_sharing", "data", "threads"} & settings.keys()


def test_examples_of_every_form_and_kind(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    one = put(tmp_path / "one.jsonl", {"kind": "eft", "prompt": turns[:1], "completion": turns[1:], "score": 3.0})
    two = put(tmp_path / "two.jsonl", {"messages": turns}, {"instruction": "a", "output": "b"})
    datasets.Dataset.from_list([{"prompt": "a", "completion": "b", "kind": "ift"}]).save_to_disk(tmp_path / "three")
    found = read_examples((one, two, tmp_path / "three"))
    assert {(str(each.prompt), str(each.completion)) for each in found} == {(str(turns[:1]), str(turns[1:]))}
    assert count_kinds(found) == {"eft": 1, "ift": 1, "unlabelled": 2}
    assert len(sources_of(replace(JOB, data=(one, tmp_path / "three")))) > 2


def test_examples_that_will_not_do(tmp_path: Path) -> None:
    path = put(tmp_path / "bad.jsonl", {"prompt": "a", "completion": "b"}, {"prompt": "a"})
    with pytest.raises(UserError, match=r"bad\.jsonl:2: field \"prompt\": ends without the assistant's turn; fix:"):
        read_examples((path,))
    path.write_text("\n")
    with pytest.raises(UserError, match=r"bad\.jsonl: no examples at all to learn from"):
        read_examples((path,))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(save_model(tmp_path_factory.mktemp("model") / "M0"))


def test_what_is_too_long_is_left_out_and_told(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "name", "completion": "fruits " * count} for count in (1, 10, 100)]
    examples = read_examples((put(tmp_path / "a.jsonl", *rows),))
    whole = fitting(examples, tokenizer, JOB, None)
    assert whole.lengths == tuple(
        len(tokenizer.apply_chat_template(each.prompt + each.completion)["input_ids"]) for each in examples
    )
    fitted = fitting(examples, tokenizer, replace(JOB, max_length=whole.lengths[1]), 4096)
    assert (fitted.examples, fitted.too_long) == (examples[:2], examples[2:])
    assert (fitted.longest, fitted.limit) == (whole.lengths[1], whole.lengths[1])
    assert fitting(examples, tokenizer, JOB, whole.lengths[0]).examples == examples[:1]
    with pytest.raises(UserError, match=r"no example fits in 3 tokens, the shortest has \d+; fix: raise max_length"):
        fitting(examples, tokenizer, JOB, 3)


def test_a_template_that_asks_in_another_way_than_it_answers(tmp_path: Path, tokenizer: Any) -> None:
    examples = read_examples((put(tmp_path / "a.jsonl", {"prompt": "name", "completion": "fruits"}),))
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = template.replace("<|assistant|>", "<|assistant|>think")
        with pytest.raises(UserError, match="M0: its chat template writes a prompt in one way to ask and in another"):
            fitting(examples, tokenizer, JOB, None)
        tokenizer.chat_template = "{{ raise_exception('no') }}"
        with pytest.raises(UserError, match=r"M0: its chat template can't render an example \(no\); fix:"):
            fitting(examples, tokenizer, JOB, None)
    finally:
        tokenizer.chat_template = template
