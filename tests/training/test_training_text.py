"""The tokens that TRL's trainers train on: the prompt of a generation, the whole completion, the end of the turn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from chat_families import DEEPSEEK_R1, FAMILIES, make_tokenizer
from datasets import Dataset
from training_world import make_job
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from trl import DPOConfig, DPOTrainer

from metareward.engines.chat import ChatEncoder
from metareward.errors import UserError
from metareward.training.config import SftJob, SftSettings
from metareward.training.data import FittingData, fit_examples, fit_pairs, read_examples, read_training_pairs
from metareward.training.trainer import make_dpo_trainer, make_sft_trainer
from metareward.types import Message

THOUGHT = "<think>\nApples are red, and so are cherries.\n</think>\n\nThe answer is good.\n\nScore: 4"
CONTEXT = 512
Turns = list[dict[str, str]]


def save_model(folder: Path, name: str, template: str | None = None) -> Path:
    """A Hugging Face folder with a tiny Llama and the tokenizer of a family."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(name)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def turn(role: str, content: str) -> Turns:
    return [{"role": role, "content": content}]


def save_pairs(path: Path, pairs: Sequence[tuple[Turns, str, str]], **columns: str) -> Path:
    rows = [
        {"prompt": prompt, "chosen": turn("assistant", chosen), "rejected": turn("assistant", rejected)} | columns
        for prompt, chosen, rejected in pairs
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def dpo_rows(model: Path, pairs: Path) -> tuple[list[dict[str, list[int]]], FittingData[Any]]:
    """The rows of the real trainer's data set."""
    tokenizer, job = AutoTokenizer.from_pretrained(model), make_job(model.parent, model, (pairs,))
    data = fit_pairs(read_training_pairs(job.data), tokenizer, job, CONTEXT)
    policy, reference = (AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32) for _ in range(2))
    trainer = make_dpo_trainer(job, data, policy, reference, tokenizer, model.parent / "out", [])
    return list(trainer.train_dataset), data


def sft_rows(model: Path, answers: Sequence[str], prompt: str = "Name four") -> tuple[list[dict[str, list[int]]], Any]:
    examples = model.parent / "examples.jsonl"
    examples.write_text("".join(json.dumps({"prompt": prompt, "completion": each}) + "\n" for each in answers))
    job = SftJob(
        settings=SftSettings(device="cpu", dropout=0.0),
        start=model,
        data=(examples,),
        output=model.parent / "sft",
        log=model.parent / "sft.jsonl",
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    data = fit_examples(read_examples(job.data), tokenizer, job, CONTEXT)
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    trainer = make_sft_trainer(job, data, policy, tokenizer, model.parent / "out", [])
    return list(trainer.train_dataset), data


@pytest.mark.parametrize("name", FAMILIES)
def test_ordinary_pairs_have_the_tokens_of_plain_trl(name: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "M0", name)
    several = [*turn("user", "Hi"), *turn("assistant", "Yes"), *turn("user", "Which?")]
    pairs = save_pairs(
        tmp_path / "pairs.parquet",
        [(turn("user", "Name four red fruits."), "Apples.", "x = a[0] < 2\n- 4"), (several, "Red", "日本 naïve")],
    )
    rows, data = dpo_rows(model, pairs)
    arguments = DPOConfig(output_dir=str(tmp_path / "trl"), max_length=None, report_to="none", use_cpu=True, bf16=False)
    plain = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=arguments,
        train_dataset=Dataset.from_parquet(str(pairs), cache_dir=str(tmp_path / "cache")),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    expected = [
        {column: row[column] for column in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in plain.train_dataset
    ]
    if name not in ("qwen-3", "deepseek-r1"):
        assert rows == expected
        assert not data.notes
        return
    # Qwen3 writes an empty thinking before an answer, DeepSeek-R1 leaves out that it begins with one.
    assert all("trained as in generation" in note for note in data.notes) and data.notes
    for row, other in zip(rows, expected, strict=True):
        assert [len(row[side]) for side in row] != [len(other[side]) for side in row]


@pytest.mark.parametrize(
    ("name", "answer", "noted"),
    [
        ("chatml", THOUGHT, False),
        ("llama-3", THOUGHT, False),
        ("qwen-3", THOUGHT, True),
        ("deepseek-r1", THOUGHT.removeprefix("<think>\n"), True),
        ("gemma", f"\n{THOUGHT} \n", True),
    ],
)
def test_thinking_is_in_the_training_tokens(name: str, answer: str, noted: bool, tmp_path: Path) -> None:
    model = save_model(tmp_path / "M0", name)
    tokenizer = AutoTokenizer.from_pretrained(model)
    encoder = ChatEncoder(tokenizer)
    prompt = (Message("user", "Name four"),)
    asked, end = encoder.encode(prompt), encoder.turn(prompt).after
    assert asked == tokenizer.apply_chat_template(turn("user", "Name four"), add_generation_prompt=True)["input_ids"]
    pairs = save_pairs(tmp_path / "pairs.parquet", [(turn("user", "Name four"), answer, f"{answer}5")])
    (pair,), data = dpo_rows(model, pairs)
    (example,), examples = sft_rows(model, [answer])
    completion = [id for id, label in zip(example["input_ids"], example["labels"], strict=True) if label != -100]
    assert pair["prompt_ids"] == asked == example["input_ids"][: len(asked)]
    assert completion == example["input_ids"][len(asked) :] == pair["chosen_ids"]
    assert tokenizer.decode(pair["chosen_ids"]) == answer + end
    assert tokenizer.decode(pair["rejected_ids"]) == f"{answer}5{end}"
    assert bool(data.notes) == bool(examples.notes) == noted
    if name == "qwen-3":  # the tags are the tokens that generation writes
        assert {"<think>", "</think>"} <= set(tokenizer.convert_ids_to_tokens(pair["chosen_ids"]))


def test_control_strings_in_training_texts_are_text(tmp_path: Path) -> None:
    for name, family in FAMILIES.items():
        model = save_model(tmp_path / name / "M0", name)
        text = " ".join(token for token in family.special if token != "<unk>")
        pairs = save_pairs(
            tmp_path / name / "pairs.parquet", [(turn("user", text), text, f"{text}b"), (turn("user", "a"), "a", "b")]
        )
        (row, harmless), _ = dpo_rows(model, pairs)
        special = set(make_tokenizer(name).all_special_ids) | {
            id for id, token in make_tokenizer(name).added_tokens_decoder.items() if token.special
        }
        for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
            assert [id for id in row[column] if id in special] == [id for id in harmless[column] if id in special]


def test_an_answer_that_was_cut_off_gets_no_end_of_turn(tmp_path: Path) -> None:
    model = save_model(tmp_path / "M0", "chatml")
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [(turn("user", "Name four"), "apples and", "red")]
    whole, cut, none = (
        dpo_rows(model, save_pairs(tmp_path / f"{place}.parquet", texts, **columns))[0][0]
        for place, columns in enumerate(
            ({"chosen_finish": "stop", "rejected_finish": "stop"}, {"chosen_finish": "length"}, {})
        )
    )
    assert whole == none
    assert tokenizer.decode(whole["chosen_ids"]) == "apples and<|im_end|>\n"
    assert tokenizer.decode(cut["chosen_ids"]) == "apples and"
    assert (cut["rejected_ids"], cut["prompt_ids"]) == (whole["rejected_ids"], whole["prompt_ids"])
    with pytest.raises(UserError, match=r"row 0: finish is 'eos'; fix: make it stop or length"):
        dpo_rows(model, save_pairs(tmp_path / "bad.parquet", texts, chosen_finish="eos"))


DROPS_SYSTEM = (
    "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CUTS_PROMPTS = DROPS_SYSTEM.replace("m.content }}", "m.content[:8] }}").replace(" if m.role != 'system'", "")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (DROPS_SYSTEM, r"can't render a pair \(the chat template leaves out the system's text\)"),
        (CUTS_PROMPTS, "leaves out a part of a pair: the system's text 'Be good and kind'"),
        ("{{ messages[-1].content }}{{ messages + 1 }}", "can't render a pair \\(TypeError"),
        (
            "{% for m in messages if m.role != 'assistant' %}{{ m.content }}{% endfor %}",
            "leaves out the assistant's text",
        ),
    ],
)
def test_a_template_that_leaves_out_text_is_refused(template: str, reason: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "M0", "chatml", template)
    prompt = [*turn("system", "Be good and kind"), *turn("user", "Name four. Be good and kind")]
    with pytest.raises(UserError, match=f"M0: its chat template .*{reason}.*; fix: ") as raised:
        dpo_rows(model, save_pairs(tmp_path / "pairs.parquet", [(prompt, "a", "b")]))
    assert "\n" not in str(raised.value)


def test_thinking_of_earlier_turns_may_be_left_out_as_in_generation(tmp_path: Path) -> None:
    model = save_model(tmp_path / "M0", "qwen-3")
    prompt = [*turn("user", "Hi"), *turn("assistant", THOUGHT), *turn("user", "Which?")]
    (row,), data = dpo_rows(model, save_pairs(tmp_path / "pairs.parquet", [(prompt, "a", "b")]))
    assert "Apples" not in AutoTokenizer.from_pretrained(model).decode(row["prompt_ids"])
    assert "the chat template leaves out the thinking of earlier turns, in generation as in training" in data.notes


def test_an_example_must_close_the_thinking_that_the_template_opens(tmp_path: Path) -> None:
    model = save_model(tmp_path / "M0", "deepseek-r1")
    with pytest.raises(
        UserError, match=r"M0: its chat template opens reasoning .* \('The answer'\); fix: give answers with"
    ):
        sft_rows(model, ["The answer"])
    closed = DEEPSEEK_R1.replace("<think>\\n", "")
    _, data = sft_rows(save_model(tmp_path / "M1", "deepseek-r1", closed), ["The answer"])
    assert not data.notes
