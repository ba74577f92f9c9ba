"""Examples of a supervised run: their files, and which of them fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from training_world import changed, save_model
from transformers import AutoTokenizer

from metareward.errors import UserError
from metareward.training.config import SftJob, SftSettings
from metareward.training.data import count_kinds, fit_examples, read_examples
from metareward.training.lineage import identity_settings, source_digests

JOB = SftJob(
    settings=SftSettings(),
    start=Path("M0"),
    data=(Path("eft.jsonl"),),
    output=Path("out/model"),
    log=Path("out/training.jsonl"),
)


def put(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_what_decides_the_weights_is_told_and_what_does_not_is_not() -> None:
    settings = identity_settings(JOB)
    assert settings == identity_settings(
        changed(JOB, threads=8, device="cuda", per_device_train_batch_size=1, output=Path("x"))
    )
    assert {"learning_rate", "num_train_epochs", "dropout", "seed"} <= settings.keys()
    assert not {"beta", "reference", "prefix_sharing", "data", "threads"} & settings.keys()


def test_examples_of_every_form_and_kind(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    one = put(tmp_path / "one.jsonl", {"kind": "eft", "prompt": turns[:1], "completion": turns[1:], "score": 3.0})
    two = put(tmp_path / "two.jsonl", {"messages": turns}, {"instruction": "a", "output": "b"})
    datasets.Dataset.from_list([{"prompt": "a", "completion": "b", "kind": "ift"}]).save_to_disk(tmp_path / "three")
    found = read_examples((one, two, tmp_path / "three"))
    assert {(str(each.prompt), str(each.completion)) for each in found} == {(str(turns[:1]), str(turns[1:]))}
    assert count_kinds(found) == {"eft": 1, "ift": 1, "unlabelled": 2}
    assert len(source_digests(changed(JOB, data=(one, tmp_path / "three")))) > 2


def test_examples_that_will_not_do(tmp_path: Path) -> None:
    path = put(tmp_path / "bad.jsonl", {"prompt": "a", "completion": "b"}, {"prompt": "a"})
    with pytest.raises(UserError, match=r"bad\.jsonl:2: field \"prompt\": doesn't end with an assistant turn; fix:"):
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
    whole = fit_examples(examples, tokenizer, JOB, None)
    assert whole.lengths == tuple(
        len(tokenizer.apply_chat_template(each.prompt + each.completion)["input_ids"]) for each in examples
    )
    fitted = fit_examples(examples, tokenizer, changed(JOB, max_length=whole.lengths[1]), 4096)
    assert (fitted.examples, fitted.too_long) == (examples[:2], examples[2:])
    assert (fitted.longest, fitted.limit) == (whole.lengths[1], whole.lengths[1])
    assert fit_examples(examples, tokenizer, JOB, whole.lengths[0]).examples == examples[:1]
    with pytest.raises(UserError, match=r"no example fits in 3 tokens, the shortest has \d+; fix: raise max_length"):
        fit_examples(examples, tokenizer, JOB, 3)


def test_a_template_that_asks_in_another_way_than_it_answers(tmp_path: Path, tokenizer: Any) -> None:
    examples = read_examples((put(tmp_path / "a.jsonl", {"prompt": "name", "completion": "fruits"}),))
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = template.replace("<|assistant|>", "<|assistant|>think")
        with pytest.raises(UserError, match="M0: its chat template writes a prompt differently before"):
            fit_examples(examples, tokenizer, JOB, None)
        tokenizer.chat_template = "{{ raise_exception('no') }}"
        with pytest.raises(UserError, match=r"M0: its chat template can't render an example \(no\); fix:"):
            fit_examples(examples, tokenizer, JOB, None)
    finally:
        tokenizer.chat_template = template
